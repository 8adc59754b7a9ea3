"""What loads our checkpoints, and predicts what their weights say.

    python -m tools.runtimes [CONSUMER ...]        without a name: every consumer

Checkpoints of the demo's model, plain GPTQ's and the default's, are made once, in runs/runtimes. Every
consumer of `consumers.py` gets an environment of its own, .venv/runtimes-NAME, where its script of `readers`
loads them and predicts. How far that is from a float32 model with the same weights is written to
tools/results/runtimes/CONSUMER.json, cell by cell: a run that was ended goes on there, and what was seen of
the same files by the same packages is not measured again. docs/runtimes-seen.md is made of it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

from tools.runtimes import checkpoints, table
from tools.runtimes.consumers import CONSUMERS, Consumer
from tools.runtimes.environments import ROOT, UnavailableError, environment

RESULTS = ROOT / "tools" / "results" / "runtimes"
PAGE = ROOT / "docs" / "runtimes-seen.md"
READERS = Path(__file__).parent / "readers"
# of one checkpoint
TIMEOUT_SECONDS = 900


def main() -> int:
    """Run the consumers that are named, then write the page; 1 where a cell is worse than plain GPTQ's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("consumers", nargs="*", metavar="CONSUMER", help=", ".join(CONSUMERS))
    names = parser.parse_args().consumers or list(CONSUMERS)
    unknown = [name for name in names if name not in CONSUMERS]
    if unknown:
        parser.error(f"no consumer {', '.join(unknown)}; there are {', '.join(CONSUMERS)}")
    checkpoints.make_all(say)
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in names:
        if not CONSUMERS[name].skipped:
            say(f"== {name}")
            run(name, CONSUMERS[name])
    records = {name: read(name) for name in CONSUMERS}
    PAGE.write_text(table.page(records), encoding="utf-8")
    failures = [line for name in names for line in table.failures(CONSUMERS[name], records[name])]
    print("\n".join(failures) or "every cell is as plain GPTQ's, or its fault is named")
    return int(bool(failures))


def say(line: str) -> None:
    """Tell how far the run is."""
    print(line, flush=True)


def read(name: str) -> dict[str, Any]:
    """What the consumer's runs left; nothing where it was never run."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def run(name: str, consumer: Consumer) -> None:
    """Measure the cells that are missing, and save each."""
    record = read(name)
    if record.get("pins") != list(consumer.pins):
        record = {"consumer": name, "pins": list(consumer.pins), "cells": {}}
    wanted = {
        f"{method}-{kind}": checkpoints.digest(checkpoints.CACHE / f"{method}-{kind}")
        for kind in consumer.kinds
        for method in checkpoints.METHODS
    }
    record["cells"] = {at: cell for at, cell in record["cells"].items() if cell["weights"] == wanted.get(at)}
    missing = [at for at in wanted if at not in record["cells"]]
    try:
        answers = ask(name, consumer, missing)
    except UnavailableError as error:
        record |= {"unavailable": str(error), "date": date.today().isoformat()}
        save(record)
        return
    for found in answers:
        at = found.pop("checkpoint")
        record["versions"] = found.pop("versions", record.get("versions", {}))
        record["date"] = date.today().isoformat()
        record["cells"][at] = {"weights": wanted[at], **found}
        save(record)
        say(f"{at}: {found}")


def save(record: dict[str, Any]) -> None:
    """As the consumer's file."""
    text = json.dumps(record, indent=1) + "\n"
    (RESULTS / f"{record['consumer']}.json").write_text(text, encoding="utf-8")


def ask(name: str, consumer: Consumer, missing: list[str]) -> Iterator[dict[str, Any]]:
    """The reader's answers; where it dies, the checkpoint that it was at has its last words as an error.

    Raises:
        UnavailableError: see `environment`; before the first answer.
    """
    if not missing:
        return iter(())
    python = environment(consumer.environment, consumer.pins, consumer.without)
    return _answers(name, python, consumer, missing)


def _answers(name: str, python: Path, consumer: Consumer, missing: list[str]) -> Iterator[dict[str, Any]]:
    log = checkpoints.CACHE / f"{name}.log"
    while missing:
        folders = [str(checkpoints.CACHE / at) for at in missing]
        command = [str(python), str(READERS / f"read_{consumer.reader}.py"), consumer.option, *folders]
        # answers have a pipe of their own, as consumers print whatever they like while they are imported
        ours, theirs = os.pipe()
        with log.open("a", encoding="utf-8") as sink:
            process = subprocess.Popen(
                ["timeout", str(TIMEOUT_SECONDS * len(missing)), *command],
                stdout=sink, stderr=sink, pass_fds=[theirs], cwd=checkpoints.CACHE,
                env=surroundings() | {"ANSWERS": str(theirs)},
            )  # fmt: skip
        os.close(theirs)
        with os.fdopen(ours, encoding="utf-8") as answers:
            for line in answers:
                found = json.loads(line)
                missing.remove(found["checkpoint"])
                yield found
        if process.wait() and missing:
            yield {
                "checkpoint": missing.pop(0),
                "error": f"exit status {process.returncode}: {last_line(log)}",
            }


def surroundings() -> dict[str, str]:
    """The caller's environment, offline and without GPUs; tiny models gain nothing from threads."""
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "LOGBAR_ANIMATION": "0",
    }
    # with two cores or fewer GPTQModel plans no worker for loading, then fails for want of one
    cores = {"OMP_NUM_THREADS": "1", "GPTQMODEL_CPU_WORKERS": "2"}
    compiled = {"GPTQMODEL_DISABLE_PACK_EXT": "1", "TORCHDYNAMO_DISABLE": "1"}
    return {**quiet, **cores, **compiled, **os.environ, "PYTHONPATH": str(READERS)}


def last_line(log: Path) -> str:
    """The last words in a log."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].strip()[:300] if lines else ""


if __name__ == "__main__":
    sys.exit(main())
