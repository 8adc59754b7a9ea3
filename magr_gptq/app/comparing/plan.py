"""What is the same in all cells of a comparison, and the list of its cells."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from magr_gptq.app.comparing.cells import PROFILE, UNQUANTIZED, Cell, slug
from magr_gptq.app.comparing.methods import job_fields
from magr_gptq.app.text import find_source, load_text
from magr_gptq.errors import InputError
from magr_score.windows import TOKENIZER

# c4 has no test split, and is far longer than what papers score: GPTQ's code takes 256 windows of it
SPLITS = {"c4": "validation"}
WINDOWS = {"c4": 256}


@dataclass(frozen=True)
class Text:
    """A text to score: `source` as it was asked for, `path` of the copy that is scored."""

    source: str
    path: str
    sha256: str
    limit: int | None


@dataclass(frozen=True)
class Plan:
    """The model, and how its checkpoints are made and measured; travels as JSON to other processes.

    name: the model as it was asked for. model: the folder that it lies in.
    calibrations: source by name. texts: by name. evaluate: names of texts by name of calibration.
    tasks: of lm-eval, for checkpoints made with the first calibration.
    cut: of `magr_score.windows.CUTS`, how windows begin, those to calibrate on and those to score.
    """

    name: str
    model: str
    engine: str
    sym: bool
    samples: int
    seqlen: int
    calibrations: dict[str, str]
    texts: dict[str, Text]
    evaluate: dict[str, list[str]]
    tasks: list[str]
    positive_scales: bool = False
    cut: str = TOKENIZER

    def texts_for(self, cell: Cell) -> dict[str, Text]:
        """What the cell is scored on."""
        return (
            self.texts
            if not cell.calibration
            else {n: self.texts[n] for n in self.evaluate[cell.calibration]}
        )

    def tasks_for(self, cell: Cell) -> list[str]:
        """The lm-eval tasks of the cell."""
        return self.tasks if cell.calibration in ("", next(iter(self.calibrations))) else []

    def settings(self, cell: Cell) -> dict[str, Any]:
        """All that the cell's results depend on, apart from the cell itself and versions."""
        texts = self.texts_for(cell)
        same = {"model": self.name, "seqlen": self.seqlen, "samples": self.samples, "cut": self.cut}
        if cell.method == PROFILE:
            return {**same, "calibration": self.calibrations[cell.calibration]}
        scored = {name: {"sha256": text.sha256, "limit": text.limit} for name, text in texts.items()}
        found = {
            "model": self.name, "seqlen": self.seqlen, "cut": self.cut, "evaluate": scored,
            "tasks": self.tasks_for(cell),
        }  # fmt: skip
        if cell.method == UNQUANTIZED:
            return found
        made = {"engine": self.engine, "sym": self.sym, "samples": self.samples}
        # records of earlier releases know nothing of it
        if self.positive_scales:
            made["positive_scales"] = True
        return {**found, **made, "calibration": self.calibrations[cell.calibration]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Plan:
        """The plan whose `asdict` this is."""
        return cls(**{**values, "texts": {name: Text(**text) for name, text in values["texts"].items()}})

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def name_sources(sources: Sequence[str], option: str) -> dict[str, str]:
    """Sources by a short name: a file's stem, or the hub id."""
    named: dict[str, str] = {}
    for source in sources:
        found = find_source(source)
        name = found.stem if isinstance(found, Path) else found
        if name in named:
            raise InputError(f"{option}: two texts are named {name}; rename one")
        named[name] = str(found)
    return named


def fetch_texts(sources: dict[str, str], folder: Path, limit: int | None) -> dict[str, Text]:
    """Copy every text into the folder; what came from the hub is not fetched again."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {}
    for name, source in sources.items():
        path = folder / f"{slug(name)}.txt"
        if Path(source).is_absolute() or not path.exists():
            draft = path.with_suffix(".part")
            draft.write_text(load_text(source, SPLITS.get(source, "test")), encoding="utf-8")
            draft.replace(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        texts[name] = Text(source, str(path), digest, limit or WINDOWS.get(source))
    return texts


@dataclass(frozen=True)
class Grid:
    """A method at a number of bits, of `PLANNED` their average, and a group size."""

    method: str
    bits: float
    group_size: int


def list_cells(grids: Sequence[Grid], calibrations: Sequence[str], seeds: int) -> list[Cell]:
    """One seed after another, so that an unfinished run shows a whole table."""
    for grid in grids:
        job_fields(grid.method)
    least = min(grids, key=lambda grid: (grid.bits, grid.group_size))
    first = [Cell(UNQUANTIZED), Cell(PROFILE, int(least.bits), least.group_size, 0, calibrations[0])]
    return first + [
        Cell(grid.method, grid.bits, grid.group_size, seed, calibration)
        for seed in range(seeds)
        for calibration in calibrations
        for grid in grids
    ]
