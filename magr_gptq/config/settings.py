"""The settings of MagR and every default, in one place."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from magr_gptq.config.plan import Candidate, Derived, Linear, Penalty, Plan

PRESETS = ("default", "paper")
ROUNDINGS = ("gptq", "nearest")
TARGETS = ("model", "layer")

# chosen by perplexity (eval/studies/choice): c, of which each row takes the best; without a search the first,
# as the weakest is the safest. None is above 1/(1 + κ): plain GPTQ is not expected to be better by the
# penalty's own forecast (docs/how-it-works.md)
STRENGTHS = (0.04, 0.1)
# a third makes up for a part of what mirrored grids would have brought (eval/studies/mirror)
STRENGTHS_WITHOUT_MIRROR = (*STRENGTHS, 0.2)
# and β by bits, of which each group takes the best, on the grid and on its mirror image
BETAS = {2: (1.0, 0.85, 0.7), 3: (1.0, 0.9, 0.8)}
BETAS_FROM_4_BITS = (1.0, 0.95, 0.9)
DEFAULT_ITERATIONS = 4
PAPER_ITERATIONS = 150


@dataclass(frozen=True)
class MagRConfig:
    """What `magr=` means; a field left at None follows from the preset, the bits and the group size.

    A row is quantized under several strengths and keeps the best; each of its groups takes the best of
    several factors on its step, and a grid or its mirror image, whose step is negative. A strength, alpha or
    beta that is given is the only one tried, beside plain GPTQ.

    preset: "default" is the penalty ½γ‖w‖∞² derived from bits and Hessian, solved by ADMM;
        "paper" is α‖w‖∞ solved by proximal gradient descent (arXiv 2406.00800).
    strength: the constant c of the derived penalty; dimensionless.
    alpha: the paper's α, for a Hessian scaled to λmax = 1; replaces the derived penalty.
    beta: factor on the quantization step, 0 < β ≤ 1.
    mirror: let a group take a grid's mirror image, whose step is negative. Unless given, on where groups
        have a choice of factors; False keeps that choice, and every scale positive.
    iterations: of the preset's solver.
    search: False quantizes every row under one strength, without the choice; a list of pairs
        (strength, beta) is tried instead of the default ones, beside plain GPTQ. Off in preset "paper" unless
        given.
    refine: sweeps of coordinate descent after GPTQ, towards the weight that the layer aims at (the paper's †
        has 30). One unless given, none in preset "paper" and with rounding "nearest".
    gain: fit a row's scales to its codes by error and bias of its output, after rounding and before every
        sweep. On but for preset "paper".
    rounding: "gptq", or "nearest" (RTN), which carries no column's error over to the next.
    shrink: shrink what a Hessian of few tokens says of pairs of columns, and of single ones, by shares that
        halves of the documents tell, or else the number of tokens. On but for preset "paper".
    target: "model" comes near the unquantized model's output of a layer, and makes up for what the layers
        before have damaged; "layer" comes near the layer's own output on its damaged inputs. "model" but for
        preset "paper" and rounding "nearest".
    reorder: round a layer's most important columns first, its groups as they are, where the toolkit would
        take the columns as they come. On but for preset "paper".
    """

    preset: str = "default"
    strength: float | None = None
    alpha: float | None = None
    beta: float | None = None
    mirror: bool | None = None
    iterations: int | None = None
    search: bool | tuple[tuple[float, float], ...] | None = None
    refine: int | None = None
    gain: bool | None = None
    rounding: str = "gptq"
    shrink: bool | None = None
    reorder: bool | None = None
    target: str | None = None

    def __post_init__(self) -> None:
        for name, known in (("preset", PRESETS), ("rounding", ROUNDINGS), ("target", (None, *TARGETS))):
            if getattr(self, name) not in known:
                some = tuple(value for value in known if value)
                raise ValueError(f"magr: {name}={getattr(self, name)!r} is unknown; use one of {some}")
        _require_positive("strength", self.strength)
        _require_positive("alpha", self.alpha)
        _require_beta(self.beta)
        if self.iterations is not None and not (type(self.iterations) is int and self.iterations >= 1):
            raise ValueError(f"magr: iterations={self.iterations!r} must be a whole number of at least 1")
        if self.strength is not None and (self.alpha is not None or self.preset == "paper"):
            raise ValueError(
                f"magr: strength={self.strength!r} belongs to the derived penalty; "
                "leave it out where alpha or preset='paper' is given"
            )
        if self.refine is not None and not (type(self.refine) is int and self.refine >= 0):
            raise ValueError(f"magr: refine={self.refine!r} must be a whole number of sweeps; 0 makes none")
        for name in ("mirror", "gain", "shrink", "reorder"):
            if not isinstance(getattr(self, name), bool | None):
                raise ValueError(f"magr: {name}={getattr(self, name)!r} must be True or False")
        object.__setattr__(self, "search", _parse_search(self.search, self))

    @classmethod
    def paper(cls, bits: int, group_size: int = -1) -> MagRConfig:
        """The paper's α, β and K = 150 steps for these bits (section 5 and Table 8)."""
        return cls(
            preset="paper",
            alpha=_paper_alpha(group_size),
            beta=_paper_beta(bits, group_size),
            iterations=PAPER_ITERATIONS,
        )

    @classmethod
    def parse(cls, setting: bool | dict[str, Any] | MagRConfig | None) -> MagRConfig | None:
        """The configuration that a user's `magr=` value stands for; None where it is off."""
        if setting is None or setting is False:
            return None
        if setting is True:
            return cls()
        if isinstance(setting, cls):
            return setting
        if isinstance(setting, dict):
            known = [field.name for field in fields(cls)]
            unknown = sorted(set(setting) - set(known))
            if unknown:
                raise ValueError(f"magr: unknown setting {unknown[0]!r}; known are {', '.join(known)}")
            return cls(**setting)
        raise TypeError(
            f"magr={setting!r} is a {type(setting).__name__}; use True, False, None, a dict or a MagRConfig"
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields that were set, ready for JSON; `MagRConfig.parse` reads it back."""
        unset = asdict(MagRConfig())
        settings = {name: value for name, value in asdict(self).items() if value != unset[name]}
        return {"preset": self.preset, **settings}

    def resolve(
        self,
        bits: int,
        group_size: int = -1,
        order: Tensor | None = None,
        stored: torch.dtype = torch.float32,
    ) -> Plan:
        """What these settings mean for a layer; see `Plan` for the arguments."""
        default = self.preset == "default"
        nearest = self.rounding == "nearest"
        return Plan(
            bits=bits,
            group_size=group_size,
            order=order,
            stored=stored,
            candidates=self._candidates(bits, group_size),
            proximal=not default,
            iterations=self.iterations or (DEFAULT_ITERATIONS if default else PAPER_ITERATIONS),
            nearest=nearest,
            sweeps=int(default and not nearest) if self.refine is None else self.refine,
            corrects_gain=default if self.gain is None else self.gain,
            shrinks=default if self.shrink is None else self.shrink,
            aims_at_model=self.aims_at_model,
            # rounding to nearest has no order
            reorders=not nearest and (default if self.reorder is None else self.reorder),
        )

    @property
    def aims_at_model(self) -> bool:
        """Whether the target is the unquantized model's output."""
        if self.target is None:
            return self.preset == "default" and self.rounding == "gptq"
        return self.target == "model"

    def penalty(self, group_size: int) -> Penalty:
        """Of a reduction without a choice."""
        if self.alpha is not None:
            return Linear(self.alpha)
        if self.preset == "paper":
            return Linear(_paper_alpha(group_size))
        return Derived(STRENGTHS[0] if self.strength is None else self.strength)

    def betas(self, bits: int, group_size: int) -> tuple[float, ...]:
        """The factors on the quantization step that groups choose from."""
        if self.beta is not None:
            return (self.beta,)
        if self.preset == "paper":
            return (_paper_beta(bits, group_size),)
        return BETAS.get(bits, BETAS_FROM_4_BITS)

    def _candidates(self, bits: int, group_size: int) -> tuple[Candidate, ...]:
        if isinstance(self.search, tuple):
            listed = (Candidate(Derived(c), self._signed((beta,))) for c, beta in self.search)
            return (Candidate.PLAIN, *listed)
        factors = self._signed(self.betas(bits, group_size))
        penalty = self.penalty(group_size)
        if not (self.preset == "default" if self.search is None else self.search):
            return (Candidate(penalty, factors),)
        given = self.strength is not None or isinstance(penalty, Linear)
        strengths = STRENGTHS_WITHOUT_MIRROR if self.mirror is False else STRENGTHS
        penalties = (penalty,) if given else tuple(map(Derived, strengths))
        found = tuple(Candidate(penalty, factors) for penalty in penalties)
        # what a person gives may be too much for a row
        return (Candidate.PLAIN, *found) if given or max(map(abs, factors)) < 1 else found

    def _signed(self, betas: tuple[float, ...]) -> tuple[float, ...]:
        """The factors of the grids, those of their mirror images last."""
        mirror = len(betas) > 1 if self.mirror is None else self.mirror
        return (*betas, *(-beta for beta in betas)) if mirror else betas

    def with_beta(self, beta: float) -> MagRConfig:
        """The same with one factor on the step, where none was given."""
        if isinstance(self.search, tuple):
            return replace(self, search=tuple(dict.fromkeys((c, beta) for c, _ in self.search)))
        return self if self.beta is not None else replace(self, beta=beta)


def _paper_alpha(group_size: int) -> float:
    return 1e-3 if group_size == -1 else 1e-4


def _paper_beta(bits: int, group_size: int) -> float:
    if group_size == -1:
        return {2: 0.8, 3: 0.9}.get(bits, 1.0)
    return 0.95 if bits <= 3 else 1.0


def _parse_search(search: Any, config: MagRConfig) -> bool | tuple[tuple[float, float], ...] | None:
    if search is None or isinstance(search, bool):
        return search
    if not isinstance(search, (list, tuple)) or not search or not all(_is_pair(pair) for pair in search):
        raise ValueError(
            f"magr: search={search!r} must be True, False, or a list of pairs (strength, beta) of "
            "numbers above 0, beta up to 1"
        )
    if config.preset == "paper" or not (config.strength is config.alpha is config.beta is None):
        raise ValueError(
            f"magr: search={search!r} lists what is tried; leave out strength, alpha, beta and preset='paper'"
        )
    return tuple((float(strength), float(beta)) for strength, beta in search)


def _is_pair(pair: Any) -> bool:
    return (
        isinstance(pair, (list, tuple))
        and len(pair) == 2
        and all(_is_number(value) and value > 0 for value in pair)
        and pair[1] <= 1
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _require_positive(name: str, value: Any) -> None:
    if value is not None and not (_is_number(value) and value > 0):
        raise ValueError(
            f"magr: {name}={value!r} must be a finite number above 0; magr=False switches MagR off"
        )


def _require_beta(beta: Any) -> None:
    if beta is not None and not (_is_number(beta) and 0 < beta <= 1):
        raise ValueError(f"magr: beta={beta!r} must lie in (0, 1]; 1 keeps the step as it is")
