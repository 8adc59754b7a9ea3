"""Ranks of torchrun that llm-compressor would end without a word, refused before the work."""

from __future__ import annotations

from typing import Any

from compressed_tensors.distributed import is_distributed
from torch import distributed as dist


def require_rows(loader: Any) -> None:
    """Raise ValueError, on all ranks, where one has no calibration rows: llm-compressor ends without a word.

    A loader that is None, or whose data have no length, is not looked at.
    """
    here = len(loader) if loader is not None and hasattr(loader.dataset, "__len__") else None
    ranks: list[Any] = [here]
    if is_distributed():
        ranks *= dist.get_world_size()
        dist.all_gather_object(ranks, here)
    if 0 in ranks:
        raise ValueError(
            f"magr: rank {ranks.index(0)} of {len(ranks)} has no calibration rows; "
            "give every rank a part of them, or start fewer ranks"
        )
