"""The settings of MagR and every default, in one place."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

PRESETS = ("default", "paper")

# c by bits, chosen by perplexity (eval/README.md). At 3 and 4 bits perplexity is flat around these
# values; they are on the weak side, as a strong penalty shrinks the rows with outliers most
STRENGTHS = {2: 0.03, 3: 0.06}
STRENGTH_FROM_4_BITS = 0.12
DEFAULT_ITERATIONS = 8
PAPER_ITERATIONS = 150


@dataclass(frozen=True)
class MagRConfig:
    """What `magr=` means; a field left at None follows from the preset, the bits and the group size.

    preset: "default" is the penalty ½γ‖w‖∞² derived from bits and Hessian, solved by ADMM;
        "paper" is α‖w‖∞ solved by proximal gradient descent (arXiv 2406.00800).
    strength: the constant c of the derived penalty; dimensionless.
    alpha: the paper's α, for a Hessian scaled to λmax = 1; replaces the derived penalty.
    beta: factor on the quantization step, 0 < β ≤ 1.
    iterations: of the preset's solver.
    """

    preset: str = "default"
    strength: float | None = None
    alpha: float | None = None
    beta: float | None = None
    iterations: int | None = None

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"magr: preset={self.preset!r} is unknown; use one of {PRESETS}")
        _require_positive("strength", self.strength)
        _require_positive("alpha", self.alpha)
        if self.beta is not None and not (_is_number(self.beta) and 0 < self.beta <= 1):
            raise ValueError(f"magr: beta={self.beta!r} must lie in (0, 1]; 1 keeps the step as it is")
        if self.iterations is not None and not (type(self.iterations) is int and self.iterations >= 1):
            raise ValueError(f"magr: iterations={self.iterations!r} must be a whole number of at least 1")
        if self.strength is not None and (self.alpha is not None or self.preset == "paper"):
            raise ValueError(
                f"magr: strength={self.strength!r} belongs to the derived penalty; "
                "leave it out where alpha or preset='paper' is given"
            )

    @classmethod
    def paper(cls, bits: int, group_size: int = -1) -> MagRConfig:
        """The paper's α, β and K = 150 steps for these bits (section 5 and Table 8)."""
        config = cls(preset="paper")
        return cls(
            preset="paper",
            alpha=config.alpha_for(group_size),
            beta=config.beta_for(bits, group_size),
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
        return {name: value for name, value in asdict(self).items() if value is not None}

    def alpha_for(self, group_size: int) -> float | None:
        """The linear penalty's α, or None where the penalty is the derived one."""
        if self.alpha is not None or self.preset == "default":
            return self.alpha
        return 1e-3 if group_size == -1 else 1e-4

    def beta_for(self, bits: int, group_size: int) -> float:
        """The factor on the quantization step."""
        if self.beta is not None:
            return self.beta
        if self.preset == "paper":
            return _paper_beta(bits, group_size)
        return _default_beta(bits, group_size)

    def strength_for(self, bits: int) -> float:
        """The constant c of the derived penalty."""
        return STRENGTHS.get(bits, STRENGTH_FROM_4_BITS) if self.strength is None else self.strength

    def solver_iterations(self) -> int:
        """How many iterations the preset's solver makes."""
        if self.iterations is not None:
            return self.iterations
        return PAPER_ITERATIONS if self.preset == "paper" else DEFAULT_ITERATIONS


def _paper_beta(bits: int, group_size: int) -> float:
    if group_size == -1:
        return {2: 0.8, 3: 0.9}.get(bits, 1.0)
    return 0.95 if bits <= 3 else 1.0


def _default_beta(bits: int, group_size: int) -> float:
    if group_size == -1:
        return {2: 0.8, 3: 0.9}.get(bits, 1.0)
    return {2: 0.85, 3: 0.95}.get(bits, 1.0)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _require_positive(name: str, value: Any) -> None:
    if value is not None and not (_is_number(value) and value > 0):
        raise ValueError(
            f"magr: {name}={value!r} must be a finite number above 0; magr=False switches MagR off"
        )
