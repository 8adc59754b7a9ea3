"""Recipes: a published experiment as a JSON file, with the numbers that were published.

    {"title": …, "model": …, "sym": false, "samples": 128, "seqlen": 2048,
     "runs": [{"calibration": "wikitext2", "evaluate": ["wikitext2"]}],
     "cut": "stream", "tasks": ["arc_easy"],
     "cells": [{"method": "paper", "bits": 2, "group_size": 128, "published": {"wikitext2": 9.94}}],
     "fraction_rank": {"min": 0.1, "q25": …, "mean": …, "q75": …, "max": …},
     "notes": ["…"]}

A cell's method is one of `METHODS` or `unquantized`; `published` has numbers by text or task, null
for one that the paper reports as not finite. `cut` is of `magr_score.windows.CUTS`. `cut`, `tasks`,
`fraction_rank` and `notes` may be left out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from magr_gptq.app.comparing.cells import UNQUANTIZED
from magr_gptq.app.comparing.methods import METHODS
from magr_gptq.app.comparing.plan import Grid
from magr_gptq.app.comparing.results import Key, Reference
from magr_gptq.errors import InputError
from magr_score.windows import CUTS, TOKENIZER

RANKS = ("min", "q25", "mean", "q75", "max")
BITS = (2, 3, 4, 8, 16)


@dataclass(frozen=True)
class Recipe:
    """What a recipe's file says; `evaluate` has the names of texts by calibration."""

    title: str
    model: str
    sym: bool
    samples: int
    seqlen: int
    evaluate: dict[str, list[str]]
    grids: list[Grid]
    published: Reference
    cut: str = TOKENIZER
    tasks: list[str] = field(default_factory=list)
    ranks: dict[str, float] | None = None
    notes: list[str] = field(default_factory=list)


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        InputError: the file cannot be read, or something in it is missing, unknown or of the wrong kind.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"the recipe {path} cannot be read: {error}") from error
    return _Reader(str(path)).recipe(values)


class _Reader:
    """Checks one file; every message names it and the place in it."""

    def __init__(self, path: str) -> None:
        self._path = path

    def recipe(self, values: Any) -> Recipe:
        """The recipe that the file's values describe; InputError where they don't."""
        needed = {
            "title": str,
            "model": str,
            "sym": bool,
            "samples": int,
            "seqlen": int,
            "runs": list,
            "cells": list,
        }
        optional = {"cut": str, "tasks": list, "fraction_rank": dict, "notes": list}
        self._keys("the recipe", values, needed, optional)
        if (cut := values.get("cut", TOKENIZER)) not in CUTS:
            self._refuse("the recipe", f"has cut = {cut!r}, not one of {', '.join(CUTS)}")
        evaluate = self._runs(values["runs"])
        tasks = self._names("tasks", values.get("tasks", []))
        known = {name for names in evaluate.values() for name in names} | set(tasks)
        cells: dict[Key, dict[str, float | None]] = {}
        for number, cell in enumerate(values["cells"]):
            key, published = self._cell(f"cells[{number}]", cell, known)
            if key in cells:
                self._refuse(f"cells[{number}]", f"repeats {' '.join(map(str, key))}")
            cells[key] = published
        grids = [Grid(*key) for key in cells if key[0] != UNQUANTIZED]
        if not grids:
            self._refuse("cells", "has nothing to quantize")
        return Recipe(
            **{key: values[key] for key in ("title", "model", "sym", "samples", "seqlen")},
            evaluate=evaluate, grids=grids, published=cells, cut=cut, tasks=tasks,
            ranks=self._ranks(values.get("fraction_rank")),
            notes=self._names("notes", values.get("notes", [])),
        )  # fmt: skip

    def _runs(self, runs: list[Any]) -> dict[str, list[str]]:
        evaluate: dict[str, list[str]] = {}
        for number, run in enumerate(runs):
            place = f"runs[{number}]"
            self._keys(place, run, {"calibration": str, "evaluate": list})
            texts = self._names(f"{place}.evaluate", run["evaluate"])
            scored = {name for names in evaluate.values() for name in names}
            if run["calibration"] in evaluate or scored & set(texts):
                self._refuse(place, "repeats a calibration, or a text that another run evaluates")
            evaluate[run["calibration"]] = texts
        if not evaluate or not all(evaluate.values()):
            self._refuse("runs", "needs a run, and every run a text to evaluate")
        return evaluate

    def _cell(self, place: str, cell: Any, known: set[str]) -> tuple[Key, dict[str, float | None]]:
        self._keys(place, cell, {"method": str, "bits": int, "group_size": int, "published": dict})
        if cell["method"] not in (*METHODS, UNQUANTIZED):
            self._refuse(place, f"has the method {cell['method']!r}, not one of {', '.join(METHODS)}")
        if cell["bits"] not in BITS or (cell["bits"] == 16) != (cell["method"] == UNQUANTIZED):
            self._refuse(place, f"has {cell['bits']} bits")
        if cell["group_size"] != -1 and cell["group_size"] < 1:
            self._refuse(place, f"has the group size {cell['group_size']}")
        for name, value in cell["published"].items():
            if name not in known:
                self._refuse(f"{place}.published", f"has {name!r}, which no run evaluates")
            if value is not None and not (_is_number(value) and value > 0):
                self._refuse(f"{place}.published", f"has {name} = {value!r}, not a positive number or null")
        return (cell["method"], cell["bits"], cell["group_size"]), cell["published"]

    def _ranks(self, ranks: Any) -> dict[str, float] | None:
        if ranks is None:
            return None
        self._keys("fraction_rank", ranks, dict.fromkeys(RANKS, (int, float)))
        found: dict[str, float] = ranks
        return found

    def _names(self, place: str, names: Any) -> list[str]:
        if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
            self._refuse(place, f"is {names!r}, not a list of strings")
        found: list[str] = names
        return found

    def _keys(
        self, place: str, values: Any, needed: dict[str, Any], more: dict[str, Any] | None = None
    ) -> None:
        """An object with these keys, each of its type, and no others."""
        if not isinstance(values, dict):
            self._refuse(place, f"is {values!r}, not an object")
        allowed = needed | (more or {})
        for key in needed:
            if key not in values:
                self._refuse(place, f"lacks {key!r}")
        for key, value in values.items():
            if key not in allowed:
                self._refuse(place, f"has the unknown key {key!r}; known are {', '.join(allowed)}")
            # True is an int to Python
            if not isinstance(value, allowed[key]) or (isinstance(value, bool) and allowed[key] is not bool):
                self._refuse(place, f"has {key} = {value!r}, of the wrong kind")

    def _refuse(self, place: str, problem: str) -> NoReturn:
        raise InputError(f"{self._path}: {place} {problem}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
