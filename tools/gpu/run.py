"""Runs the parts of the kit one after another, and writes gpu.json, gpu.md and logs; see tools/gpu/run.sh.

Each part is a process with its own limit, so that a kernel that hangs, or a device that is left broken, costs
no other part. What a part wrote before it failed counts.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.gpu.table import table

ROOT = Path(__file__).resolve().parents[2]
# seconds; all parts together. A CPU that others use may take its time.
LIMIT = 470
DRY_LIMIT = 900
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "GPTQMODEL_DISABLE_PACK_EXT": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "LOGBAR_ANIMATION": "0",
    # compilers run next to what is timed
    "MAX_JOBS": "12",
}
ON_CPU = {"CUDA_VISIBLE_DEVICES": "", "GPTQMODEL_CPU_WORKERS": "2"}


@dataclass(frozen=True)
class Step:
    """module: of tools.gpu. limit: in seconds. backend: see `readers`."""

    module: str
    limit: float
    backend: str = ""

    @property
    def name(self) -> str:
        """In the results."""
        return f"{self.module} {self.backend}".strip()


BUILD = Step("build", LIMIT)
STEPS = [
    Step("rates", 40),
    Step("kernels", 80),
    Step("layers", 110),
    Step("models", 150),
    Step("readers", 45, "gptq_torch"),
    Step("readers", 45, "gptq_triton"),
    Step("memory", 40),
    Step("compressor", 60),
    # last, as they wait for their kernels to be compiled
    Step("readers", 150, "gptq_exllama_v2"),
    Step("readers", 150, "gptq_marlin"),
]
CUDA_ONLY = ("gptq_triton", "gptq_exllama_v2", "gptq_marlin")


class Running:
    """A part's process, in a group of its own with all that it starts."""

    def __init__(self, step: Step, work: Path, log: Path, args: argparse.Namespace) -> None:
        self.step, self._lines, self._log = step, work / f"{step.name}.jsonl", log
        command = [sys.executable, "-m", f"tools.gpu.{step.module}", "--out", str(self._lines)]
        command += ["--work", str(work), "--backend", step.backend, *(["--dry"] if args.dry else [])]
        command += ["--models", *map(str, args.models)]
        # parts run in the folder that they share, where toolkits may leave what they like
        found = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, **QUIET, **(ON_CPU if args.dry else {}), "PYTHONPATH": found}
        self._start = time.monotonic()
        with log.open("a", encoding="utf-8") as file:
            self._process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, cwd=work, env=environment,
                start_new_session=True,
            )  # fmt: skip

    def result(self, limit: float) -> dict[str, Any]:
        """The lines that it wrote until it ended, or until its time was over; why it ended early."""
        skipped = None
        try:
            code = self._process.wait(max(limit, 0.0))
            if code:
                skipped = f"ended with {code}: {_last_line(self._log)}"
        except subprocess.TimeoutExpired:
            skipped = f"{limit:.0f} s were not enough"
        finally:
            _end(self._process)
        lines = self._lines.read_text(encoding="utf-8").splitlines() if self._lines.exists() else []
        return {
            "seconds": time.monotonic() - self._start,
            "skipped": skipped,
            "lines": [json.loads(line) for line in lines],
        }


def _end(process: subprocess.Popen[bytes]) -> None:
    """Compilers that it started go with it."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")[:300]


def run(args: argparse.Namespace) -> dict[str, Any]:
    """All parts; the record is written after each, so that a run that is cut off leaves what it had."""
    end = time.monotonic() + (DRY_LIMIT if args.dry else LIMIT)
    args.out.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {}
    log = args.out / "log.txt"
    log.write_text("", encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        build = None if args.dry else Running(BUILD, work, args.out / "build.txt", args)
        for step in STEPS:
            if args.dry and step.backend in CUDA_ONLY:
                continue
            limit = min(DRY_LIMIT if args.dry else step.limit, end - time.monotonic())
            keep(record, step, Running(step, work, log, args).result(limit), args)
        if build:
            keep(record, BUILD, build.result(end - time.monotonic()), args)
    return record


def keep(record: dict[str, Any], step: Step, result: dict[str, Any], args: argparse.Namespace) -> None:
    """Say what came of a part, and write all there is."""
    record[step.name] = result
    failed = sum("failed" in line or line.get("right") is False for line in result["lines"])
    said = f"{step.name}: {len(result['lines'])} lines, {failed} failed, {result['seconds']:.0f} s"
    print(said + (f"; skipped: {result['skipped']}" if result["skipped"] else ""), flush=True)
    (args.out / "gpu.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (args.out / "gpu.md").write_text(table(record), encoding="utf-8")


def main() -> None:
    """Run, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder for the results")
    parser.add_argument(
        "--models", type=Path, nargs="*", default=[], help="models to quantize after the demo's"
    )
    parser.add_argument("--dry", action="store_true", help="tiny, on the CPU: does the kit itself work?")
    args = parser.parse_args()
    args.out, args.models = args.out.resolve(), [model.resolve() for model in args.models]
    for model in args.models:
        if not (model / "config.json").is_file():
            parser.error(f"--models {model} holds no config.json; give folders of models")
    print(table(run(args)))


if __name__ == "__main__":
    main()
