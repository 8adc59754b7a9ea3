"""What the ranks of torchrun tell one another."""

from __future__ import annotations

from typing import Any

from compressed_tensors.distributed import is_distributed
from torch import distributed as dist

from magr_gptq.toolkits.report import LayerReport


def require_rows(loader: Any) -> None:
    """Raise ValueError, on all ranks, where one has no calibration rows: llm-compressor ends without a word.

    A loader that is None, or whose data have no length, is not looked at.
    """
    here = len(loader) if loader is not None and hasattr(loader.dataset, "__len__") else None
    ranks = _told_by_all(here)
    if 0 in ranks:
        raise ValueError(
            f"magr: rank {ranks.index(0)} of {len(ranks)} has no calibration rows; "
            "give every rank a part of them, or start fewer ranks"
        )


def of_all_ranks(layers: list[LayerReport]) -> list[LayerReport]:
    """The layers that any rank reports, in the order of ranks."""
    return [layer for told in _told_by_all(layers) for layer in told]


def _told_by_all(here: Any) -> list[Any]:
    """What this rank has to tell, and all others; alone without torchrun."""
    ranks: list[Any] = [here]
    if is_distributed():
        ranks *= dist.get_world_size()
        dist.all_gather_object(ranks, here)
    return ranks
