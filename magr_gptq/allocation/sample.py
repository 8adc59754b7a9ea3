"""A sample of a layer's rows, rounded at every width, and the error that is foreseen of all rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from magr_gptq.allocation.columns import Unrounded, round_columns
from magr_gptq.allocation.worth import Sample, Width
from magr_gptq.config import Candidate, MagRConfig, Plan
from magr_gptq.reduction.admm import Admm
from magr_gptq.reduction.factorization import Factorization
from magr_gptq.reduction.hessian import ScaledHessian, shifted_cholesky
from magr_gptq.reduction.penalty import DAMPING, derived_penalty
from magr_gptq.rounding.kept import Kept
from magr_gptq.rounding.layer import Layer, prepare
from magr_gptq.rounding.rounded import Rounded
from magr_gptq.rounding.settle import finish

# of a layer, which speak for all
SAMPLED_ROWS = 48
# of those, one in so many: the rows of the largest steps are unlike others, and speak for themselves alone
OUTLIER_SHARE = 4
# the most bits that they are rounded to
MOST_BITS = 4
# of ADMM: two more bring a cost down by 1 % at most, and take a sixth of a sample's time
MOST_ITERATIONS = 2


class Shared:
    """What layers with one input share: its Hessian, H = E[xxᵀ], [in, in] float32, and what is made of it.

    variances: 1/Uᵢᵢ² of `conditional_variances`, [in]. factor: U, upper triangular, with UᵀU = (H + dI)⁻¹.
    """

    def __init__(self, hessian: Tensor) -> None:
        self.hessian = hessian
        shift = DAMPING * hessian.diagonal().mean()[None]
        reversed_root, _ = shifted_cholesky(lambda: hessian.flip(-2, -1), shift)
        # H + dI = RRᵀ with an upper R, so that U = R⁻¹
        root = reversed_root.flip(-2, -1)
        self.variances = root.diagonal().square()
        self.factor = torch.linalg.solve_triangular(root, torch.eye(len(root)).to(root), upper=True)

    def factorization(self, _make: Callable[[], Factorization]) -> Factorization:
        """As `reduce_each` asks for it: made once, of the variances that are there."""
        return self._made

    @cached_property
    def _made(self) -> Factorization:
        hessian = ScaledHessian(self.hessian)
        variances = (self.variances / hessian.unit).float()
        return Factorization(variances, Admm.of(hessian, variances))


def in_place_of(width: Width) -> tuple[Width, float]:
    """The width that a sample is rounded to, and how many times its cost this one costs.

    More than 4 bits cost next to nothing, and as a cost falls with the square of the step, (15/(2ᵇ − 1))² of
    what 4 bits cost.
    """
    bits = min(width.bits, MOST_BITS)
    return replace(width, bits=bits), ((2**bits - 1) / (2**width.bits - 1)) ** 2


@torch.no_grad()
def samples(
    weights: Sequence[Tensor],
    shared: Shared,
    widths: Sequence[Width],
    config: MagRConfig | None,
    rows: int = SAMPLED_ROWS,
    frequency: Tensor | None = None,
) -> list[Sample]:
    """Rows of layers with one input, as GPTQ rounds them at every width: outliers, and others evenly spaced.

    Args:
        weights: W of each layer, [out, in] float32.
        config: MagR's settings; None is plain GPTQ.
        rows: of each layer's sample.
        frequency: how often each row of the output layer is the next token, [out]; the others of its sample
            are the most frequent, as next to nothing depends on most rows.
    """
    places = [_places(weight, min(rows, len(weight)), frequency) for weight in weights]
    # a column's work is small: all layers go through the columns as one
    sampled = torch.cat([weight[place] for weight, place in zip(weights, places, strict=True)])
    changes = sampled.new_empty(len(widths), *sampled.shape)
    sizes = dict.fromkeys(width.group_size for width in widths)
    of_size = [[i for i, width in enumerate(widths) if width.group_size == size] for size in sizes]
    drafts = [_Draft.of(sampled, shared, [_plan(config, widths[i]) for i in which]) for which in of_size]
    rounded = round_columns([draft.rows for draft in drafts], shared.factor)
    for which, draft, grids in zip(of_size, drafts, rounded, strict=True):
        changes[which] = draft.changes(sampled, grids)
    parts = torch.split(changes, [len(place) for place in places], 1)
    return [
        Sample(
            place, _outliers(len(place)), part,
            torch.stack([foreseen_error(weight, shared.variances, width) for width in widths]),
        )
        for weight, place, part in zip(weights, places, parts, strict=True)
    ]  # fmt: skip


def _places(weight: Tensor, count: int, frequency: Tensor | None) -> Tensor:
    """Of so many rows: first those of the largest magnitudes, and then others, see `samples`."""
    order = weight.abs().amax(1).argsort(descending=True, stable=True)
    first = _outliers(count)
    others = order[first:].sort().values
    if frequency is not None:
        frequent = frequency[others].argsort(descending=True, stable=True)
        return torch.cat([order[:first], others[frequent[: count - first]]])
    spaced = torch.linspace(0, len(others) - 1, count - first, device=weight.device).long()
    return torch.cat([order[:first], others[spaced]])


def _outliers(count: int) -> int:
    return count // OUTLIER_SHARE


def foreseen_error(weight: Tensor, variances: Tensor, width: Width) -> Tensor:
    """The squared output error that GPTQ is expected to make on every row, [out].

        Σ_g δ_g²/12·Σ_{i∈g} 1/Uᵢᵢ²,   δ_g = 2·max |w_g|/(2ᵇ − 1)

    It is what `derived_penalty` is made of: γ of strength 1, times ‖w_g‖∞².
    """
    # the penalty has a half of it
    return derived_penalty(variances, width.bits, width.group_size, strength=2.0).value(weight)


def _plan(config: MagRConfig | None, width: Width) -> Plan:
    plain = MagRConfig(search=False, gain=False, refine=0, beta=1.0)
    plan = (config or plain).resolve(width.bits, width.group_size)
    if config is None:
        return plan.only(Candidate.PLAIN)
    return plan if plan.proximal else replace(plan, iterations=min(plan.iterations, MOST_ITERATIONS))


@dataclass(frozen=True)
class _Draft:
    """Rows as they are rounded under several plans, which differ in their bits alone.

    layers: what each plan makes of them. rows: those of all plans, one after another.
    """

    layers: list[Layer]
    rows: Unrounded

    @classmethod
    def of(cls, weight: Tensor, shared: Shared, plans: Sequence[Plan]) -> _Draft:
        prepared = [prepare(weight, shared.hessian, plan, shared.factorization) for plan in plans]
        layers, every = [layer for layer, _ in prepared], torch.cat([torch.cat(rows) for _, rows in prepared])
        most = max(layer.factors.shape[1] for layer in layers)
        factors = [layer.factors[:, [*range(layer.factors.shape[1]), *[0] * most][:most]] for layer in layers]
        bits = torch.cat([torch.full_like(f[:, :1], p.bits) for f, p in zip(factors, plans, strict=True)])
        return cls(layers, Unrounded(every, bits, torch.cat(factors), plans[0].group_size))

    def changes(self, weight: Tensor, rounded: Rounded) -> Tensor:
        """Δ of every row under each plan, [plans, rows, in]."""
        plans = [layer.plan for layer in self.layers]
        counts = [len(layer.factors) for layer in self.layers]
        parts = torch.split(torch.arange(sum(counts), device=weight.device), counts)
        kept = [Kept.of(*pair).rounded for pair in zip(self.layers, map(rounded.rows, parts), strict=True)]
        target, bits = weight.repeat(len(plans), 1), weight.new_tensor([[plan.bits] for plan in plans])
        hessian = self.layers[0].hessian
        best = finish(
            plans[0], Rounded.joined(kept), target, target @ hessian, hessian,
            bits=bits.repeat_interleave(len(weight), 0),
        )  # fmt: skip
        changes = best.weight - target
        if not changes.isfinite().all():
            raise ValueError(
                "a sampled row was rounded to NaN or infinity; give an undamaged model, in float32"
            )
        return changes.reshape(len(plans), *weight.shape)
