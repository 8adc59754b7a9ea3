"""Few rows of settings in which every three of them meet: errors seldom need four settings to show."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

Row = tuple[Any, ...]


def covering(*choices: Sequence[Any], strength: int = 3) -> list[Row]:
    """Of all rows those that have every combination of `strength` settings, found greedily."""
    rows = list(itertools.product(*choices))
    places = list(itertools.combinations(range(len(choices)), strength))

    def met(row: Row) -> set[tuple[Row, Row]]:
        return {(at, tuple(row[place] for place in at)) for at in places}

    missing, found = set().union(*map(met, rows)), []
    while missing:
        best = max(rows, key=lambda row: len(met(row) & missing))
        found.append(best)
        missing -= met(best)
    return found
