"""Finished checkpoints outlive a run that ends before they are scored."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from eval.lib import checkpoints
from eval.lib.kept import made_once
from eval.studies.quality import other_cells
from eval.studies.real import run as real
from magr_gptq.app.processes import EngineError
from magr_gptq.app.quantizing.job import Job, Outcome

ASKED = {"bits": 2, "magr": None}


def make(folder: Path) -> dict[str, Any]:
    (folder / "weights").write_text("of the first")
    return {"seconds": 1.5}


def never(_: Path) -> dict[str, Any]:
    raise AssertionError("made again")


def fail(folder: Path) -> dict[str, Any]:
    (folder / "weights").write_text("a part")
    raise OSError("no space left")


def test_what_was_made_for_the_same_request_is_not_made_again(tmp_path, capsys) -> None:
    folder = tmp_path / "work" / "cell"
    assert made_once(folder, ASKED, make) == {"seconds": 1.5}
    assert capsys.readouterr().out == ""
    assert made_once(folder, ASKED, never) == {"seconds": 1.5}
    assert capsys.readouterr().out == "cell: made by an earlier run\n"
    assert (folder / "weights").read_text() == "of the first"


def test_what_was_made_for_another_request_is_made_anew(tmp_path) -> None:
    made_once(tmp_path / "cell", {**ASKED, "bits": 3}, make)
    with pytest.raises(AssertionError, match="made again"):
        made_once(tmp_path / "cell", ASKED, never)


def test_what_ends_in_the_middle_is_not_finished(tmp_path) -> None:
    with pytest.raises(OSError, match="no space left"):
        made_once(tmp_path / "cell", ASKED, fail)
    assert list(tmp_path.iterdir()) == []


class Counting:
    """In place of the process that quantizes: notes the methods that it is asked for."""

    asked: list[str]

    def __init__(self, log: Path) -> None:
        self.log = log

    def __enter__(self) -> Counting:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def quantize(self, job: Job, **_: object) -> Outcome:
        method = "gptq" if job.magr is None else "default"
        self.asked.append(method)
        Path(job.out).mkdir()
        Path(job.out, "weights").write_text(method)
        return Outcome(seconds=7.0, seqlen=job.seqlen, versions={}, summary=method)


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Runs the study of real models on two methods without a toolkit; tells which it had quantized."""
    (tmp_path / "models" / "smollm2").mkdir(parents=True)
    given = (
        "run", "smollm2", "--calibration", "text", "--evaluation", "text", "--methods", "gptq", "default",
        "--bits", "2", "--group-sizes", "64", "--seeds", "0",
        *(part for name in ("models", "work", "out", "log") for part in (f"--{name}", str(tmp_path / name))),
    )  # fmt: skip
    monkeypatch.setattr("sys.argv", ["run", *given])
    monkeypatch.setattr(real, "Worker", Counting)
    monkeypatch.setattr(real, "score", lambda *_, **__: {"perplexity": 20.0})

    def run(scores) -> list[str]:
        Counting.asked = []
        monkeypatch.setattr(checkpoints, "diverge_all", scores)
        with contextlib.suppress(EngineError):
            real.main()
        return Counting.asked

    return run


def dies(*_: object, **__: object) -> list[dict[str, Any]]:
    raise EngineError("the process ended with exit status -9")


def by_their_weights(_: str, models: list[str], *__: object, **___: object) -> list[dict[str, Any]]:
    weights = [Path(model, "weights").read_text() for model in models]
    return [{"perplexity": 30.0, "divergence": {"gptq": 0.8, "default": 0.2}[one]} for one in weights]


def test_where_scoring_dies_the_same_command_scores_what_was_quantized(study, tmp_path) -> None:
    assert study(dies) == ["gptq", "default"]
    assert study(by_their_weights) == []
    for method, divergence in (("gptq", 0.8), ("default", 0.2)):
        record = json.loads((tmp_path / "out" / f"{method}-w2-g64-16-seed0.json").read_text())
        told = {key: record[key] for key in ("divergence", "quantize_seconds", "magr")}
        assert told == {"divergence": divergence, "quantize_seconds": 7.0, "magr": method}


def test_scored_checkpoints_are_removed(study, tmp_path) -> None:
    study(by_their_weights)
    assert len(list((tmp_path / "out").glob("*-seed0.json"))) == 2
    assert not any(path.is_file() for path in (tmp_path / "work").rglob("*"))


def test_another_methods_checkpoint_outlives_its_scorer(tmp_path, monkeypatch) -> None:
    made: list[str] = []

    def quantize(cell, folder: str, _) -> tuple[str, dict[str, Any]]:
        made.append(cell.name)
        checkpoint = Path(folder, "rounded")
        checkpoint.mkdir()
        return str(checkpoint), {"versions": {"awq": "1"}, "quantize_seconds": 9.0}

    def scored(checkpoint: str, *_: object) -> dict[str, Any]:
        assert Path(checkpoint).is_dir()
        return {"perplexity": 30.0, "versions": {"gptqmodel": "7.6.0"}}

    given = ("model", "--calibration", "text", "--evaluation", "text", "--seeds", "0")
    folders = [part for name in ("work", "out") for part in (f"--{name}", str(tmp_path / name))]
    monkeypatch.setattr("sys.argv", ["cells", *given, *folders])
    monkeypatch.setattr(other_cells, "scored", dies)
    with pytest.raises(EngineError):
        other_cells.measure_all({"awq": quantize}, "gptqmodel", "")
    monkeypatch.setattr(other_cells, "scored", scored)
    other_cells.measure_all({"awq": quantize}, "gptqmodel", "")
    assert len(made) == len(set(made)) == len(list((tmp_path / "out").iterdir())) == 4
    record = json.loads((tmp_path / "out" / "awq-w2-g64-seed0.json").read_text())
    assert (record["quantize_seconds"], record["versions"]) == (9.0, {"awq": "1", "gptqmodel": "7.6.0"})
    assert not any((tmp_path / "work").iterdir())
