"""One layer's way through a toolkit's rounding: candidates go in as rows, each row's best comes out."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from magr_gptq.config import KAPPA, Candidate, MagRConfig
from magr_gptq.reduction.factorization import Share
from magr_gptq.reduction.hessian import normalise
from magr_gptq.reduction.solver import reduce_each
from magr_gptq.rounding.choice import choose, squared_norm
from magr_gptq.rounding.scales import fitted_factors, unbiased_gain
from magr_gptq.rounding.sweep import coordinate_descent


@dataclass(frozen=True)
class Rounded:
    """Rows on their grids: weight = scale·(code − zero), code in lowest … lowest + 2ᵇ − 1.

    weight: [rows, in] float32. scale, zero: [rows, groups]. group_of: the group of every column, [in].
    lowest: the smallest code.
    """

    weight: Tensor
    scale: Tensor
    zero: Tensor
    group_of: Tensor
    lowest: int = 0

    @classmethod
    def joined(cls, parts: Sequence[Rounded]) -> Rounded:
        """The rows of all parts, which have the same groups."""
        weight, scale, zero = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("weight", "scale", "zero")
        )
        return replace(parts[0], weight=weight, scale=scale, zero=zero)

    def to(self, device: torch.device | str) -> Rounded:
        """The same elsewhere."""
        weight, scale, zero, group_of = (
            tensor.to(device) for tensor in (self.weight, self.scale, self.zero, self.group_of)
        )
        return Rounded(weight, scale, zero, group_of, self.lowest)

    def rows(self, picked: Tensor) -> Rounded:
        """Some of the rows."""
        return replace(self, weight=self.weight[picked], scale=self.scale[picked], zero=self.zero[picked])

    def scaled(self, factors: Tensor) -> Rounded:
        """The same codes on other scales; factors are [rows, groups]."""
        weight = self.weight * factors[:, self.group_of.long()]
        return replace(self, weight=weight, scale=self.scale * factors)


@dataclass(frozen=True)
class Settled:
    """What a layer ends with.

    rounded: [out, in] and its grids.
    picked: the candidate that each row kept, [out].
    beta: mean over rows of the factor on the step; None where groups chose theirs.
    largest_before, largest_after: mean over rows of max |w|, before rounding.
    squared_error: tr((Ŵ − Q)H(Ŵ − Q)ᵀ). loss: the same over tr(ŴHŴᵀ). plain_loss: loss of plain
        GPTQ, where it was a candidate.
    kept: how many rows the solver left as they were, because it found nothing better, or nothing finite.
    """

    rounded: Rounded
    picked: Tensor
    beta: float | None
    largest_before: float
    largest_after: float
    squared_error: float
    loss: float
    plain_loss: float | None
    kept: int


class Layer:
    """A layer prepared for rounding, under every candidate of its configuration.

    rows: what the toolkit is to round in place of the layer's weight, [candidates·out, in] float32;
        not needed afterwards.
    factors: those on the quantization step that each group of a row chooses from, [candidates·out, factors];
        see `least_error_factor`.
    """

    def __init__(
        self,
        weight: Tensor,
        hessian: Tensor,
        *,
        bits: int,
        group_size: int = -1,
        order: Tensor | None = None,
        config: MagRConfig | None = None,
        share: Share | None = None,
    ) -> None:
        """Reduce the weight for every candidate; arguments and errors are those of `reduce_each`."""
        self._config = config or MagRConfig()
        self._reduce = partial(
            reduce_each, bits=bits, group_size=group_size, order=order, config=self._config, share=share
        )
        self._levels = 2**bits
        self._candidates = self._config.candidates(bits, group_size)
        strengths = [candidate.strength for candidate in self._candidates]
        reductions = self._reduce(weight, hessian, strengths)
        self._original = weight.detach().to(hessian.device, torch.float32)
        # a copy: toolkits damp and permute theirs in place
        self._hessian, unit = normalise(hessian)
        self._unit = float(unit)
        self._kept = max(reduction.kept for reduction in reductions)
        # one strength may come with several β
        reduced = {c: reduction.weight for c, reduction in zip(strengths, reductions, strict=True)}
        shrinkage = {c: squared_norm(self._original - rows, self._hessian) for c, rows in reduced.items()}
        self._shrinkage = torch.stack([shrinkage[c] for c in strengths])
        self._largest = torch.stack([reduction.largest_after for reduction in reductions])
        self.rows = torch.cat([reduction.weight for reduction in reductions])
        self.factors = _even(self._candidates).to(self.rows).repeat_interleave(len(self._original), 0)

    def coupling(self, hessian: Tensor) -> Tensor:
        """The Hessian by which the toolkit is to spread rounding errors: its own, or without couplings."""
        return hessian if self._config.rounding == "gptq" else hessian.diagonal().diag()

    @property
    def device(self) -> torch.device:
        """Where the layer is prepared, and settled."""
        return self._hessian.device

    @property
    def has_choice(self) -> bool:
        """Whether rows choose among several candidates."""
        return len(self._candidates) > 1

    def apart(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """One candidate after another, where there is no memory for `rows`; moves the layer to the CPU.

        Reduced anew, as toolkits overwrite what they round.

        Yields:
            Rows and factors of a candidate, and the Hessian to round them by, on the device of before.
        """
        device = self.device
        self._leave()
        for candidate, factors in zip(
            self._candidates, self.factors.chunk(len(self._candidates)), strict=True
        ):
            hessian = self._hessian.to(device) * self._unit
            (reduction,) = self._reduce(self._original.to(device), hessian, [candidate.strength])
            yield reduction.weight, factors.to(device), self.coupling(hessian)

    def _leave(self) -> None:
        """Move to the CPU, without the rows."""
        del self.rows
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.cpu())

    def settle(self, rounded: Rounded) -> Settled:
        """Keep each row's best candidate, refine it, undo its bias.

        Args:
            rounded: what became of `rows`, in their order.

        Raises:
            ValueError: a row that is not finite under any candidate.
        """
        columns = rounded.weight.shape[1]  # a toolkit may have padded the layer, and cut it back
        original, hessian = self._original[:, :columns], self._hessian[:columns, :columns]
        quantized = rounded.weight.view(len(self._candidates), -1, columns)
        # one by one: together they would need memory for as many differences
        errors = torch.stack([squared_norm(original - candidate, hessian) for candidate in quantized])
        picked = choose(errors, self._shrinkage, KAPPA)
        every = torch.arange(len(original), device=picked.device)
        kept = self._finish(rounded.rows(picked * len(original) + every), original, hessian)
        energy = float(squared_norm(original, hessian).sum()) or 1.0
        error = float(squared_norm(original - kept.weight, hessian).sum())
        if not math.isfinite(error):
            raise ValueError(
                "magr: the toolkit rounded a row to NaN or infinity under every candidate; "
                "give it more damping, or more calibration text"
            )
        had_plain = self._candidates[0] == Candidate.PLAIN
        return Settled(
            rounded=kept,
            picked=picked,
            beta=_mean_beta([self._candidates[candidate] for candidate in picked.tolist()]),
            largest_before=float(original.abs().amax(1).mean()),
            largest_after=float(self._largest[picked, every].mean()),
            squared_error=self._unit * error,
            loss=error / energy,
            plain_loss=float(errors[0].sum()) / energy if had_plain else None,
            kept=self._kept,
        )

    def _finish(self, kept: Rounded, original: Tensor, hessian: Tensor) -> Rounded:
        """Sweeps, each of them on scales that are refitted first; at last the scales of what came out.

        Rounding shrinks a row's output, and a sweep on shrunken scales shrinks it again.
        """
        for _ in range(self._config.sweeps):
            on_scales = self._rescaled(kept, original, hessian)
            kept = self._swept(on_scales, original, hessian)
            if torch.equal(kept.weight, on_scales.weight):
                return kept
        return self._rescaled(kept, original, hessian)

    def _swept(self, kept: Rounded, original: Tensor, hessian: Tensor) -> Rounded:
        group_of, lowest = kept.group_of.long(), kept.lowest
        weight = coordinate_descent(
            kept.weight, original, hessian, kept.scale[:, group_of], kept.zero[:, group_of],
            lowest=lowest, highest=lowest + self._levels - 1, sweeps=1,
        )  # fmt: skip
        return replace(kept, weight=weight)

    def _rescaled(self, kept: Rounded, original: Tensor, hessian: Tensor) -> Rounded:
        """Group scales of least loss, then the factor on the row that undoes its bias."""
        if not self._config.corrects_gain:
            return kept
        groups = kept.scale.shape[1]
        if groups > 1:
            kept = kept.scaled(fitted_factors(original, kept.weight, hessian, kept.group_of, groups))
        gain = unbiased_gain(original, kept.weight, hessian)
        return kept.scaled(gain[:, None].expand_as(kept.scale))


def _even(candidates: Sequence[Candidate]) -> Tensor:
    """Every candidate's factors, the first of them repeated where others have more: [candidates, factors]."""
    most = max(len(candidate.factors) for candidate in candidates)
    return torch.tensor([c.factors + c.factors[:1] * (most - len(c.factors)) for c in candidates])


def _mean_beta(picked: Sequence[Candidate]) -> float | None:
    if any(len(candidate.factors) > 1 for candidate in picked):
        return None
    return statistics.fmean(candidate.factors[0] for candidate in picked)
