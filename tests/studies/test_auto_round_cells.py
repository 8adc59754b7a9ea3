"""auto-round's cells of real models, by a stand-in for auto-round: what it is given, what is recorded."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import save_tiny_model

from eval.lib import auto_round
from eval.studies.real import auto_round_cells, run
from magr_gptq.app.inputs import read_model

PROSE = "A window starts anywhere in these words, and ends some tokens later. " * 40


class AutoRound:
    """Notes what it is given, and saves a checkpoint as auto-round does."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def quantize(self, model: str, windows: list[list[int]], folder: str, **settings: Any) -> tuple[str, Any]:
        self.asked.append({"model": model, "windows": windows, **settings})
        checkpoint = Path(folder, "smollm2-w2g64")
        checkpoint.mkdir()
        (checkpoint / "weights").write_text("rounded")
        return str(checkpoint), {"versions": {"auto-round": "0.16.1"}, "iters": 200, "quantize_seconds": 9.0}


def scores(original: str, checkpoint: str, *_: object, **__: object) -> dict[str, Any]:
    assert Path(original, "config.json").exists()
    assert Path(checkpoint, "weights").read_text() == "rounded"
    return {"perplexity": 51.0, "divergence": 0.8, "versions": {"gptqmodel": "7.6.0"}}


def dies(*_: object, **__: object) -> dict[str, Any]:
    raise RuntimeError("no memory left")


@pytest.fixture
def rounder(monkeypatch) -> AutoRound:
    found = AutoRound()
    monkeypatch.setattr(auto_round, "quantize", found.quantize)
    monkeypatch.setattr(auto_round_cells, "diverge", scores)
    return found


@pytest.fixture
def study(tmp_path, monkeypatch, rounder):
    """Runs the study on a tiny model at 2 bits with groups of 64; the record by its file's name."""
    save_tiny_model("llama", tmp_path / "models" / "smollm2", begins=True)
    text = tmp_path / "text.txt"
    text.write_text(PROSE)
    given = (
        "smollm2", "--calibration", str(text), "--evaluation", str(text), "--methods", "auto-round",
        "--bits", "2", "--group-sizes", "64", "--samples", "4", "--seqlen", "32", "--seeds", "3",
        *(part for name in ("models", "work", "out", "log") for part in (f"--{name}", str(tmp_path / name))),
    )  # fmt: skip
    monkeypatch.setattr("sys.argv", ["auto_round_cells", *given])

    def measure() -> dict[str, Any]:
        auto_round_cells.main()
        return {file.stem: json.loads(file.read_text()) for file in (tmp_path / "out").iterdir()}

    return measure


def test_auto_round_has_the_windows_that_other_methods_calibrate_with(study, rounder, tmp_path) -> None:
    study()
    model = read_model(tmp_path / "models" / "smollm2")
    windows = model.windows(str(tmp_path / "text.txt"), samples=4, seqlen=32, seed=3).rows
    asked = {
        "model": str(model.folder), "windows": windows, "recipe": "auto-round", "bits": 2, "group_size": 64,
        "seed": 3, "amp": True,
    }  # fmt: skip
    assert rounder.asked == [asked]


def test_a_cell_stands_in_the_table_of_the_study(study, tmp_path, capsys) -> None:
    assert study() == {
        "auto-round-w2-g64-4-seed3": {
            "method": "auto-round", "bits": 2, "group_size": 64, "samples": 4, "seed": 3, "perplexity": 51.0,
            "divergence": 0.8, "iters": 200, "quantize_seconds": 9.0, "threads": torch.get_num_threads(),
            "versions": {"gptqmodel": "7.6.0", "auto-round": "0.16.1"},
        },
    }  # fmt: skip
    run.write(tmp_path / "out", run.UNQUANTIZED, {"perplexity": 20.0})
    run.table(Namespace(out=tmp_path / "out"))
    assert "| W2 g64 | 4 | 0.8000; 51.00 |" in capsys.readouterr().out


def test_a_measured_cell_is_skipped(study, rounder) -> None:
    assert study() == study()
    assert len(rounder.asked) == 1


def test_a_checkpoint_is_kept_until_it_is_scored(study, rounder, tmp_path, monkeypatch) -> None:
    with monkeypatch.context() as unlucky:
        unlucky.setattr(auto_round_cells, "diverge", dies)
        with pytest.raises(RuntimeError, match="no memory left"):
            study()
    assert study()["auto-round-w2-g64-4-seed3"]["quantize_seconds"] == 9.0
    assert len(rounder.asked) == 1
    assert not any(path.is_file() for path in (tmp_path / "work").rglob("*"))
