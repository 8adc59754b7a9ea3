"""What the studies' tables make of cells that were measured."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from eval.studies.bits import run as bits
from eval.studies.quality import run as quality


def write(folder: Path, name: str, cell: dict[str, Any]) -> None:
    (folder / f"{name}.json").write_text(json.dumps(cell))


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    """Plain GPTQ and the default at 2 bits, two seeds."""
    write(tmp_path, "unquantized", {"perplexity": 20.0, "perplexity_also": 30.0})
    for seed in (0, 1):
        for method, perplexity, divergence in (("gptq", 40.0, 0.4), ("default", 25.0 + seed, 0.1)):
            cell = {
                "method": method, "bits": 2, "group_size": -1, "seed": seed, "perplexity": perplexity,
                "divergence": divergence, "perplexity_also": 2 * perplexity,
                "divergence_also": 2 * divergence,
            }  # fmt: skip
            write(tmp_path, f"{method}-w2-seed{seed}", cell)
    return tmp_path


@pytest.mark.parametrize(
    ("also", "divergence", "expected"),
    [
        (False, False, "25.50 ± 0.71, 72 %"),
        (True, False, "51.00 ± 1.41, 58 %"),
        (False, True, "0.1000 ± 0.0000, 75 %"),
        (True, True, "0.2000 ± 0.0000, 75 %"),
    ],
)
def test_quality_tells_the_share_of_the_gap(cells: Path, capsys, also, divergence, expected: str) -> None:
    quality.table(Namespace(out=cells, also=also, divergence=divergence))
    assert f"| default |  | {expected} |  |  |" in capsys.readouterr().out


def test_plans_are_compared_with_uniform_widths_of_their_size(tmp_path: Path, capsys) -> None:
    for kind, asked, average, divergence in (
        ("uniform", 2, 2.1, 0.16), ("uniform", 3, 3.1, 0.04), ("planned", 2.6, 2.6, 0.07),
    ):  # fmt: skip
        cell = {
            "kind": kind, "bits": asked, "seed": 0, "average_bits": average, "divergence": divergence,
            "planning_seconds": 30.0, "quantize_seconds": 120.0,
        }  # fmt: skip
        write(tmp_path, f"{kind}-{asked}-seed0", cell)
    bits.table(Namespace(out=tmp_path))
    printed = capsys.readouterr().out
    # halfway: 0.1 on the straight line, and 0.08 on the logarithmic one
    assert "| planned | 2.6 | 2.600 | 0 | 0.0700 | 0.1000 | 30 % | 12 % |" in printed
    assert "planning over quantizing: 25 %" in printed


def test_plans_that_chose_group_sizes_stand_beside_older_ones(tmp_path: Path, capsys) -> None:
    measured = {"seed": 0, "average_bits": 2.6, "planning_seconds": 0.0, "quantize_seconds": 120.0}
    for name, cell in (
        ("uniform-3-seed0", {"kind": "uniform", "bits": 3, "divergence": 0.1}),
        ("planned-2.6-seed0", {"kind": "planned", "bits": 2.6, "divergence": 0.07}),
        (
            "planned-2.6-g64,-1-seed0",
            {"kind": "planned", "bits": 2.6, "divergence": 0.06, "group_sizes": [64, -1]},
        ),
    ):
        write(tmp_path, name, {**measured, **cell})
    bits.table(Namespace(out=tmp_path))
    printed = capsys.readouterr().out
    assert "| planned | 2.6 | 2.600 | 0 | 0.0700 | 0.1000 |" in printed
    assert "| planned-g64,-1 | 2.6 | 2.600 | 0 | 0.0600 | 0.1000 |" in printed
