"""The answer in one sentence: should MagR be on for this model?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from magr_gptq.app.comparing.formats import decimal, percent
from magr_gptq.app.comparing.results import PLAIN, Row, Table

# the first of them that was measured speaks for MagR
JUDGED = ("magr", "paper")


@dataclass(frozen=True)
class Verdict:
    """kind: better, same, mixed, worse or unknown."""

    kind: str
    sentence: str


@dataclass(frozen=True)
class Comparison:
    """MagR beside plain GPTQ at one grid, on one text."""

    text: str
    magr: Row
    plain: Row

    @property
    def gain(self) -> float:
        """By how much the perplexity falls; infinite where plain GPTQ's is no number."""
        if self.magr.mean is None:
            return -math.inf
        return math.inf if self.plain.mean is None else self.plain.mean - self.magr.mean

    @property
    def sign(self) -> int:
        """1 better, -1 worse, 0 within the spread over the seeds."""
        noise = math.hypot(self.magr.spread or 0.0, self.plain.spread or 0.0)
        return 0 if abs(self.gain) <= noise else (1 if self.gain > 0 else -1)


def judge(tables: Sequence[Table]) -> Verdict:
    """Compare MagR with plain GPTQ wherever both were measured."""
    found = comparisons(tables)
    if not found:
        return Verdict(
            "unknown", "No verdict: it takes a finished cell of gptq and one of magr at the same bits."
        )
    better = [c for c in found if c.sign > 0]
    worse = [c for c in found if c.sign < 0]
    return Verdict(
        _kind(better, worse), f"{_opening(found, better, worse)}{_example(better, worse)}{_caution(found)}"
    )


def comparisons(tables: Sequence[Table]) -> list[Comparison]:
    """Every pair of rows, MagR's and plain GPTQ's, at the same grid."""
    methods = {row.method for table in tables for row in table.rows}
    judged = next((name for name in JUDGED if name in methods), None)
    found = []
    for table in tables:
        plain = {row.grid: row for row in table.rows if row.method == PLAIN}
        for row in table.rows:
            if row.method == judged and row.grid in plain and (row.values or plain[row.grid].values):
                found.append(Comparison(table.name, row, plain[row.grid]))
    return found


def _kind(better: list[Comparison], worse: list[Comparison]) -> str:
    if better and worse:
        return "mixed"
    if better or worse:
        return "better" if better else "worse"
    return "same"


def _opening(found: list[Comparison], better: list[Comparison], worse: list[Comparison]) -> str:
    total = f"{len(found)} comparison{'s' if len(found) > 1 else ''} with plain GPTQ"
    lowers, raises = f"lowers perplexity in {len(better)} of {total}", f"raises it in {len(worse) or 'none'}"
    if better and worse:
        return f"Mixed: MagR {lowers}, and {raises}"
    if better:
        return f"Turn MagR on: it {lowers}, and {raises}"
    if worse:
        return f"Leave MagR off: it raises perplexity in {len(worse)} of {total}, and lowers it in none"
    return f"MagR makes no difference beyond the spread over seeds in {total}"


def _example(better: list[Comparison], worse: list[Comparison]) -> str:
    """The largest change, with its numbers."""
    if not better and not worse:
        return ""
    shown = max(better, key=lambda c: c.gain) if better else min(worse, key=lambda c: c.gain)
    closed = shown.magr.closed
    share = f", {percent(closed)} of what GPTQ loses" if closed is not None and closed > 0 else ""
    change = f"{decimal(shown.plain.mean)} → {decimal(shown.magr.mean)}"
    return f"; most at {shown.magr.grid} on {shown.text}: {change}{share}"


def _caution(found: list[Comparison]) -> str:
    if any(len(c.magr.values) < 2 or len(c.plain.values) < 2 for c in found):
        return ". With a single calibration seed, small differences may be chance."
    return "."
