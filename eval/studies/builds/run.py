"""How much time an earlier build took, beside this one, in one run on one machine.

    git worktree add EARLIER 8a94eb5
    python -m eval.studies.builds.run quantize MODEL --calibration FILE --earlier EARLIER --out FILE.json
    python -m eval.studies.builds.run calls --earlier EARLIER --out FILE.json

`quantize` is a whole run of GPTQModel by each build, and plain: what MagR adds is what a run with it takes
beyond a plain one. All are run at the same time, each again and again, so that whatever slows the machine
slows all alike. `calls` times `reduce` and the fit of scales, the builds in turn. Seconds are those of the
processor, one thread each; the record has every one of them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from eval.studies.solver.measure import machine

ONE = Path(__file__).with_name("one.py")
HERE = ONE.parents[3]
PLAIN, EARLIER, NOW = "plain", "earlier", "now"
CALLS = [("reduce", 1024), ("reduce", 2048), ("reduce", 4096), ("scales", 32)]
# GPTQModel fails on fewer
ONE_THREAD = {"OMP_NUM_THREADS": "1", "GPTQMODEL_CPU_WORKERS": "2"}


def seconds(checkout: Path, name: str, argument: Any) -> float:
    """What `one.py` measures of a checkout's package.

    Raises:
        RuntimeError: it failed; the message is what it printed.
    """
    command = [sys.executable, str(ONE), json.dumps([name, argument])]
    environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(checkout)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise RuntimeError(f"{name} of {checkout} failed:\n{ended.stderr[-2000:]}")
    return float(ended.stdout.splitlines()[-1])


def quantize(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of every run of every build."""
    job = {
        "model": str(args.model.resolve()), "calibration": str(args.calibration.resolve()),
        "bits": args.bits, "group_size": args.group_size, "samples": args.samples, "seqlen": args.seqlen,
    }  # fmt: skip
    runs = {
        PLAIN: partial(seconds, HERE, "quantize", {**job, "magr": None}),
        EARLIER: partial(seconds, args.earlier.resolve(), "quantize", job),
        NOW: partial(seconds, HERE, "quantize", job),
        **{text: partial(seconds, HERE, "quantize", {**job, "magr": json.loads(text)}) for text in args.also},
    }
    found = at_the_same_time(runs, args.rounds)
    middle = {name: statistics.median(values) for name, values in found.items()}
    for name, values in found.items():
        added = (middle[name] - middle[PLAIN]) / (middle[EARLIER] - middle[PLAIN])
        print(f"{name}: {in_words(values)}; of what was added {added:.2f}, of plain {ratio(middle, name)}")
    return {"settings": job | {"model": args.model.name, "calibration": args.calibration.name}, **found}


def ratio(middle: Mapping[str, float], name: str) -> str:
    """Over plain GPTQ's."""
    return f"{middle[name] / middle[PLAIN]:.2f}"


def at_the_same_time(runs: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Each again and again until all have ended so often; one that ends later was alone, and is left out."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    enough = threading.Event()

    def again_and_again(name: str) -> None:
        try:
            while not enough.is_set():
                value = runs[name]()
                if not enough.is_set():
                    found[name].append(value)
                if all(len(values) >= rounds for values in found.values()):
                    enough.set()
        except BaseException:
            enough.set()
            raise

    with ThreadPoolExecutor(len(runs)) as pool:
        list(pool.map(again_and_again, runs))
    return found


def calls(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of every call of both builds, in turn."""
    builds = {EARLIER: args.earlier.resolve(), NOW: HERE}
    found: dict[str, Any] = {}
    for name, argument in CALLS:
        rounds = [
            {build: seconds(place, name, argument) for build, place in builds.items()}
            for _ in range(args.rounds)
        ]
        faster = [each[EARLIER] / each[NOW] for each in rounds]
        print(f"{name} {argument}: {in_words(faster)} times as fast", flush=True)
        found[f"{name} {argument}"] = rounds
    return found


def in_words(values: list[float]) -> str:
    """The median, and all."""
    return f"{statistics.median(values):.2f} ({', '.join(f'{value:.2f}' for value in values)})"


def main() -> None:
    """Parse the command line, measure, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(required=True)
    whole = commands.add_parser("quantize", help="whole runs")
    whole.add_argument("model", type=Path)
    whole.add_argument("--calibration", type=Path, required=True, help="text file")
    whole.add_argument("--bits", type=int, default=3)
    whole.add_argument("--group-size", type=int, default=64)
    whole.add_argument("--samples", type=int, default=128, help="calibration windows")
    whole.add_argument("--seqlen", type=int, default=256, help="tokens of a window")
    whole.add_argument("--also", nargs="*", default=[], help="further settings of magr, as JSON")
    whole.set_defaults(command=quantize)
    single = commands.add_parser("calls", help="reduce, and the fit of scales")
    single.set_defaults(command=calls)
    for command in (whole, single):
        command.add_argument("--earlier", type=Path, required=True, help="a checkout of the earlier build")
        command.add_argument("--rounds", type=int, default=3)
        command.add_argument("--out", type=Path, required=True, help="JSON file of the record")
    args = parser.parse_args()
    found = args.command(args)
    # what this process would take is not what it gives
    where = machine("cpu") | {"threads": int(ONE_THREAD["OMP_NUM_THREADS"])}
    args.out.write_text(json.dumps({"machine": where, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
