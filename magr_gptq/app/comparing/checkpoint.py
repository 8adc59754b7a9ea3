"""Size and layout of a checkpoint's files: the same for two checkpoints that cost the same at inference."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from magr_gptq.app.processes import EngineError


def describe(folder: Path) -> dict[str, Any]:
    """Bytes of the files and of the tensors, and a digest of the tensors' names, dtypes and shapes."""
    tensors: dict[str, Any] = {}
    files = sorted(folder.glob("*.safetensors"))
    for file in files:
        tensors |= _header(file)
    if not tensors:
        raise EngineError(f"the checkpoint {folder} has no tensors in .safetensors files")
    layout = sorted((name, entry["dtype"], entry["shape"]) for name, entry in tensors.items())
    return {
        "file_bytes": sum(file.stat().st_size for file in files),
        "tensor_bytes": sum(end - start for start, end in (t["data_offsets"] for t in tensors.values())),
        "tensors": len(tensors),
        "layout": hashlib.sha256(json.dumps(layout).encode()).hexdigest(),
    }


def _header(file: Path) -> dict[str, Any]:
    """A safetensors file starts with the length of its header, 8 bytes, then the header as JSON."""
    with file.open("rb") as content:
        header: dict[str, Any] = json.loads(content.read(int.from_bytes(content.read(8), "little")))
    header.pop("__metadata__", None)
    return header
