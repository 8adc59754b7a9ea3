"""All records of a comparison as the rows that people read: means, spreads, deltas."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from magr_gptq.app.comparing.cells import PROFILE, UNQUANTIZED, Cell, Record
from magr_gptq.app.comparing.methods import METHODS

# a method, its bits and its group size
Key = tuple[str, float, int]
PLAIN = "gptq"
PERPLEXITY, DIVERGENCE, ACCURACY = "perplexity", "divergence", "accuracy"


@dataclass(frozen=True)
class _Entry:
    """What one method made at one grid."""

    method: str
    bits: float
    group_size: int

    @property
    def label(self) -> str:
        """The method as people call it."""
        return METHODS[self.method].label

    @property
    def grid(self) -> str:
        """Bits and group size as people write them."""
        return grid_name(self.bits, self.group_size)


@dataclass(frozen=True)
class Row(_Entry):
    """A quantity of one method at one grid: `values` over the seeds.

    spread: standard deviation over the seeds, None for a single one.
    over: distance of the mean from the unquantized model's value. against: from plain GPTQ's.
    closed: share of plain GPTQ's distance that is gone, in percent; None where it grew, or was none.
    paper: what the paper reports. failed: seeds without a finite value.
    """

    values: tuple[float, ...]
    failed: int
    mean: float | None
    spread: float | None
    over: float | None
    against: float | None
    closed: float | None
    paper: float | None


@dataclass(frozen=True)
class Table:
    """One quantity on one text or task: the unquantized model's value, and the rows.

    quantity: of `PERPLEXITY`, `DIVERGENCE` and `ACCURACY`.
    """

    quantity: str
    name: str
    unquantized: float | None
    paper_unquantized: float | None
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Cost(_Entry):
    """Time and size of one method at one grid, means over the seeds; `layout` if all seeds agree."""

    quantize_seconds: float
    file_bytes: float
    tensor_bytes: float
    tokens_per_second: float
    peak_bytes: float
    layout: str | None


def grid_name(bits: float, group_size: int) -> str:
    """As people write it: W3, W3 g128, W2.5."""
    return f"W{bits:g}" if group_size == -1 else f"W{bits:g} g{group_size}"


Reference = Mapping[Key, Mapping[str, float | None]]


def perplexity_tables(records: Mapping[Cell, Record], paper: Reference) -> list[Table]:
    """One table a text."""
    return _tables(PERPLEXITY, records, paper, partial(_scored, PERPLEXITY))


def divergence_tables(records: Mapping[Cell, Record]) -> list[Table]:
    """One table a text: KL from the unquantized model's predictions, in nats a token."""
    return _tables(DIVERGENCE, records, {}, partial(_scored, DIVERGENCE))


def _scored(quantity: str, record: Record) -> dict[str, float | None]:
    """The quantity by text; records of earlier releases have no divergence."""
    return {text: found[quantity] for text, found in record["scores"].items() if quantity in found}


def accuracy_tables(records: Mapping[Cell, Record], paper: Reference) -> list[Table]:
    """One table a task, where any were asked for; a last one has the mean over the tasks."""

    def accuracies(record: Record) -> dict[str, float]:
        tasks = record.get("zero_shot", {}).get("tasks", {})
        found = {name: values["accuracy"] for name, values in tasks.items()}
        return found | ({"mean of the tasks": statistics.mean(found.values())} if len(found) > 1 else {})

    return _tables(ACCURACY, records, paper, accuracies)


def _tables(
    quantity: str, records: Mapping[Cell, Record], paper: Reference, read: Callable[[Record], Any]
) -> list[Table]:
    values: dict[str, dict[Key, list[float | None]]] = defaultdict(lambda: defaultdict(list))
    for cell, record in finished(records).items():
        for name, value in read(record).items():
            values[name][cell.method, cell.bits, cell.group_size].append(value)
    tables = []
    for name, found in values.items():
        unquantized = next(iter(found.pop((UNQUANTIZED, 16, -1), [])), None)
        means = {key: _mean(entries) for key, entries in found.items()}
        rows = []
        for key in sorted(found, key=_order):
            plain = means.get((PLAIN, *key[1:])) if key[0] != PLAIN else None
            rows.append(_row(key, found[key], unquantized, plain, paper.get(key, {}).get(name)))
        published = paper.get((UNQUANTIZED, 16, -1), {}).get(name)
        tables.append(Table(quantity, name, unquantized, published, tuple(rows)))
    return tables


def _row(
    key: Key,
    entries: list[float | None],
    unquantized: float | None,
    plain: float | None,
    paper: float | None,
) -> Row:
    values = tuple(value for value in entries if value is not None)
    mean = _mean(entries)
    over = None if mean is None or unquantized is None else mean - unquantized
    against = None if mean is None or plain is None else mean - plain
    lost = None if plain is None or unquantized is None else plain - unquantized
    closed = None if against is None or not lost else -100 * against / lost
    return Row(
        *key, values, len(entries) - len(values), mean,
        statistics.stdev(values) if len(values) > 1 else None, over, against,
        closed if closed is not None and closed >= 0 else None, paper,
    )  # fmt: skip


def _mean(entries: list[float | None]) -> float | None:
    values = [value for value in entries if value is not None]
    return statistics.mean(values) if values else None


def _order(key: Key) -> tuple[float, int, int]:
    method, bits, group_size = key
    return -bits, -1 if group_size == -1 else 10**6 - group_size, list(METHODS).index(method)


def costs(records: Mapping[Cell, Record]) -> list[Cost]:
    """One entry a method and grid."""
    found: dict[Key, list[Record]] = defaultdict(list)
    for cell, record in finished(records).items():
        if cell.method != UNQUANTIZED:
            found[cell.method, cell.bits, cell.group_size].append(record)
    return [_cost(key, found[key]) for key in sorted(found, key=_order)]


def _cost(key: Key, records: list[Record]) -> Cost:
    def mean(read: Any) -> float:
        return float(statistics.mean(read(record) for record in records))

    layouts = {record["checkpoint"]["layout"] for record in records}
    return Cost(
        *key,
        quantize_seconds=mean(lambda r: r["quantize_seconds"]),
        file_bytes=mean(lambda r: r["checkpoint"]["file_bytes"]),
        tensor_bytes=mean(lambda r: r["checkpoint"]["tensor_bytes"]),
        tokens_per_second=mean(lambda r: r["inference"]["tokens_per_second"]),
        peak_bytes=mean(lambda r: r["inference"]["peak_bytes"]),
        layout=layouts.pop() if len(layouts) == 1 else None,
    )


def layer_errors(records: Mapping[Cell, Record]) -> dict[tuple[float, int], dict[str, dict[str, float]]]:
    """Relative output error by grid, method and layer, of the first seed that there is."""
    found: dict[tuple[float, int], dict[str, dict[str, float]]] = defaultdict(dict)
    for cell, record in sorted(finished(records).items(), key=lambda entry: entry[0].seed):
        if cell.method != UNQUANTIZED:
            found[cell.bits, cell.group_size].setdefault(cell.method, record["layer_errors"])
    return dict(found)


def profile_of(records: Mapping[Cell, Record]) -> tuple[Cell, Record] | None:
    """The unquantized layers' record, if it is there."""
    for cell, record in records.items():
        if cell.method == PROFILE and "error" not in record:
            return cell, record
    return None


def finished(records: Mapping[Cell, Record]) -> dict[Cell, Record]:
    """The records of models that were scored."""
    return {c: r for c, r in records.items() if "error" not in r and c.method != PROFILE}


def failures(records: Mapping[Cell, Record]) -> dict[Cell, str]:
    """The error of every cell that failed."""
    return {cell: record["error"] for cell, record in records.items() if "error" in record}


def warnings(records: Mapping[Cell, Record]) -> dict[Cell, str]:
    """What the quantizing engine warned of, by cell."""
    return {cell: record["warning"] for cell, record in records.items() if record.get("warning")}


def beginnings(records: Mapping[Cell, Record]) -> list[str]:
    """What scored windows begin with, each once; records of earlier releases don't tell."""
    scores = [score for record in finished(records).values() for score in record["scores"].values()]
    return sorted({score["beginning"] for score in scores if "beginning" in score})


def overlaps(records: Mapping[Cell, Record]) -> list[str]:
    """What to tell of calibration windows that repeat much of their text, each once."""
    return sorted({record["overlap"] for record in records.values() if record.get("overlap")})


def versions(records: Iterable[Record]) -> dict[str, list[str]]:
    """Every version that a record names, by package."""
    found: dict[str, set[str]] = defaultdict(set)
    for record in records:
        scores = [score.get("versions", {}) for score in record.get("scores", {}).values()]
        for named in [record.get("versions", {}), record.get("zero_shot", {}).get("versions", {}), *scores]:
            for name, version in named.items():
                found[name].add(version)
    return {name: sorted(found[name]) for name in sorted(found)}
