"""A device whose memory ends amid the columns, for a toolkit's quantizer that rounds too many rows."""

from __future__ import annotations

import torch

CALLS = 5


def end_memory(monkeypatch, quantizer: type, rows: int) -> list[int]:
    """Let `quantizer.quantize` fail at its fifth call with more rows than these; how many rows those had."""
    real, tall = quantizer.quantize, []

    def short(self, x):
        if len(x) > rows:
            tall.append(len(x))
            if len(tall) == CALLS:
                raise torch.OutOfMemoryError("no room")
        return real(self, x)

    monkeypatch.setattr(quantizer, "quantize", short)
    return tall
