"""The weight whose output on damaged inputs is nearest to the unquantized model's output.

Once earlier layers are quantized, a layer's inputs are X̂ in place of X. Aiming at ŴX̂ᵀ keeps what earlier
layers spoiled; aiming at ŴXᵀ makes up for it where it can be told from X̂:

    ‖XŴᵀ − X̂Qᵀ‖² = ‖W* − Q‖²_Ĥ + what no Q changes   W* = Ŵ + EĤ⁻¹   Ĥ = X̂ᵀX̂   E = Ŵ(X − X̂)ᵀX̂

so that all which is done for Ŵ can be done for W*. A layer that writes into the residual stream can make up
for what the stream R̂ lacks of R, too: E gains (R − R̂)ᵀX̂. From few tokens the correction is mostly noise,
which the tokens themselves tell: Ĥ is shrunk as everywhere (`shrinkage`), and what half of the calibration
documents says counts as far as it holds on the other half. There is no constant to choose.

The identity is that of QEP (Y. Arai, Y. Ichikawa, arXiv 2504.09629), Qronos (S. Zhang et al., 2505.11695) and
GPTAQ (Y. Li et al., 2504.02692); the stream is LoaQ's (2509.06297). They and CoreQ (2602.05902) choose a
strength by a constant or a closed form; this one is cross-fitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from magr_gptq.reduction.held_out import held_out_share
from magr_gptq.reduction.hessian import diagonal_of, gram_matrix, normalise, shifted_cholesky
from magr_gptq.reduction.shrinkage import of_half, shrink_, shrinkage_of_halves

# of the mean diagonal: without it float32 would not factor a matrix of few tokens
RIDGE = 1e-6
# the strength is found on at most so many
ROWS = 256


@dataclass
class Half:
    """Sums over the tokens of every second calibration document; the other half has the other documents.

    Tokens of one document are alike: they belong into one half. x enters the layer in the unquantized model,
    x̂ where all earlier layers are quantized.

    gram: Ĥ = Σ x̂x̂ᵀ, [in, in]. lacking: Σ (x − x̂)x̂ᵀ, [in, in], summed as such: a difference of sums would be
    all rounding. Where of_output it is E itself, Σ (W(x − x̂) + r − r̂)x̂ᵀ, [out, in], of a layer that writes
    into the residual stream r. Both are float32. whole: how many documents lie in this half alone.
    weighed: whether each token counts by its `importance` w: x̂, x and r stand for √w times what they are.
    """

    gram: Tensor
    lacking: Tensor
    whole: int = 1
    of_output: bool = False
    weighed: bool = False

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        damaged: Tensor,
        lacking: Tensor,
        *,
        whole: int = 1,
        of_output: bool = False,
        gram: Tensor | None = None,
        importance: Tensor | None = None,
    ) -> Half:
        """The sums over some tokens.

        Args:
            damaged: x̂, [tokens, in], any floating dtype.
            lacking: x − x̂, [tokens, in], or, where of_output, what the output lacks, [tokens, out].
            whole: of how many documents these are all tokens; others have some in the other half.
            gram: Σ x̂x̂ᵀ, [in, in] float32, where it is known; it becomes the sum's own.
            importance: w ≥ 0, [tokens]; None where all count alike.
        """
        wide, lost = damaged.float(), lacking.float()
        if importance is not None:
            root = importance.sqrt()[:, None]
            wide, lost, gram = wide * root, lost * root, None
        weighed = importance is not None
        return cls(gram_matrix(wide) if gram is None else gram, lost.T @ wide, whole, of_output, weighed)

    @torch.no_grad()
    def add_(self, other: Half) -> Half:
        """These sums and those, in place."""
        self.gram.add_(other.gram)
        self.lacking.add_(other.lacking)
        self.whole += other.whole
        self.weighed |= other.weighed
        return self

    def to(self, device: torch.device) -> Half:
        """The same elsewhere."""
        return replace(self, gram=self.gram.to(device), lacking=self.lacking.to(device))

    def missing(self, weight: Tensor, rows: slice = slice(None)) -> Tensor:
        """E, [out, in]: what the layer's output lacks, against x̂; or some rows of it."""
        return self.lacking[rows] if self.of_output else weight[rows] @ self.lacking


@dataclass(frozen=True)
class Target:
    """What a layer is to come near.

    weight: W*, [out, in] float32. strength: the share α of the correction that was taken, 0 to 1.
    """

    weight: Tensor
    strength: float


@torch.no_grad()
def target_of(weight: Tensor, halves: Sequence[Half], rho: Tensor | None = None) -> Target:
    """W* = Ŵ + α·D, which stands in for Ŵ in all that follows.

    D is the `correction` by all tokens. Let S be the part of it that holds, and V its noise, which is 2V by
    half of the tokens. The `cross_fitted` share of the halves is a = S/(S + 2V), and that of all tokens is

        α = S/(S + V) = 2a/(1 + a)

    (Spearman's and Brown's formula for a test of twice the length, 1910). α is 0, and W* is Ŵ itself, where a
    half has no tokens, or where the inputs are undamaged.

    Args:
        weight: Ŵ, [out, in], any floating dtype; not changed.
        halves: two, on one device, or fewer where one saw no token; which is the first changes nothing.
        rho: of `shrinkage_by_documents`, where it is known.

    Raises:
        ValueError: sums of another shape, or that are not finite.
    """
    original = weight.detach().to(torch.float32, copy=True)
    for half in halves:
        _check(original, half)
    if len(halves) < 2 or not all(bool(diagonal_of(half.gram).any()) for half in halves):
        return Target(original, 0.0)
    original = original.to(halves[0].gram.device)
    rho = shrinkage_by_documents(halves) if rho is None else rho
    strength = _strength(original, halves, rho)
    if strength == 0:
        return Target(original, 0.0)
    first, second = halves
    whole = replace(first, gram=first.gram + second.gram, lacking=first.lacking + second.lacking)
    return Target(
        correction(whole.missing(original), whole.gram, rho).mul_(strength).add_(original), strength
    )


@torch.no_grad()
def weighed_(hessian: Tensor, halves: Sequence[Half] | None) -> Tensor:
    """Replace a toolkit's H by Σ w·x̂x̂ᵀ of the halves, as large as it was, where tokens are weighed.

    Args:
        hessian: [in, in] float32; changed in place, and returned.
    """
    if not halves or not all(half.weighed for half in halves):
        return hessian
    # in memory of its own, so that the toolkit's is whole where something fails
    weighed = torch.zeros_like(hessian)
    for half in halves:
        weighed += half.gram.to(hessian)
    smallest = torch.finfo(hessian.dtype).tiny
    size = diagonal_of(hessian).sum() / diagonal_of(weighed).sum().clamp_min(smallest)
    return hessian.copy_(weighed.mul_(size))


def shrinkage_by_documents(halves: Sequence[Half]) -> Tensor:
    """ρ, [] float64, from two halves; see `shrinkage_of_halves` and `held_out_share`.

    Where every document lies in both halves, they agree on what is a document's own, too. So what one of
    them says of the other stands for what both say of other documents, and the share is that of half of the
    tokens.
    """
    first, second = halves
    rho = shrinkage_of_halves(first.gram, second.gram)
    rho = held_out_share(first.gram, second.gram, rho)
    return rho if first.whole + second.whole > 0 else of_half(rho)


def _strength(original: Tensor, halves: Sequence[Half], rho: Tensor) -> float:
    """α, of rows evenly spaced: one number needs no more."""
    rows = slice(None, None, -(-len(original) // ROWS))
    missing = [half.missing(original, rows) for half in halves]
    found = [correction(lost, half.gram, of_half(rho)) for lost, half in zip(missing, halves, strict=True)]
    by_halves = cross_fitted(found, missing, [half.gram for half in halves])
    return 2 * by_halves / (1 + by_halves)


def correction(missing: Tensor, gram: Tensor, rho: Tensor) -> Tensor:
    """D = (1 − ρ)·E((1 − ρ)Ĥ + ρ·diag(Ĥ))⁻¹: least squares at ρ = 0, [out, in] float32.

    It is the regression of what the outputs lack on x̂, both moments shrunk: Ĥ in its pairs, E towards 0.

    Args:
        missing: E, [out, in]. gram: Ĥ, [in, in]. rho: the share, []; see `shrinkage`.
    """
    scaled, unit = normalise(gram)
    shrink_(scaled, rho)
    ridge = (RIDGE * diagonal_of(scaled).mean()).expand(len(scaled))
    factor, _ = shifted_cholesky(scaled.clone, ridge)
    share = (1 - rho).to(missing) / unit.to(missing)
    return torch.cholesky_solve((missing * share).mT, factor).mT.contiguous()


def cross_fitted(corrections: Sequence[Tensor], missing: Sequence[Tensor], grams: Sequence[Tensor]) -> float:
    """a in [0, 1] that is best for what one half says about the other, both ways together.

    On half B the correction D by half A leaves const − 2a⟨D, E_B⟩ + a²⟨D, DĤ_B⟩ of the squared error, so

        a = (⟨D_A, E_B⟩ + ⟨D_B, E_A⟩) / (⟨D_A, D_AĤ_B⟩ + ⟨D_B, D_BĤ_A⟩)   clipped; 0 where D is 0

    Args:
        corrections: D_A and D_B, [out, in]. missing: E_A and E_B, [out, in]. grams: Ĥ_A and Ĥ_B, [in, in].

    Raises:
        ValueError: numbers that are not finite.
    """
    agreement = size = 0.0
    for found, lost, gram in zip(corrections, reversed(missing), reversed(grams), strict=True):
        agreement += float(torch.linalg.vecdot(found, lost).sum())
        size += float(torch.linalg.vecdot(found @ gram, found).sum())
    strength = agreement / size if size > 0 else 0.0
    if not -torch.inf < strength < torch.inf:
        raise ValueError(
            f"the target's strength is {agreement:.3g} over {size:.3g}; "
            "check that the calibration run is finite in both chains, in float32"
        )
    return min(1.0, max(0.0, strength))


def _check(original: Tensor, half: Half) -> None:
    """Raise ValueError for sums that are not of this layer's inputs."""
    rows, columns = original.shape
    lacking = (rows if half.of_output else columns, columns)
    for name, shape in (("gram", (columns, columns)), ("lacking", lacking)):
        matrix = getattr(half, name)
        if matrix.shape != shape:
            raise ValueError(f"{name} is {tuple(matrix.shape)}; this weight needs {shape}")
        if not matrix.sum().isfinite():
            raise ValueError(f"{name} holds NaN or infinity; check the calibration run in float32")
