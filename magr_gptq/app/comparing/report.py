"""The report: one HTML file that asks nothing of the network, with CSV, Markdown, JSON and figures."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from magr_gptq.app.comparing import by_size, figures, formats, table
from magr_gptq.app.comparing.cells import Cell, Record, finite, write_atomically
from magr_gptq.app.comparing.figures import Drawing
from magr_gptq.app.comparing.results import (
    PLAIN,
    Cost,
    Reference,
    Row,
    Table,
    accuracy_tables,
    costs,
    divergence_tables,
    failures,
    layer_errors,
    perplexity_tables,
    profile_of,
    versions,
    warnings,
)
from magr_gptq.app.comparing.verdict import Verdict, judge, pairs

FILES = ("report.html", "results.json", "results.csv", "results.md")
ROLES = {figures.INK: "ink", figures.MUTED: "muted", figures.LINE: "line"} | {
    colour: f"m-{name.replace('+', '-')}" for name, colour in figures.COLOURS.items()
}


@dataclass(frozen=True)
class Facts:
    """What a report says about the run as a whole.

    missing: how many cells have no record yet. ranks: the paper's fraction ranks, where known.
    """

    model: str
    command: str
    settings: dict[str, str]
    missing: int
    paper: Reference
    ranks: Mapping[str, float] | None


def write_report(folder: Path, records: Mapping[Cell, Record], facts: Facts) -> Verdict:
    """Write every file of the report into the folder; the verdict."""
    perplexity, accuracy = perplexity_tables(records, facts.paper), accuracy_tables(records, facts.paper)
    divergence = divergence_tables(records)
    verdict = judge(perplexity, divergence)
    panels = {entry: figures.draw_scores(entry) for entry in (*perplexity, *divergence)}
    for entry in divergence:
        panels[entry] += by_size.draw(entry, costs(records))
    magnitudes = _magnitudes(records)
    errors = [figures.draw_layer_errors(grid, found) for grid, found in _lowest_last(records)]
    figures.save_all([*chain(*panels.values()), *magnitudes, *errors], folder / "figures")
    quantities = [*perplexity, *divergence, *accuracy]
    write_atomically(folder / "results.csv", table.comma_separated(quantities))
    write_atomically(folder / "results.md", _markdown(verdict, facts, perplexity, divergence, accuracy))
    write_atomically(folder / "results.json", _json(verdict, quantities, records, facts))
    page = _page(
        facts=facts, verdict=verdict, pairs=pairs(perplexity[:1]), scores=[perplexity, divergence],
        divergences={pair.magr.grid: pair for pair in pairs(divergence[:1])},
        accuracy=accuracy, panels=panels, magnitudes=magnitudes, errors=errors, costs=costs(records),
        profile=profile_of(records), failures=failures(records), warnings=warnings(records),
        versions=versions(records.values()), seeds=_seeds(records),
    )  # fmt: skip
    write_atomically(folder / "report.html", page)
    return verdict


def _magnitudes(records: Mapping[Cell, Record]) -> list[Drawing]:
    found = profile_of(records)
    layers = found[1]["magnitudes"] if found else {}
    return [figures.draw_magnitudes(layer, values) for layer, values in layers.items()]


def _lowest_last(
    records: Mapping[Cell, Record],
) -> list[tuple[tuple[float, int], dict[str, dict[str, float]]]]:
    return sorted(layer_errors(records).items(), key=lambda entry: (-entry[0][0], entry[0][1]))


def _seeds(records: Mapping[Cell, Record]) -> int:
    return len({cell.seed for cell in records})


def _markdown(verdict: Verdict, facts: Facts, *quantities: Sequence[Table]) -> str:
    begins = [f"Windows are {facts.settings['windows']}.\n"] if "windows" in facts.settings else []
    begins += [f"{facts.settings['overlap']}.\n"] if "overlap" in facts.settings else []
    tables = (table.markdown(tables) for tables in quantities if tables)
    return "\n".join([f"**{verdict.sentence}**\n", *begins, *tables])


def _json(verdict: Verdict, tables: Sequence[Table], records: Mapping[Cell, Record], facts: Facts) -> str:
    content = {
        "verdict": asdict(verdict),
        "model": facts.model,
        "command": facts.command,
        "settings": facts.settings,
        "versions": versions(records.values()),
        "tables": [asdict(entry) for entry in tables],
        "costs": [asdict(entry) for entry in costs(records)],
        "cells": {cell.name: record for cell, record in records.items()},
    }
    return json.dumps(finite(content), indent=1, allow_nan=False) + "\n"


def _page(**values: Any) -> str:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "decimal": formats.decimal, "signed": formats.signed, "percent": formats.percent,
        "size": formats.size, "duration": formats.duration, "inline": _inline,
        "by_grid": _by_grid, "same_cell": _same_cell,
    }  # fmt: skip
    environment.globals |= {
        "headings": table.headings,
        "entries": table.entries,
        "same_layout": _same_layout,
        "best": _best,
    }
    source = (files("magr_gptq.app.comparing") / "report.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(source).render(**values)


def _inline(drawing: Drawing) -> Markup:
    """The drawing as an SVG element in the page's own colours, with ids of its own."""
    svg = drawing.svg()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{drawing.name}-", svg)
    for colour, role in ROLES.items():
        svg = svg.replace(colour, f"var(--{role})")
    label = Markup('<svg role="img" aria-label="{}" ').format(drawing.description)
    return label + Markup(svg.removeprefix("<svg"))


def _same_layout(found: Sequence[Cost]) -> bool | None:
    """Whether all checkpoints have plain GPTQ's tensors at the same grid; None if none can be compared."""
    plain = {cost.grid: cost.layout for cost in found if cost.method == PLAIN}
    others = [cost for cost in found if cost.method != PLAIN and cost.grid in plain]
    if not others:
        return None
    return all(cost.layout is not None and cost.layout == plain[cost.grid] for cost in others)


def _by_grid(rows: Sequence[Any]) -> list[tuple[str, list[Any]]]:
    """Neighbouring rows of the same grid together."""
    return [(grid, list(found)) for grid, found in groupby(rows, key=lambda row: row.grid)]


def _same_cell(tables: Sequence[Table], wanted: Row) -> list[Row]:
    """The rows of the same method and grid in every table; each task was run on every checkpoint."""
    key = (wanted.method, wanted.grid)
    return [row for entry in tables for row in entry.rows if (row.method, row.grid) == key]


def _best(rows: Sequence[Row]) -> float | None:
    """The lowest mean."""
    return min((row.mean for row in rows if row.mean is not None), default=None)
