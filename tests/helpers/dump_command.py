"""Command line of the scripts that run unmodified toolkits: `dequantize FOLDER...`, `quantize MODEL OUT`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path


def run(dequantize: Callable[[Path], None], quantize: Callable[[str, str], None]) -> None:
    """Do what the arguments say, and fail if magr_gptq came into the process."""
    if sys.argv[1] == "dequantize":
        for argument in sys.argv[2:]:
            dequantize(Path(argument))
    else:
        quantize(*sys.argv[2:])
    assert "magr_gptq" not in sys.modules
