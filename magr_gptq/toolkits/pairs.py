"""What a layer's inputs in both chains add up to, batch by batch."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch import Tensor

from magr_gptq.reduction.target import Half


class Pairs:
    """Sums over two halves of the calibration documents; see `Half`.

    Batches may come from several threads and devices; the sums lie where the first of them lay.
    """

    def __init__(self) -> None:
        self._halves: dict[int, Half] = {}
        self._lock = threading.Lock()

    @property
    def halves(self) -> list[Half] | None:
        """Those that any document fell into, two or one; None where nothing was paired."""
        return list(self._halves.values()) or None

    @property
    def of_output(self) -> bool:
        """Whether the sums are of what one layer's output lacks, so that no other layer can share them."""
        return any(half.of_output for half in self._halves.values())

    def add(
        self,
        number: int,
        damaged: Tensor,
        lacking: Tensor,
        *,
        of_output: bool = False,
        gram: Tensor | None = None,
    ) -> None:
        """Count a document of this number in: what `Half.of` takes."""
        if number:
            self._add(number % 2, Half.of(damaged, lacking, of_output=of_output, gram=gram))
            return
        # the first is cut in two, so that a single document makes two halves as well
        middle = len(damaged) // 2
        for part, tokens in enumerate((slice(middle), slice(middle, None))):
            self._add(part, Half.of(damaged[tokens], lacking[tokens], whole=0, of_output=of_output))

    def sum_up(self, reduce: Callable[[Tensor], Any]) -> None:
        """Replace all sums by those of several processes, which `reduce` sums up in place."""
        for number in sorted(self._halves):
            half = self._halves[number]
            whole = half.gram.new_tensor(half.whole)
            for sums in (half.gram, half.lacking, whole):
                reduce(sums)
            half.whole = int(whole)

    def _add(self, half: int, some: Half) -> None:
        with self._lock:
            held = self._halves.get(half)
            self._halves[half] = some if held is None else held.add_(some.to(held.gram.device))
