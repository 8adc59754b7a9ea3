"""Cells: what is measured once, and the folder that keeps one JSON file of each."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from magr_gptq.errors import InputError
from magr_score.windows import STREAM

UNQUANTIZED, PROFILE = "unquantized", "profile"
Record = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One measurement: of a checkpoint, of the unquantized model, or of the model's own layers.

    method: a key of `METHODS`, `UNQUANTIZED` or `PROFILE`. bits: of `PLANNED`, those of a weight on average.
    calibration: the name of the text that the windows are drawn from; empty for `UNQUANTIZED`.
    """

    method: str
    bits: float = 16
    group_size: int = -1
    seed: int = 0
    calibration: str = ""

    @property
    def name(self) -> str:
        """Of its file, without the suffix."""
        if self.method == UNQUANTIZED:
            return UNQUANTIZED
        group = "" if self.group_size == -1 else f"-g{self.group_size}"
        return f"{self.method}-w{self.bits:g}{group}-{slug(self.calibration)}-seed{self.seed}"


def slug(name: str) -> str:
    """The name with nothing in it that a file name could not hold."""
    return re.sub(r"[^\w.+-]+", "-", name)


class Store:
    """The records of a folder. A record has `cell`, `settings`, and either results or `error`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, cell: Cell) -> Path:
        """Of the cell's record."""
        return self.folder / f"{cell.name}.json"

    def load(self, cell: Cell) -> Record | None:
        """The cell's record, None where there is none."""
        path = self.path(cell)
        if not path.exists():
            return None
        try:
            record: Record = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path} is not a record of a comparison: {error}; remove it") from error
        return record

    def finished(self, cell: Cell, settings: Record) -> bool:
        """Whether the cell has results; InputError where they were made with other settings."""
        record = self.load(cell)
        if record is None or "error" in record:
            return False
        # records without it are of releases that knew nothing else
        made = {"cut": STREAM, **record["settings"]}
        differing = [key for key in settings if made.get(key) != settings[key]]
        if differing:
            key = differing[0]
            raise InputError(
                f"{self.path(cell)} was made with {key} = {made.get(key)!r}, now it is "
                f"{settings[key]!r}; name another --out, or redo every cell with --force"
            )
        return True

    def save(self, cell: Cell, settings: Record, results: Record) -> Record:
        """Write the cell's record, whole or not at all."""
        record = {"cell": asdict(cell), "settings": settings, **finite(results)}
        write_atomically(self.path(cell), json.dumps(record, indent=1, allow_nan=False) + "\n")
        return record

    def load_all(self, cells: Iterable[Cell]) -> dict[Cell, Record]:
        """The records that there are, in the order of the cells."""
        found = {cell: self.load(cell) for cell in cells}
        return {cell: record for cell, record in found.items() if record is not None}


def write_atomically(path: Path, text: str) -> None:
    """Readers see the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def finite(value: Any) -> Any:
    """The value with None for every NaN and infinity, which JSON lacks."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
