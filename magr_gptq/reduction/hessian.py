"""Symmetric matrices that should be positive semi-definite, and are but for rounding.

A matrix stands for a batch of them too: [columns, columns] or [batch, columns, columns].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# how often a shift may grow tenfold: the third makes 1 % of the mean diagonal 10 times of it
ATTEMPTS = 4
# of columns: by 4 a triangle is 5/8 of the square, by more the products are slower
BLOCKS = 4


def diagonal_of(matrix: Tensor) -> Tensor:
    """A view of the diagonal, [..., columns]."""
    return matrix.diagonal(dim1=-2, dim2=-1)


def normalise(hessian: Tensor) -> tuple[Tensor, Tensor]:
    """H over the power of two that brings the mean of its diagonal into [1/2, 1), in float32; and that power.

    Powers of two, so that nothing is rounded. A diagonal that is zero or not finite is left as it is.

    Returns:
        The matrix, in new memory, and the power, [...] float64.
    """
    exponent = _exponent(hessian)
    wide = hessian.to(torch.promote_types(hessian.dtype, torch.float32), copy=True)
    for factor in _factors(exponent, wide):
        wide.mul_(factor)
    return wide.float(), torch.exp2(exponent)


def squared_norm(rows: Tensor, hessian: Tensor) -> Tensor:
    """‖w‖²_H = wHwᵀ of every row of [..., rows, columns], by one triangle of H: [..., rows].

    Σ_b (w_b·H_bb + 2·Σ_{c>b} w_c·H_cb)·w_bᵀ   over four blocks of columns
    """
    columns = rows.shape[-1]
    size = -(-columns // BLOCKS)
    norms = rows.new_zeros(rows.shape[:-1])
    for start in range(0, columns, size):
        here, after = slice(start, start + size), slice(start + size, columns)
        block = rows[..., here]
        product = block @ hessian[..., here, here]
        if start + size < columns:
            product += (rows[..., after] @ hessian[..., after, here]).mul_(2)
        norms += torch.linalg.vecdot(product, block)
    return norms


def gram_matrix(tokens: Tensor) -> Tensor:
    """XᵀX of X, [tokens, columns]: [columns, columns], of which one triangle is multiplied, and copied."""
    columns = tokens.shape[1]
    size = -(-columns // BLOCKS)
    product = tokens.new_empty(columns, columns)
    for start in range(0, columns, size):
        end = start + size
        product[start:end, start:] = tokens[:, start:end].mT @ tokens[:, start:]
        product[end:, start:end] = product[start:end, end:].mT
    return product


class ScaledHessian:
    """H as `normalise` returns it, its columns in any order, for little memory: float32 is not copied.

    unit: the power of two, [...] float64. diagonal: [..., columns]. mean: of the diagonal, [..., 1].
    """

    def __init__(self, hessian: Tensor, order: Tensor | None = None) -> None:
        """Keep the matrix, which must not change from now on; order is [..., columns]."""
        self.unit, self._order = torch.exp2(_exponent(hessian)), order
        self._given = hessian if hessian.dtype == torch.float32 else normalise(hessian)[0]
        self._first, self._second = _factors(_exponent(self._given), self._given)
        self._back = None if order is None else order.argsort(-1)
        diagonal = diagonal_of(self._given)[..., None, :]
        self.mean = (diagonal.mean(-1, keepdim=True) * self._first * self._second)[..., 0]
        scaled = (diagonal * self._first * self._second)[..., 0, :]
        self.diagonal = scaled if order is None else scaled.gather(-1, order)

    def copy(self) -> Tensor:
        """The matrix in new memory, column by column: LAPACK's layout, so it can be factored in place."""
        if self._order is None:
            rows = self._given.clone(memory_format=torch.contiguous_format)
        else:
            rows = _permuted(self._given, self._order)
        # its rows serve as its columns, as it is symmetric
        return rows.mul_(self._first).mul_(self._second).mT

    def squared_norm_(self, rows: Tensor) -> Tensor:
        """wHwᵀ of every row of [..., rows, columns]: [..., rows]. The rows are overwritten."""
        if self._back is not None:
            rows = rows.take_along_dim(self._back[..., None, :], -1)
        # the factors are 1 or 1/2 of each other
        return squared_norm(rows.mul_(self._first), self._given) * (self._second / self._first)[..., 0]


def shifted_cholesky(copy: Callable[[], Tensor], shift: Tensor) -> tuple[Tensor, Tensor]:
    """The lower Cholesky factor of H + diag(shift), with a shift that H's rounding errors may have made grow.

    Args:
        copy: gives H in new memory, which becomes the factor's.
        shift: of the diagonal, [..., columns]; ten times as much where the sum is not positive definite, and
            again, as GPTQ's implementations do with their damping. In a batch each matrix has its own.

    Returns:
        The factor, and the shift that it took.

    Raises:
        ValueError: not even then; the Hessian is no XᵀX.
    """
    for _ in range(ATTEMPTS):
        factor = copy()
        mean = diagonal_of(factor).mean(-1)
        diagonal_of(factor).add_(shift)
        failed = torch.empty(factor.shape[:-2], dtype=torch.int32, device=factor.device)
        torch.linalg.cholesky_ex(factor, out=(factor, failed))
        if not failed.any():
            return factor, shift
        shift = torch.where(failed[..., None] != 0, 10 * shift, shift)
    worst = failed.flatten().argmax()
    tried = shift.mean(-1).expand_as(mean).flatten()[worst]
    raise ValueError(
        f"hessian plus {float(tried) / 10:.3g} on its diagonal, of mean "
        f"{float(mean.flatten()[worst]):.3g}, is not positive definite; XᵀX is: accumulate it in "
        "float32, on more calibration text, or add damping to its diagonal"
    )


def _permuted(matrix: Tensor, order: Tensor) -> Tensor:
    """Rows and columns in this order, in one go, which takes the memory of one copy."""
    rows, columns = order[..., :, None], order[..., None, :]
    if matrix.ndim == 2:
        return matrix[rows, columns]
    return matrix[torch.arange(len(matrix), device=matrix.device)[:, None, None], rows, columns]


def _exponent(hessian: Tensor) -> Tensor:
    """e, [...] float64, with 2ᵉ⁻¹ ≤ mean of the diagonal < 2ᵉ."""
    mean = diagonal_of(hessian).double().mean(-1)
    exponent: Tensor = torch.frexp(mean).exponent.double()
    return exponent.where((mean > 0) & mean.isfinite(), 0)


def _factors(exponent: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Two factors that divide a matrix by 2ᵉ, [..., 1, 1]: float32 holds no 2⁻¹⁴⁹'s inverse."""
    half = (exponent / 2).floor()
    first, second = (torch.exp2(x)[..., None, None].to(matrix.dtype) for x in (-half, half - exponent))
    return first, second
