"""Means, spreads, deltas and the verdict, on numbers that are easy to check by hand."""

from __future__ import annotations

import csv
from io import StringIO

import pytest
from comparisons import cell, comparison, scored

from magr_gptq.app.comparing import table
from magr_gptq.app.comparing.cells import UNQUANTIZED, Cell
from magr_gptq.app.comparing.formats import decimal, duration, signed, size
from magr_gptq.app.comparing.results import (
    accuracy_tables,
    costs,
    divergence_tables,
    failures,
    layer_errors,
    perplexity_tables,
    versions,
)
from magr_gptq.app.comparing.verdict import judge

pytestmark = pytest.mark.environments("modern")

PUBLISHED = {(UNQUANTIZED, 16, -1): {"prose": 5.47}, ("paper", 2, -1): {"prose": 16.73}}


def test_rows_by_hand() -> None:
    (found,) = perplexity_tables(comparison(), PUBLISHED)
    assert (found.name, found.unquantized, found.paper_unquantized) == ("prose", 20.0, 5.47)
    grids = [(row.grid, row.method) for row in found.rows]
    assert grids[:5] == [("W4", "rtn"), ("W4", "gptq"), ("W4", "paper"), ("W4", "magr"), ("W3", "rtn")]
    row = found.rows[-1]
    # 26, 26.1 and 26.2 against 36, 36.1 and 36.2
    assert (row.mean, row.spread) == (pytest.approx(26.1), pytest.approx(0.1))
    assert (row.over, row.against) == (pytest.approx(6.1), pytest.approx(-10.0))
    assert row.closed == pytest.approx(100 * 10 / 16.1)
    assert found.rows[-2].paper == 16.73
    # rounding to nearest closes no gap, it opens one
    assert found.rows[-4].closed is None
    assert found.rows[-3].against is None


def test_what_is_not_finite_is_counted_and_not_averaged() -> None:
    records = comparison(bits=(2,), seeds=2)
    records[cell("gptq", 2, seed=1)] = scored(None)
    (found,) = perplexity_tables(records, {})
    row = next(row for row in found.rows if row.method == "gptq")
    assert (row.mean, row.spread, row.failed) == (36.0, None, 1)
    assert table.entries(found, row)[0] == "36.00 (1 not finite)"


def test_failed_cells_stand_apart() -> None:
    records = comparison(bits=(2,), seeds=1)
    records[cell("gptq", 2)] = {"error": "no memory"}
    assert failures(records) == {cell("gptq", 2): "no memory"}
    (found,) = perplexity_tables(records, {})
    assert [row.method for row in found.rows] == ["rtn", "paper", "magr"]
    assert all(row.against is None for row in found.rows)


def test_accuracy_and_its_mean_over_tasks() -> None:
    tasks = {
        "tasks": {"arc_easy": {"accuracy": 60.0}, "piqa": {"accuracy": 70.0}},
        "versions": {"lm-eval": "0.4"},
    }
    records = {
        Cell(UNQUANTIZED): scored(20.0, zero_shot=tasks),
        cell("gptq", 2): scored(30.0, zero_shot=tasks),
    }
    found = {entry.name: entry.rows[0].mean for entry in accuracy_tables(records, {})}
    assert found == {"arc_easy": 60.0, "piqa": 70.0, "mean of the tasks": 65.0}
    assert accuracy_tables(comparison(), {}) == []
    assert versions(records.values())["lm-eval"] == ["0.4"]


def test_costs_and_errors_are_per_grid() -> None:
    records = comparison(bits=(3, 2), groups=(-1, 64))
    found = costs(records)
    assert [cost.grid for cost in found[::4]] == ["W3", "W3 g64", "W2", "W2 g64"]
    assert found[1].quantize_seconds == 19.0
    assert {cost.layout for cost in found} == {"same"}
    errors = layer_errors(records)
    assert set(errors) == {(3, -1), (3, 64), (2, -1), (2, 64)}
    assert len(errors[2, 64]["magr"]) == 42


@pytest.mark.parametrize(
    ("gptq", "magr", "kind", "words"),
    [
        ([(36, 36.2)], [(26, 26.2)], "better", "Turn MagR on: it lowers perplexity in 1 of 1 comparison"),
        ([(26, 26.2)], [(36, 36.2)], "worse", "Leave MagR off: it raises perplexity in 1 of 1 comparison"),
        ([(26, 27)], [(26.1, 26.9)], "same", "no difference beyond the spread over seeds"),
        ([(36, 36.2), (26, 26.2)], [(26, 26.2), (36, 36.2)], "mixed", "lowers perplexity in 1 of 2"),
        ([(None, None)], [(26, 26.2)], "better", "– → 26.10"),
        ([(36,)], [(26,)], "better", "With a single calibration seed"),
        ([(36, 36.2)], [()], "unknown", "No verdict"),
    ],
)
def test_the_verdict(gptq, magr, kind: str, words: str) -> None:
    records = {Cell(UNQUANTIZED): scored(20.0)}
    for method, found in (("gptq", gptq), ("magr", magr)):
        for index, values in enumerate(found):
            for seed, value in enumerate(values):
                records[cell(method, 2 + index, -1, seed)] = scored(value)
    verdict = judge(perplexity_tables(records, {}))
    assert verdict.kind == kind
    assert words in verdict.sentence


def by_hand(perplexity: dict[str, float], divergence: dict[str, float]):
    """The verdict on one cell each of gptq and magr at 2 bits."""
    records = {Cell(UNQUANTIZED): scored(20.0, divergence=0.0)}
    for method in ("gptq", "magr"):
        records[cell(method, 2)] = scored(perplexity[method], divergence=divergence[method])
    return judge(perplexity_tables(records, {}), divergence_tables(records))


def test_the_verdict_follows_the_divergence_and_says_so_where_perplexity_differs() -> None:
    found = by_hand({"gptq": 25.9, "magr": 26.1}, {"gptq": 0.04, "magr": 0.03})
    assert found.kind == "better"
    assert found.sentence.startswith(
        "Turn MagR on: it lowers divergence from the unquantized model in 1 of 1"
    )
    assert "most at W2 on prose: 0.0400 → 0.0300, 25 % of what GPTQ loses." in found.sentence
    assert (
        "Perplexity says the opposite at W2 on prose (25.90 → 26.10). The verdict follows" in found.sentence
    )
    found = by_hand({"gptq": 26.1, "magr": 25.9}, {"gptq": 0.03, "magr": 0.04})
    assert found.kind == "worse"
    assert "Perplexity says the opposite at W2 on prose (26.10 → 25.90)" in found.sentence
    found = by_hand({"gptq": 26.1, "magr": 25.9}, {"gptq": 0.04, "magr": 0.03})
    assert "Perplexity falls in 1 of 1." in found.sentence
    assert "opposite" not in found.sentence


def test_divergence_has_rows_of_its_own_and_all_of_it_is_added() -> None:
    (found,) = divergence_tables(comparison(bits=(2,)))
    assert (found.quantity, found.name, found.unquantized) == ("divergence", "prose", 0.0)
    row = found.rows[-1]
    assert (row.mean, row.over) == (pytest.approx(0.061), pytest.approx(0.061))
    assert row.closed == pytest.approx(100 * 0.1 / 0.161)
    assert "| W2 | GPTQ + MagR | 0.0610 ± 0.0010 | −0.1000 | 62 % |" in table.markdown([found])
    rows = list(csv.DictReader(StringIO(table.comma_separated([found]))))
    assert {row["quantity"] for row in rows} == {"divergence"}
    # records of an earlier release
    assert divergence_tables({Cell(UNQUANTIZED): scored(20.0), cell("gptq", 2): scored(30.0)}) == []


def test_the_paper_speaks_for_magr_only_where_the_default_is_missing() -> None:
    assert "36.10 → 26.10, 62 %" in judge(perplexity_tables(comparison(bits=(2,)), {})).sentence
    found = perplexity_tables(comparison(bits=(2,), methods=("gptq", "paper")), {})
    assert "36.10 → 28.10, 50 %" in judge(found).sentence


def test_csv_and_markdown_agree() -> None:
    found = perplexity_tables(comparison(bits=(2,)), PUBLISHED)
    rows = list(csv.DictReader(StringIO(table.comma_separated(found))))
    assert [row["method"] for row in rows] == ["unquantized", "rtn", "gptq", "paper", "magr"]
    assert float(rows[4]["mean"]) == pytest.approx(26.1)
    assert rows[3]["paper"] == "16.73"
    assert "| W2 | GPTQ + MagR | 26.10 ± 0.10 | +6.10 | −10.00 | 62 % | – |" in table.markdown(found)


def test_numbers_as_people_read_them() -> None:
    assert [decimal(x) for x in (5.468, 323.12, 7700.0, None)] == ["5.47", "323.1", "7,700", "–"]
    assert [signed(x) for x in (0.5, -0.5, None)] == ["+0.50", "−0.50", "–"]
    assert [size(x) for x in (3.5e6, 4.1e9)] == ["3.5 MB", "4.10 GB"]
    assert [duration(x) for x in (9.96, 600, 36000)] == ["10.0 s", "10.0 min", "10.0 h"]
