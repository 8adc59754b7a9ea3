"""A whole comparison in its folder: what was asked for, what is there already, what remains, the report."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TextIO

from magr_gptq.app.comparing.cells import Cell, Record, Store
from magr_gptq.app.comparing.plan import Grid, Plan, fetch_texts, list_cells, name_sources
from magr_gptq.app.comparing.results import Reference, beginnings, overlaps
from magr_gptq.app.comparing.run import Run
from magr_gptq.app.comparing.verdict import Verdict
from magr_gptq.app.processes import EngineError
from magr_gptq.app.quantizing.engines import DEFAULT_ENGINE
from magr_gptq.app.scoring import zero_shot
from magr_gptq.app.text import windows_in_words
from magr_gptq.errors import InputError
from magr_score.windows import TOKENIZER

CELLS, TEXTS, SCRATCH, LOGS, LOCK = "cells", "texts", "checkpoints", "logs", ".lock"


@dataclass(frozen=True)
class Request:
    """What was asked for; `evaluate` has texts by calibration, both as they were given.

    model: as it was given. folder: the one it lies in. command: that asks for the same again.
    """

    model: str
    folder: str
    grids: Sequence[Grid]
    evaluate: Mapping[str, Sequence[str]]
    command: str
    engine: str = DEFAULT_ENGINE
    sym: bool = True
    positive_scales: bool = False
    samples: int = 128
    seqlen: int = 2048
    cut: str = TOKENIZER
    limit: int | None = None
    seeds: int = 1
    tasks: Sequence[str] = ()
    published: Reference = field(default_factory=dict)
    ranks: Mapping[str, float] | None = None
    title: str | None = None
    notes: Sequence[str] = ()


class Comparison:
    """A request in its output folder, which nobody else writes to meanwhile."""

    def __init__(self, request: Request, folder: Path) -> None:
        self.request, self.folder = request, folder
        self.store = Store(folder / CELLS)
        calibrations = name_sources(list(request.evaluate), "--calibration")
        texts = [text for found in request.evaluate.values() for text in found]
        named = name_sources(list(dict.fromkeys(texts)), "--evaluate")
        names = dict(zip(dict.fromkeys(texts), named, strict=True))
        self.cells = list_cells(request.grids, list(calibrations), request.seeds)
        self.plan = Plan(
            name=request.model, model=request.folder, engine=request.engine, sym=request.sym,
            samples=request.samples, seqlen=request.seqlen, cut=request.cut, calibrations=calibrations,
            texts=fetch_texts(named, folder / TEXTS, request.limit),
            evaluate={
                name: [names[text] for text in found]
                for name, found in zip(calibrations, request.evaluate.values(), strict=True)
            },
            tasks=list(request.tasks), positive_scales=request.positive_scales,
        )  # fmt: skip

    def remaining(self, force: bool) -> list[Cell]:
        """The cells without results; all of them by force."""
        if force:
            return self.cells
        return [cell for cell in self.cells if not self.store.finished(cell, self.plan.settings(cell))]

    def run(self) -> Run:
        """What the lanes need, with an empty folder for checkpoints."""
        shutil.rmtree(self.folder / SCRATCH, ignore_errors=True)
        return Run(self.plan, self.store, self.folder / SCRATCH, self.folder / LOGS)

    def check_tasks(self) -> None:
        """Refuse, before any work, tasks that could not be run after it."""
        if not self.plan.tasks:
            return
        if find_spec("lm_eval") is None:
            raise InputError("--tasks needs lm-eval; pip install 'magr-gptq[zero-shot]'")
        (self.folder / LOGS).mkdir(exist_ok=True)
        try:
            zero_shot(self.plan.tasks, self.folder / LOGS / "tasks.log")
        except (EngineError, InputError) as error:
            raise InputError(f"--tasks {','.join(self.plan.tasks)}: {error}") from error

    def records(self) -> dict[Cell, Record]:
        """All that was measured so far."""
        return self.store.load_all(self.cells)

    def report(self) -> Verdict:
        """Write the report on what was measured so far."""
        # draws with matplotlib, which the other commands do without
        from magr_gptq.app.comparing.report import Facts, write_report

        records = self.records()
        facts = Facts(
            # the end of a path, or a hub id
            model="/".join(Path(self.request.model).parts[-2:]),
            command=self.request.command,
            settings=self._settings(records),
            missing=len(self.cells) - len(records),
            paper=self.request.published,
            ranks=self.request.ranks,
        )
        verdict = write_report(self.folder, records, facts)
        if not any((self.folder / SCRATCH).glob("*")):
            shutil.rmtree(self.folder / SCRATCH, ignore_errors=True)
        return verdict

    def _settings(self, records: Mapping[Cell, Record]) -> dict[str, str]:
        request, plan = self.request, self.plan
        texts = [
            f"{name}: {f'at most {text.limit:,}' if text.limit else 'all'} windows of up to {plan.seqlen:,} "
            f"tokens without overlap, SHA-256 {text.sha256[:12]}"
            for name, text in plan.texts.items()
        ]
        grid = f"{'symmetric' if request.sym else 'asymmetric'} grid"
        if request.positive_scales:
            grid += ", positive scales"
        found = {
            "recipe": request.title or "",
            "engine": f"{request.engine}, {grid}",
            "calibration": f"{request.samples} random windows of up to {request.seqlen:,} tokens of "
                           f"{' and '.join(plan.calibrations)}",
            "windows": windows_in_words(request.cut, beginnings(records)),
            "overlap": "; ".join(overlaps(records)),
            "calibration seeds": ", ".join(map(str, range(request.seeds))),
            "evaluation": "; ".join(texts),
            "notes": " ".join(request.notes),
        }  # fmt: skip
        return {name: value for name, value in found.items() if value}


@contextmanager
def owned(folder: Path) -> Iterator[Path]:
    """The folder, new, empty, or of an earlier comparison, with a lock on it."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / LOCK).exists():
        raise InputError(f"the output folder {folder} holds other files; name another --out")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a") as lock:
        _lock(lock, folder)
        yield folder


def _lock(file: TextIO, folder: Path) -> None:
    """Lock the open file until it is closed; InputError where another process has."""
    try:
        import fcntl
    except ImportError as error:
        raise InputError(
            "compare locks its folder as Unix does, and this system cannot; run it on Linux, macOS or WSL"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(
            f"another comparison is running in {folder}; wait for it, or name another --out"
        ) from error
