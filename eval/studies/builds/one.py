"""One measurement of the magr_gptq that PYTHONPATH names: prints its processor seconds, a line of JSON.

`run.py` starts it by its path, in a process of its own, as an older build has no such module.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

BITS = 3
CALLS = 3
ROWS, COLUMNS = 20, 28672


def quantize(job: dict[str, Any]) -> float:
    """A whole run of GPTQModel: load, calibrate, quantize, save. Imports are left out."""
    from magr_gptq.app.quantizing.child import perform
    from magr_gptq.app.quantizing.job import Job

    # the toolkit writes ./logs
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        given = asdict(Job(**job, out=os.path.join(scratch, "checkpoint")))
        return seconds_of(lambda: perform(given, lambda *_, **__: None))


def reduce(size: int) -> float:
    """`magr_gptq.reduce` with its defaults, on a made-up layer of size × size."""
    import magr_gptq

    torch.manual_seed(0)
    mixing = torch.randn(size, size) / size**0.5
    weight, hessian = torch.randn(size, size), mixing @ mixing.T + 1e-3 * torch.eye(size)
    return calls(lambda: magr_gptq.reduce(weight, hessian, bits=BITS))


def scales(group_size: int) -> float:
    """The fit of the scales of 28,672 columns to their codes."""
    from magr_gptq.rounding import scales

    torch.manual_seed(0)
    first = torch.randn(ROWS, COLUMNS)  # in older builds the weight, later its product with the Hessian
    quantized, hessian = first.round(), torch.eye(COLUMNS)
    group_of = torch.arange(COLUMNS) // group_size
    groups = COLUMNS // group_size
    return calls(lambda: scales.fitted_factors(first, quantized, hessian, group_of, groups))


def calls(function: Callable[[], Any]) -> float:
    """The median of some calls after a first one, which loads libraries."""
    function()
    return statistics.median(seconds_of(function) for _ in range(CALLS))


def seconds_of(function: Callable[[], Any]) -> float:
    """Of the processor, in all threads."""
    start = time.process_time()
    function()
    return time.process_time() - start


def main() -> None:
    """The measurement and its arguments come as JSON."""
    name, argument = json.loads(sys.argv[1])
    print(json.dumps({"quantize": quantize, "reduce": reduce, "scales": scales}[name](argument)), flush=True)
    # GPTQModel leaves threads behind, which would be waited for
    os._exit(0)


if __name__ == "__main__":
    main()
