"""docs/runtimes-seen.md, made of the records; and which cells are neither as plain GPTQ's nor explained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools.runtimes.consumers import COMPRESSED, CONSUMERS, GPTQ, Consumer

# the default's may be so many times plain GPTQ's
ALLOWED = 3
# nats: arithmetic in 16 bits gives less than a thousandth, a wrong zero point or order far more
WRONG = 0.01

Record = dict[str, Any]

HEADINGS = {
    "w4": "W4",
    "w4-asymmetric": "W4 asymmetric",
    "w4-desc-act": "W4 desc_act",
    "w4-channel": "W4 per channel",
    "w3": "W3",
    "w2": "W2",
    "w8": "W8",
    "ct-w4": "W4",
    "ct-w4-asymmetric": "W4 asymmetric",
    "ct-w3": "W3",
    "ct-w2": "W2",
    "ct-w8": "W8",
}

HEAD = Path(__file__).with_name("head.md")


def page(records: dict[str, Record]) -> str:
    """The page, in Markdown."""
    parts = [HEAD.read_text(encoding="utf-8")]
    for title, kinds in (("GPTQ", GPTQ), ("compressed-tensors", COMPRESSED)):
        rows = [
            name for name, consumer in CONSUMERS.items() if consumer.kinds == kinds and _seen(records, name)
        ]
        parts.append(f"## {title}\n\n" + "\n".join(_table(rows, kinds, records)) + "\n")
    parts.append("## Faults of the consumers\n\n" + "\n".join(_faults(records)) + "\n")
    parts.append("## Not run\n\n" + "\n".join(_not_run(records)) + "\n")
    return "\n".join(parts)


def failures(consumer: Consumer, record: Record) -> list[str]:
    """A line for every cell that is worse than it may be and has no named fault, or has one needlessly."""
    if consumer.skipped or "unavailable" in record:
        return []
    return [
        f"{record.get('consumer', 'never run')}: {kind}: {what}"
        for kind in consumer.kinds
        if (what := _failure(consumer, record, kind))
    ]


def _failure(consumer: Consumer, record: Record, kind: str) -> str:
    plain, default = _pair(record, kind)
    if not plain or not default:
        return "not measured"
    if kind in consumer.faults:
        return "its named fault was not seen" if _alike(plain, default) else ""
    return "" if _alike(plain, default) else f"plain GPTQ {_said(plain)}, the default {_said(default)}"


def _pair(record: Record, kind: str) -> tuple[Record, Record]:
    cells = record.get("cells", {})
    return cells.get(f"plain-{kind}", {}), cells.get(f"default-{kind}", {})


def _alike(plain: Record, default: Record) -> bool:
    """Whether both are read rightly, and the default as well as plain GPTQ."""
    if "error" in plain or "error" in default:
        return False
    return plain["divergence"] < WRONG and default["divergence"] <= ALLOWED * plain["divergence"]


def _said(cell: Record) -> str:
    return cell["error"] if "error" in cell else f"{cell['divergence']:.1e}"


def _seen(records: dict[str, Record], name: str) -> bool:
    return bool(records[name].get("cells"))


def _table(names: list[str], kinds: tuple[str, ...], records: dict[str, Record]) -> Iterator[str]:
    headings = [HEADINGS[kind] for kind in kinds]
    yield f"| consumer | releases | {' | '.join(headings)} | seen |"
    yield "|---" * (len(kinds) + 3) + "|"
    for name in names:
        record = records[name]
        releases = ", ".join(" ".join(pair) for pair in record["versions"].items())
        cells = [_cell(CONSUMERS[name], record, kind) for kind in kinds]
        yield f"| {name} | {releases} | {' | '.join(cells)} | {record['date']} |"


def _cell(consumer: Consumer, record: Record, kind: str) -> str:
    plain, default = _pair(record, kind)
    if not plain or not default:
        return "not measured"
    if "error" in plain and "error" in default:
        return "refused"
    shown = " / ".join(
        "error" if "error" in cell else f"{cell['divergence']:.1e}" for cell in (plain, default)
    )
    return f"**{shown}**" if kind in consumer.faults else shown


def _faults(records: dict[str, Record]) -> Iterator[str]:
    for name, consumer in CONSUMERS.items():
        causes: dict[str, list[str]] = {}
        for kind, cause in consumer.faults.items():
            causes.setdefault(cause, []).append(HEADINGS[kind])
        if causes and _seen(records, name):
            yield f"- **{name}.** " + " ".join(f"{', '.join(at)}: {cause}." for cause, at in causes.items())


def _not_run(records: dict[str, Record]) -> Iterator[str]:
    for name, consumer in CONSUMERS.items():
        if consumer.skipped:
            yield f"- **{name}**, {consumer.pins[-1].replace('==', ' ')}: {consumer.skipped}."
        elif "unavailable" in records[name]:
            yield f"- **{name}**, {', '.join(consumer.pins)}: {records[name]['unavailable']}"
        elif not _seen(records, name):
            yield f"- **{name}**: `make test-runtimes CONSUMERS={name}` has not been run to its end yet."
