"""Which plans the study of bits makes: their names, and the surveys that they come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eval.studies.bits import run as bits
from magr_gptq.app.planning.found import Candidate, Survey
from magr_gptq.app.planning.planner import widths_among
from magr_gptq.app.quantizing.job import Job

LAYERS = ("model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj")


class NoWorker:
    """In place of the process that quantizes."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def __enter__(self) -> NoWorker:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def surveyed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[int]]]:
    """For every survey that is asked for, the file it would be found in and its group sizes; none is made."""
    asked = []

    def survey_of(_job: Job, _log: Path, _listen: object, kept: Path, *, group_sizes: tuple) -> Survey:
        asked.append((kept.name, list(group_sizes)))
        widths = widths_among((2, 3, 4, 8), group_sizes)
        # groups cost little of the size, and save much of the error
        costs = tuple(4.0**-width.bits / (1 if width.group_size == -1 else 8) for width in widths)
        layers = {name: Candidate((256, 256), costs) for name in LAYERS}
        return Survey(tuple(widths), layers, rest_bytes=0, tokens=1)

    def divergences(jobs: dict[str, Job], *_: object, **__: object) -> dict[str, Any]:
        return {name: {"quantize_seconds": 1.0, "divergence": 0.1} for name in jobs}

    monkeypatch.setattr(bits, "survey_of", survey_of)
    monkeypatch.setattr(bits, "divergences", divergences)
    monkeypatch.setattr(bits, "Worker", NoWorker)
    return asked


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs the study at 3 bits, and tells all records of its folder by name."""

    def run(*options: str) -> dict[str, Any]:
        given = (
            "run", "model", "--calibration", "text", "--evaluation", "text", "--bits", "3",
            "--avg-bits", "3.3", "--seeds", "0", "--log", str(tmp_path / "log"),
            "--out", str(tmp_path / "out"), *options,
        )  # fmt: skip
        monkeypatch.setattr("sys.argv", ["run", *given])
        bits.main()
        return {file.stem: json.loads(file.read_text()) for file in (tmp_path / "out").iterdir()}

    return run


def test_plans_that_choose_group_sizes_are_cells_of_their_own(study, surveyed) -> None:
    before = study()
    assert set(before) == {"uniform-3-seed0", "planned-3.3-seed0"}
    found = study("--group-sizes", "64", "-1")
    assert found == {**before, "planned-3.3-g64,-1-seed0": found["planned-3.3-g64,-1-seed0"]}
    groups = {name: {group for _, group in record["widths"].values()} for name, record in found.items()}
    assert groups["planned-3.3-seed0"] == groups["uniform-3-seed0"] == {-1}
    assert 64 in groups["planned-3.3-g64,-1-seed0"]


def test_a_survey_is_kept_for_cells_of_the_same_group_sizes(study, surveyed) -> None:
    study("--avg-bits", "3.3", "4.3", "--group-sizes", "64", "-1")
    plain, chosen = "bits-model-seed0.json", "bits-model-g64,-1-seed0.json"
    assert surveyed == [(plain, [-1]), (chosen, [64, -1]), (chosen, [64, -1])]


def test_the_order_of_group_sizes_makes_no_other_cell(study, surveyed) -> None:
    found = study("--group-sizes", "64", "-1")
    assert study("--group-sizes", "-1", "64", "64") == found
