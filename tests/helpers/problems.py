"""Weights and Hessians for the tests: random ones with the spectrum that real layers have."""

from __future__ import annotations

import torch


def hessian_of(columns: int, seed: int = 0, decay: float = 1.5, dtype=torch.float32) -> torch.Tensor:
    """A positive definite matrix whose eigenvalues fall like k^-decay, two of them far above."""
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(columns, columns, generator=generator, dtype=torch.float64))
    values = torch.arange(1, columns + 1, dtype=torch.float64) ** -decay
    values[:2] *= 10
    return ((basis * values) @ basis.T).to(dtype)


def weight_of(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Normal weights with a few outliers a row."""
    generator = torch.Generator().manual_seed(seed + 1000)
    weight = torch.randn(rows, columns, generator=generator)
    outliers = torch.rand(rows, columns, generator=generator) > 0.97
    return weight * torch.where(outliers, 6.0, 1.0) * 0.02
