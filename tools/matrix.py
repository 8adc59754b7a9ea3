"""The adapters' tests on the oldest and newest releases around the pinned ones.

    python -m tools.matrix [ROW ...]        without a name: every row

Each row gets a fresh environment, .venv/matrix-ROW: the pins of requirements/, except for what the row names.
What came of it is written to tools/results/matrix/ROW.json; the table shows every row, run or not. The rows
with another torch than the pinned one download several GB of CUDA libraries.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from tools.outcomes import counts, run_pytest

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "tools" / "results" / "matrix"
SHOWN = (
    "torch",
    "transformers",
    "gptqmodel",
    "optimum",
    "llmcompressor",
    "compressed-tensors",
    "auto-gptq",
    "peft",
)


def _in(folder: str, *names: str) -> tuple[str, ...]:
    """Test files of one folder."""
    return tuple(f"tests/{folder}/test_{name}.py" for name in names)


CORE = _in(
    "mathematics", "prox", "solver", "convergence", "refine", "scales", "factors", "layer", "grid", "config",
    "numerics", "threads", "fuzz",
)  # fmt: skip
GPTQMODEL = _in("toolkits", "enable", "gptqmodel", "gptqmodel_round_trip")
OPTIMUM = (*GPTQMODEL, *_in("toolkits", "optimum"))
LLMCOMPRESSOR = _in("toolkits", "enable", "llmcompressor", "llmcompressor_layers", "torchrun")
AUTOGPTQ = _in("toolkits", "enable", "autogptq", "autogptq_layers", "autogptq_switch")


class Row(NamedTuple):
    """One environment, and the tests that it concerns.

    environment: the one of `make setup` that it differs from.
    extras: those of pyproject.toml; a release that their ranges leave out is in `other` alone.
    other: releases in place of the pinned ones; None for the newest that pip finds.
    pinned: whether the pins hold for the rest.
    """

    environment: str
    extras: str
    tests: tuple[str, ...]
    other: dict[str, str | None]
    pinned: bool = True


# what a release of these needs in releases of its own
TORCH = {"torch": None, "triton": None, "sympy": None, "setuptools": None}
HUB = {"tokenizers": None, "huggingface-hub": None}

ROWS = {
    "torch-oldest": Row("modern", "dev", CORE, {**TORCH, "torch": "2.5.0"}),
    "torch-newest": Row("modern", "dev", CORE, TORCH),
    "gptqmodel-newest": Row(
        "modern", "cli,dev", OPTIMUM, {"gptqmodel": None, "optimum": None}, pinned=False
    ),
    "transformers-oldest": Row(
        "modern", "gptqmodel,optimum,cli,dev", OPTIMUM, {**HUB, "transformers": "5.14.0"}
    ),
    "transformers-newest": Row(
        "modern", "gptqmodel,optimum,cli,dev", OPTIMUM, {**HUB, "transformers": None}
    ),
    "llmcompressor-oldest-transformers": Row(
        "modern", "gptqmodel,llmcompressor,cli,dev", LLMCOMPRESSOR, {**HUB, "transformers": "5.15.0"}
    ),
    "llmcompressor-newest": Row(
        "modern", "gptqmodel,llmcompressor,cli,dev", LLMCOMPRESSOR,
        {"llmcompressor": None, "compressed-tensors": None},
    ),
    "autogptq-oldest-transformers": Row(
        "autogptq", "autogptq,cli,dev", AUTOGPTQ, {**HUB, "transformers": "4.45.0"}
    ),
}  # fmt: skip


class UnavailableError(RuntimeError):
    """A row's packages can't be had here."""


def main() -> int:
    """Run the rows that are named, then show all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(ROWS))
    names = parser.parse_args().rows or list(ROWS)
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        parser.error(f"no row {', '.join(unknown)}; there are {', '.join(ROWS)}")
    RESULTS.mkdir(exist_ok=True)
    for name in names:
        print(f"== {name}", flush=True)
        record = {"row": name, "python": platform.python_version(), **run(name, ROWS[name])}
        (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    records = {name: recorded(name) for name in ROWS}
    print(table(records))
    return int(any(records[name].get("failed") or records[name].get("error") for name in names))


def run(name: str, row: Row) -> dict:
    """Install a row and run its tests; ready for JSON."""
    folder = ROOT / ".venv" / f"matrix-{name}"
    try:
        install(folder, row)
    except UnavailableError as error:
        return {"other": row.other, "unavailable": str(error)}
    python = folder / "bin" / "python"
    # tiny models gain nothing from threads, and lose much where other work has the cores
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MAGR_ENV": row.environment}
    if row.tests is CORE:
        del environment["MAGR_ENV"]  # no toolkit is expected
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        found, said = run_pytest(python, [*row.tests, "-rs"], ROOT, environment, report)
    print(said)
    return {
        "other": row.other,
        "versions": versions(python),
        "tests": row.tests,
        **counts(found),
        "not_passed": {test: outcome for test, outcome in found.items() if outcome != "passed"},
    }


def install(folder: Path, row: Row) -> None:
    """A fresh environment; torch comes first, as builds of other packages import it."""
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    limits = folder / "constraints.txt"
    limits.write_text("\n".join(constraints(row)) + "\n", encoding="utf-8")
    wanted = [f"{name}=={version}" if version else name for name, version in row.other.items()]
    for packages in (["torch"], ["-e", f".[{row.extras}]", *wanted]):
        command = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "-c", limits, *packages]
        done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            # pip's warnings name folders of this machine
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            raise UnavailableError("\n".join(errors) or f"pip ended with {done.returncode}")


def constraints(row: Row) -> list[str]:
    """The pins, without those that the row frees, and with its own."""
    pins = (ROOT / "requirements" / f"{row.environment}.txt").read_text(encoding="utf-8").split()
    kept = [
        pin for pin in pins if row.pinned and pin.split("==")[0].lower().replace("_", "-") not in row.other
    ]
    return [*kept, *(f"{name}=={version}" for name, version in row.other.items() if version)]


def versions(python: Path) -> dict[str, str]:
    """The releases that were installed, of the packages that matter."""
    command = [str(python), "-m", "pip", "list", "--format=json"]
    listed = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    found = {package["name"].lower().replace("_", "-"): package["version"] for package in listed}
    return {name: found[name] for name in SHOWN if name in found}


def recorded(name: str) -> dict:
    """What the row's last run left; nothing where it was never run."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def table(records: dict[str, dict]) -> str:
    """Markdown, a row each."""
    lines = ["| row | versions | passed | failed | skipped |", "|---|---|---|---|---|"]
    for name, record in records.items():
        if "versions" in record:
            shown = ", ".join(" ".join(pair) for pair in record["versions"].items())
            failed = record["failed"] + record["error"]
            lines.append(f"| {name} | {shown} | {record['passed']} | {failed} | {record['skipped']} |")
        else:
            why = record.get("unavailable", "never run here").splitlines()[-1]
            lines.append(f"| {name} | {why} | | | |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
