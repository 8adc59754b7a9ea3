"""How far a tuning is, kept on the disk so that a killed one goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from magr_gptq.errors import InputError
from magr_gptq.tuning.stopping import Best


class State:
    """A file that holds everything that the next step depends on.

    fingerprint: of what was asked for, see `fingerprint`; a state of anything else is refused.
    """

    def __init__(self, file: Path, fingerprint: str) -> None:
        self._file, self._fingerprint = file, fingerprint

    def save(self, step: int, best: Best, offsets: Sequence[Tensor], parts: Sequence[Any]) -> None:
        """Replace the file at once. parts: what has a `state_dict`, the optimizer and its schedule."""
        scratch = self._file.with_name(f"{self._file.name}.new")
        found = {
            "fingerprint": self._fingerprint, "step": step, "best": vars(best),
            "offsets": [offset.detach() for offset in offsets],
            "parts": [part.state_dict() for part in parts],
        }  # fmt: skip
        torch.save(found, scratch)
        scratch.replace(self._file)

    @torch.no_grad()
    def load(self, offsets: Sequence[Tensor], parts: Sequence[Any]) -> tuple[int, Best]:
        """Put everything back; the step and the best so far. Without a file, a fresh start.

        Raises:
            InputError: it was left by a run of other settings or files.
        """
        if not self._file.exists():
            return 0, Best()
        found = torch.load(self._file, weights_only=True)
        if found["fingerprint"] != self._fingerprint:
            raise InputError(
                f"{self._file} was left by a tuning with other settings or models; repeat that command to go "
                "on with it, or delete the file"
            )
        for offset, kept in zip(offsets, found["offsets"], strict=True):
            offset.copy_(kept)
        for part, kept in zip(parts, found["parts"], strict=True):
            part.load_state_dict(kept)
        return found["step"], Best(**found["best"])


def state_file(out: Path) -> Path:
    """Where the state of a tuning into `out` is kept: hidden, next to it."""
    return out.with_name(f".{out.name}.magr-tune")


def fingerprint(folders: Sequence[Path], windows: Sequence[Tensor]) -> str:
    """A digest of what decides the result: windows, size and time of both models' files, torch."""
    digest = hashlib.sha256(torch.__version__.encode())
    for folder in folders:
        for file in sorted(folder.glob("*.safetensors")):
            status = file.stat()
            digest.update(repr((file.name, status.st_size, status.st_mtime_ns)).encode())
    for rows in windows:
        digest.update(rows.numpy().tobytes())
    return digest.hexdigest()
