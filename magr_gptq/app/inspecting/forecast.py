"""What MagR would do to a layer, before anything is quantized: tensors in, tensors and numbers out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from magr_gptq.config import MagRConfig
from magr_gptq.reduction.groups import group_views
from magr_gptq.reduction.hessian import squared_norm
from magr_gptq.reduction.penalty import conditional_variances
from magr_gptq.reduction.solver import reduce

# the paper's Table 2 counts singular values above this share of the largest
RANK_THRESHOLD = 0.01


@dataclass(frozen=True)
class Forecast:
    """What MagR would change in one layer at one bit width.

    beta: factor on the quantization step.
    largest_before, largest_after: max |w| of every row, [out].
    loss_before, loss_after: `predicted_loss` of plain GPTQ, and of GPTQ after MagR.
    """

    bits: int
    beta: float
    largest_before: Tensor
    largest_after: Tensor
    loss_before: float
    loss_after: float

    @property
    def helps(self) -> bool:
        """Whether the predicted loss falls."""
        return self.loss_after < self.loss_before

    def to_dict(self) -> dict[str, Any]:
        """The largest magnitudes as means over rows, all else as it is, ready for JSON."""
        return {
            "bits": self.bits,
            "beta": self.beta,
            "largest_before": float(self.largest_before.mean()),
            "largest_after": float(self.largest_after.mean()),
            "loss_before": self.loss_before,
            "loss_after": self.loss_after,
            "helps": self.helps,
        }


@dataclass(frozen=True)
class LayerForecast:
    """One layer: the rank of its input and what MagR would change, or why it was left out.

    tokens: that the Hessian was summed over.
    fraction_rank: see `fraction_rank`; None where no token came.
    forecasts: one for each bit width, empty where skipped.
    """

    name: str
    shape: tuple[int, ...]
    tokens: int
    fraction_rank: float | None = None
    forecasts: tuple[Forecast, ...] = ()
    skipped: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """All but the single rows, ready for JSON."""
        return {
            "name": self.name,
            "shape": self.shape,
            "tokens": self.tokens,
            "skipped": self.skipped,
            "fraction_rank": self.fraction_rank,
            "forecasts": [found.to_dict() for found in self.forecasts],
        }


def fraction_rank(hessian: Tensor) -> float:
    """The share of X's singular values above 1 % of the largest (the paper's Table 2), for H = XᵀX.

    They are the square roots of H's eigenvalues. At most tokens / columns where there are fewer
    tokens than columns.
    """
    values = torch.linalg.eigvalsh(hessian)
    return float((values > RANK_THRESHOLD**2 * values[-1]).float().mean())


def spread(values: list[float]) -> dict[str, float]:
    """Least, quartiles, greatest and mean, as in the paper's Table 2."""
    found = torch.tensor(values, dtype=torch.float64)
    marks = torch.linspace(0, 1, 5, dtype=torch.float64)
    names = ("min", "q25", "median", "q75", "max")
    quantiles = dict(zip(names, found.quantile(marks).tolist(), strict=True))
    return {**quantiles, "mean": float(found.mean())}


def output_energy(weight: Tensor, hessian: Tensor) -> float:
    """tr(W H Wᵀ), the sum of the layer's squared outputs."""
    return float(squared_norm(weight, hessian).sum())


def rounding_error(
    weight: Tensor, variances: Tensor, *, bits: int, group_size: int = -1, beta: float = 1.0
) -> Tensor:
    """The squared output error that GPTQ is expected to make on every row, [out].

        Σ_g Σ_{i∈g} eᵢ²/Uᵢᵢ²,   eᵢ² = δ_g²/12                   where |wᵢ| ≤ βm,   m = max |w_g|
                                eᵢ² = (|wᵢ| − βm + δ_g/2)²      beyond, where wᵢ is clipped

    with δ_g = 2βm/(2ᵇ − 1), the step of a grid that spans ±βm. GPTQ's loss is the sum of
    its squared rounding errors over Uᵢᵢ², exactly; that they are uniform on ±δ/2 is assumed.

    Args:
        weight: what is rounded, [out, in].
        variances: 1/Uᵢᵢ² as `conditional_variances` gives them, [in].
        beta: factor on the quantization step.
    """
    total = weight.new_zeros(len(weight))
    groups = zip(group_views(weight, group_size), group_views(variances[None], group_size), strict=True)
    for view, weights in groups:
        magnitudes = view.abs()
        edge = beta * magnitudes.amax(-1, keepdim=True)
        step = 2 * edge / (2**bits - 1)
        clipped = (magnitudes - edge + step / 2).square()
        errors = torch.where(magnitudes > edge, clipped, step.square() / 12)
        total += (errors * weights).sum((1, 2))
    return total


def predicted_loss(
    weight: Tensor,
    original: Tensor,
    hessian: Tensor,
    *,
    bits: int,
    group_size: int = -1,
    beta: float = 1.0,
) -> float:
    """The loss that GPTQ is expected to end with when it rounds W in place of Ŵ.

        (tr((W − Ŵ)H(W − Ŵ)ᵀ) + Σ_rows rounding_error(W)) / tr(ŴHŴᵀ)

    Scaling H or both weights changes nothing. W = Ŵ and β = 1 stand for plain GPTQ.

    Args:
        weight: W, [out, in]; original: Ŵ, [out, in]; hessian: H = XᵀX up to a factor, [in, in].

    Raises:
        ValueError: the layer's output is zero on this input.
    """
    energy = output_energy(original, hessian)
    if energy <= 0:
        raise ValueError(f"tr(WHWᵀ) = {energy:.3g}: a layer without output has no relative loss")
    rounding = rounding_error(
        weight, conditional_variances(hessian), bits=bits, group_size=group_size, beta=beta
    )
    return (output_energy(weight - original, hessian) + float(rounding.sum())) / energy


@torch.no_grad()
def forecast(
    weight: Tensor, hessian: Tensor, *, bits: int, group_size: int = -1, config: MagRConfig | None = None
) -> Forecast:
    """Reduce the weight under the configuration's first strength, and predict both losses, with the best β.

    That is one β for all; what a run does besides (choices, mirrored grids, sweeps, gains) is not foreseen.
    Arguments as `reduce`.

    Raises:
        ValueError: what `reduce` refuses, or a layer whose output is zero on this input.
    """
    config = config or MagRConfig()
    original, hessian = weight.to(hessian.device, torch.float32), hessian.float()
    found = reduce(original, hessian, bits=bits, group_size=group_size, config=config)
    grid = {"bits": bits, "group_size": group_size}
    losses = {
        beta: predicted_loss(found.weight, original, hessian, **grid, beta=beta)
        for beta in config.betas(bits, group_size)
    }
    beta = min(losses, key=losses.__getitem__)
    return Forecast(
        bits=bits,
        beta=beta,
        largest_before=found.largest_before,
        largest_after=found.largest_after,
        loss_before=predicted_loss(original, original, hessian, **grid),
        loss_after=losses[beta],
    )


def forecast_layers(
    weights: Mapping[str, Tensor], hessian: Tensor, tokens: int, widths: Sequence[int], group_size: int = -1
) -> Iterator[LayerForecast]:
    """Every layer of those that share an input, by name, at every bit width."""
    rank = fraction_rank(hessian)
    for name, weight in weights.items():
        shape = tuple(weight.shape)
        if output_energy(weight.to(hessian), hessian) <= 0:
            yield LayerForecast(name, shape, tokens, rank, skipped="its output is zero")
            continue
        found = (forecast(weight, hessian, bits=bits, group_size=group_size) for bits in widths)
        yield LayerForecast(name, shape, tokens, rank, tuple(found))
