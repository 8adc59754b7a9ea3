"""The answer in a few sentences: should MagR be on for this model?

It follows the divergence from the unquantized model where that was measured, and perplexity elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from magr_gptq.app.comparing.formats import percent
from magr_gptq.app.comparing.results import DIVERGENCE, PERPLEXITY, PLAIN, Row, Table
from magr_gptq.app.comparing.table import shown_by

# the first of them that was measured speaks for MagR
JUDGED = ("magr", "paper")
WORDS = {PERPLEXITY: "perplexity", DIVERGENCE: "divergence from the unquantized model"}


@dataclass(frozen=True)
class Verdict:
    """kind: better, same, mixed, worse or unknown."""

    kind: str
    sentence: str


@dataclass(frozen=True)
class Pair:
    """MagR and plain GPTQ at one grid, by one quantity on one text; less of it is better."""

    quantity: str
    text: str
    magr: Row
    plain: Row

    @property
    def gain(self) -> float:
        """By how much the quantity falls; infinite where plain GPTQ has no finite value."""
        if self.magr.mean is None:
            return -math.inf
        return math.inf if self.plain.mean is None else self.plain.mean - self.magr.mean

    @property
    def sign(self) -> int:
        """1 better, -1 worse, 0 within the spread over the seeds."""
        noise = math.hypot(self.magr.spread or 0.0, self.plain.spread or 0.0)
        return 0 if abs(self.gain) <= noise else (1 if self.gain > 0 else -1)

    @property
    def place(self) -> str:
        """Where, as people say it."""
        return f"{self.magr.grid} on {self.text}"

    @property
    def change(self) -> str:
        """Both values."""
        shown = shown_by(self.quantity)
        return f"{shown(self.plain.mean)} → {shown(self.magr.mean)}"


def judge(perplexity: Sequence[Table], divergence: Sequence[Table] = ()) -> Verdict:
    """Compare MagR with plain GPTQ wherever both were measured."""
    others = pairs(perplexity)
    found = pairs(divergence) or others
    if not found:
        return Verdict(
            "unknown", "No verdict: it takes a finished cell of gptq and one of magr at the same bits."
        )
    better = [pair for pair in found if pair.sign > 0]
    worse = [pair for pair in found if pair.sign < 0]
    sentences = [
        f"{_opening(found, better, worse)}{_example(better, worse)}.",
        _other_view(found, others),
        _caution(found),
    ]
    return Verdict(_kind(better, worse), " ".join(filter(None, sentences)))


def pairs(tables: Sequence[Table]) -> list[Pair]:
    """Every pair of rows, MagR's and plain GPTQ's, at the same grid."""
    methods = {row.method for table in tables for row in table.rows}
    judged = next((name for name in JUDGED if name in methods), None)
    found = []
    for table in tables:
        plain = {row.grid: row for row in table.rows if row.method == PLAIN}
        for row in table.rows:
            if row.method == judged and row.grid in plain and (row.values or plain[row.grid].values):
                found.append(Pair(table.quantity, table.name, row, plain[row.grid]))
    return found


def _kind(better: list[Pair], worse: list[Pair]) -> str:
    if better and worse:
        return "mixed"
    if better or worse:
        return "better" if better else "worse"
    return "same"


def _opening(found: list[Pair], better: list[Pair], worse: list[Pair]) -> str:
    total = f"{len(found)} comparison{'s' if len(found) > 1 else ''} with plain GPTQ"
    words = WORDS[found[0].quantity]
    lowers, raises = f"lowers {words} in {len(better)} of {total}", f"raises it in {len(worse) or 'none'}"
    if better and worse:
        return f"Mixed: MagR {lowers}, and {raises}"
    if better:
        return f"Turn MagR on: it {lowers}, and {raises}"
    if worse:
        return f"Leave MagR off: it raises {words} in {len(worse)} of {total}, and lowers it in none"
    return f"MagR makes no difference beyond the spread over seeds in {total}"


def _example(better: list[Pair], worse: list[Pair]) -> str:
    """The largest change, with its numbers."""
    if not better and not worse:
        return ""
    shown = max(better, key=lambda pair: pair.gain) if better else min(worse, key=lambda pair: pair.gain)
    closed = shown.magr.closed
    share = f", {percent(closed)} of what GPTQ loses" if closed is not None and closed > 0 else ""
    return f"; most at {shown.place}: {shown.change}{share}"


def _other_view(found: list[Pair], others: list[Pair]) -> str:
    """What perplexity says where divergence is followed."""
    if not others or found[0].quantity == PERPLEXITY:
        return ""
    signs = {pair.place: pair.sign for pair in found}
    opposed = [pair for pair in others if pair.sign * signs.get(pair.place, 0) < 0]
    if not opposed:
        return f"Perplexity falls in {sum(pair.sign > 0 for pair in others)} of {len(others)}."
    more = f", and in {len(opposed) - 1} more" if len(opposed) > 1 else ""
    return (
        f"Perplexity says the opposite at {opposed[0].place} ({opposed[0].change}){more}. The verdict "
        "follows the divergence: an error can lower perplexity where the unquantized model is itself wrong."
    )


def _caution(found: list[Pair]) -> str:
    if any(len(pair.magr.values) < 2 or len(pair.plain.values) < 2 for pair in found):
        return "With a single calibration seed, small differences may be chance."
    return ""
