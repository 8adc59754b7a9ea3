"""What MagR did to each layer of one quantization run."""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass
from typing import Any

from magr_gptq.solver import Reduction


class NothingReducedError(RuntimeError):
    """`magr` was switched on, yet not one layer was reduced."""


@dataclass(frozen=True)
class LayerReport:
    """One layer: its relative change in largest magnitude and objective, or why MagR stepped aside.

    largest_before, largest_after: mean over rows of the largest magnitude.
    objective_ratio: objective of the reduced weight over that of the original one.
    """

    name: str
    bits: int
    group_size: int
    beta: float = 1.0
    largest_before: float | None = None
    largest_after: float | None = None
    objective_ratio: float | None = None
    skipped: str | None = None

    @classmethod
    def of(cls, name: str, bits: int, group_size: int, beta: float, reduction: Reduction) -> LayerReport:
        """The report of a layer that was reduced."""
        before = float(reduction.objective_before.sum())
        return cls(
            name, bits, group_size, beta,
            largest_before=float(reduction.largest_before.mean()),
            largest_after=float(reduction.largest_after.mean()),
            objective_ratio=float(reduction.objective_after.sum()) / before if before else 1.0,
        )  # fmt: skip


class RunReport:
    """All layers of one run; shared, not copied, by the per-layer copies of a config."""

    def __init__(self) -> None:
        self.layers: list[LayerReport] = []
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> RunReport:
        return self

    def add(self, layer: LayerReport) -> None:
        """Record one layer; safe from any thread."""
        with self._lock:
            self.layers.append(layer)

    @property
    def reduced(self) -> list[LayerReport]:
        """The layers that MagR reduced."""
        return [layer for layer in self.layers if layer.skipped is None]

    @property
    def skipped(self) -> list[LayerReport]:
        """The layers where it stepped aside, each with its reason."""
        return [layer for layer in self.layers if layer.skipped is not None]

    def summary(self) -> str:
        """One line for a log: how many layers were reduced, and why the others were not."""
        reasons = sorted({layer.skipped for layer in self.skipped if layer.skipped})
        text = f"magr: {len(self.reduced)} of {len(self.layers)} layers reduced"
        return f"{text}; skipped: {'; '.join(reasons)}" if reasons else text

    def require_some(self) -> None:
        """Raise NothingReducedError where no layer was reduced."""
        if not self.reduced:
            raise NothingReducedError(
                f"{self.summary()}. Quantize with magr=False, give more calibration text, "
                "or check the per-module overrides"
            )

    def to_dict(self) -> list[dict[str, Any]]:
        """Every layer as a plain dict, ready for JSON."""
        return [asdict(layer) for layer in self.layers]
