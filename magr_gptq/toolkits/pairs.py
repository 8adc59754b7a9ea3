"""What a layer's inputs in both chains add up to, batch by batch."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from magr_gptq.reduction.target import Half
from magr_gptq.toolkits.memory import is_out_of_memory


class Pairs:
    """Sums over two halves of the calibration documents; see `Half`.

    Batches may come from several threads and devices. Each device has sums of its own until they are asked
    for, so that no matrix is moved with a batch.
    """

    def __init__(self) -> None:
        self._halves: dict[tuple[int, torch.device], Half] = {}
        self._dropped = False
        self._lock = threading.RLock()

    @property
    def halves(self) -> list[Half] | None:
        """Those that any document fell into, two or one, on one device; None where nothing was paired."""
        with self._lock:  # layers that share these may be rounded at the same time
            self._gather()
            return None if self._dropped else list(self._halves.values()) or None

    @property
    def of_output(self) -> bool:
        """Whether the sums are of what one layer's output lacks, so that no other layer can share them."""
        return any(half.of_output for half in self._halves.values())

    def add(
        self,
        first: int,
        damaged: Tensor,
        lacking: Tensor,
        *,
        kept: Tensor | None = None,
        of_output: bool = False,
        gram: Tensor | None = None,
        importance: Tensor | None = None,
    ) -> None:
        """Count documents in, of which every second one belongs to one half.

        Args:
            first: the number of the first of them. That of number 0 is cut in two, so that a single document
                makes two halves as well.
            damaged, lacking: as for `Half.of`, [documents, tokens, features].
            kept: [documents, tokens], false where a token is padding; None where none is.
            gram: Σ x̂x̂ᵀ of the tokens that are no padding, [in, in] float32, where it is known; it may be
                overwritten. It does not serve for the first document alone, whose first token may be as loud
                as all others: what one half leaves of such a sum is rounding.
            importance: [documents, tokens], as for `Half.of`; `gram` does not serve then.
        """
        documents, tokens = damaged.shape[:2]
        side = _side(first, torch.ones(documents, tokens, dtype=torch.bool) if kept is None else kept.cpu())
        serves = importance is None and not (documents == 1 and first == 0)
        gram = gram.to(damaged.device) if gram is not None and serves else None
        present = [half for half in (0, 1) if first == 0 or (side == half).any()]
        for half in present:
            mine = (side == half).nonzero()[:, 0].to(damaged.device)
            # the last one has what the other leaves of the sum
            known = gram if half == present[-1] else None
            whole = len(range((half - first) % 2, documents, 2)) - (half == first == 0)
            parts = [part.flatten(0, 1) for part in (damaged, lacking)]
            weights = None if importance is None else importance.to(damaged.device).flatten()[mine]
            if len(mine) < len(side):
                parts = [part.index_select(0, mine) for part in parts]
            some = Half.of(*parts, whole=whole, of_output=of_output, gram=known, importance=weights)
            if gram is not None and known is None:
                gram -= some.gram
            self._add(half, some)

    def drop(self) -> None:
        """Have no sums from here on: some documents could not be counted in."""
        self._dropped = True
        self._halves = {}

    def sum_up(self, reduce: Callable[[Tensor], Any]) -> None:
        """Replace all sums by those of several processes, which `reduce` sums up in place."""
        self._gather()
        for _, half in sorted(self._halves.items(), key=lambda item: item[0][0]):
            whole = half.gram.new_tensor(half.whole)
            for sums in (half.gram, half.lacking, whole):
                reduce(sums)
            half.whole = int(whole)

    def _add(self, half: int, some: Half) -> None:
        place = half, some.gram.device
        with self._lock:
            held = self._halves.get(place)
            self._halves[place] = some if held is None else held.add_(some)

    def _gather(self) -> None:
        """Move what other devices have summed up to the first one's; drop all where it has no room."""
        devices = list(dict.fromkeys(device for _, device in self._halves))
        try:
            for place in [place for place in self._halves if place[1] != devices[0]]:
                self._add(place[0], self._halves.pop(place).to(devices[0]))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            message = "no memory to bring the sums of all devices together: a layer aims at its own output"
            warnings.warn(f"magr: {message}", stacklevel=3)
            self.drop()


def _side(first: int, kept: Tensor) -> Tensor:
    """The half of every token, [documents·tokens]; −1 where it is padding.

    Args:
        first, kept: as for `Pairs.add`.
    """
    side = ((first + torch.arange(len(kept))) % 2)[:, None].repeat(1, kept.shape[1])
    if first == 0:
        side[0] = kept[0].cumsum(0) > kept[0].sum() // 2
    return side.masked_fill_(~kept, -1).flatten()
