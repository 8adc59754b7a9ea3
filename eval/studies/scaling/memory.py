"""The memory of one layer through GPTQModel's loop, measured: plain, with MagR, with its order of columns.

    python -m eval.studies.scaling.memory --rows 8192 --columns 1024

Every cell is a process of its own, on the CPU in one thread. What counts is what torch allocates at the
peak, in addition to the float32 weight and Hessian that are there at the start, in weights. For the last rows
the sums over the inputs of both chains are there at the start, too, and count; those of a layer that writes
into the residual stream are larger.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
from typing import Any

SETTINGS = {
    "plain": None,
    'MagR, target="layer", reorder=False': {"target": "layer", "reorder": False},
    'MagR, target="layer"': {"target": "layer"},
    "MagR": {"halves": "inputs"},
    "MagR, of a layer that writes into the stream": {"halves": "inputs and stream"},
}
# group size, and whether the toolkit rounds columns in an order of its own, as it does by default
GROUPS = {"128": (128, False), "128, act_group_aware": (128, True), "per channel": (-1, False)}


def peak(rows: int, columns: int, group_size: int, aware: bool, magr: dict[str, Any] | None) -> float:
    """The peak of one layer, in weights."""
    import torch
    from gptqmodel import QuantizeConfig
    from gptqmodel.quantization.gptq import GPTQ

    import magr_gptq

    torch.manual_seed(0)
    layer = torch.nn.Linear(columns, rows, bias=False)
    ramp = torch.linspace(-1, 1, columns)
    hessian = torch.eye(columns).addr_(ramp, ramp)
    with magr_gptq.enabled("gptqmodel"):
        # iterations and sweeps change no peak
        halves = (magr or {}).pop("halves", None)
        settings = None if magr is None else {"iterations": 2, "refine": 1, **magr}
        config = QuantizeConfig(
            bits=3,
            group_size=group_size,
            act_group_aware=aware,
            offload_to_disk=False,
            device="cpu",
            magr=settings,
        )
        task = GPTQ(layer, qcfg=config)
        task.quantizer.configure(perchannel=True)
        task.H, task.nsamples = hessian, 4096
        del hessian
        # what was there before the profile is not seen to go
        with torch.autograd.profiler.profile(profile_memory=True) as profile:
            if halves:
                task.magr_pairs = pairs(rows, columns, stream="stream" in halves)
            task.quantize()
    events = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    sizes = (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(itertools.accumulate(sizes)) / (4 * rows * columns)


def pairs(rows: int, columns: int, stream: bool) -> Any:
    """The sums over a few tokens of three documents, in which the chains are a little apart."""
    import torch

    from magr_gptq.toolkits.pairs import Pairs

    found = Pairs()
    for number in range(3):
        lacking = torch.randn(1, 64, rows if stream else columns)
        found.add(number, torch.randn(1, 64, columns), 0.1 * lacking, of_output=stream)
    return found


def main() -> None:
    """Print the table, a row a setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--columns", type=int, default=1024)
    parser.add_argument("--cell", nargs=2, metavar=("GROUPS", "SETTING"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cell:
        print(peak(args.rows, args.columns, *GROUPS[args.cell[0]], SETTINGS[args.cell[1]]))
        return
    print(f"| {args.rows} × {args.columns} | " + " | ".join(GROUPS) + " |\n|---|---|---|---|")
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "GPTQMODEL_CPU_WORKERS": "2",
        "CUDA_VISIBLE_DEVICES": "",
    }
    for name in SETTINGS:
        cells = []
        for groups in GROUPS:
            command = [sys.executable, "-m", __spec__.name, "--rows", str(args.rows)]
            command += ["--columns", str(args.columns), "--cell", groups, name]
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            cells.append(float(done.stdout.split()[-1]))
        print(f"| {name} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |", flush=True)


if __name__ == "__main__":
    main()
