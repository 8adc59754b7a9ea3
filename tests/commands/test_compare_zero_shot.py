"""lm-eval's own machinery on a tiny local task, in the process in which it is meant to run."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from tiny import save_tiny_model

from magr_gptq.app.scoring import zero_shot
from magr_gptq.errors import InputError
from magr_score.errors import ScoreError
from magr_score.zero_shot import load_tasks

NEEDS_LM_EVAL = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="needs lm-eval: pip install 'lm-eval>=0.4.13'"
)
pytestmark = [pytest.mark.long, NEEDS_LM_EVAL]

TASK = """\
task: tiny_letters
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture
def task(tmp_path, monkeypatch) -> Path:
    # lm-eval's datasets keep what they prepared
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    choices = ["a", "b", "c", "d"]
    rows = [
        {"question": f"{word} is", "choices": choices, "answer": i % 4} for i, word in enumerate("pqrstuvw")
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    path = tmp_path / "tiny_letters.yaml"
    path.write_text(TASK.format(data=data))
    return path


def test_accuracy_of_a_local_task(task: Path, tmp_path) -> None:
    model = save_tiny_model("llama", tmp_path / "model")
    found = zero_shot([str(task)], tmp_path / "log", checkpoint=str(model), engine="transformers")
    assert set(found["tasks"]) == {"tiny_letters"}
    entry = found["tasks"]["tiny_letters"]
    assert entry["examples"] == 8
    assert entry["accuracy"] == pytest.approx(100 * by_hand(model))
    assert "lm-eval" in found["versions"]


def by_hand(model: Path) -> float:
    """The share of questions whose right letter the model finds likeliest."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model, torch_dtype=torch.float32)
    network.requires_grad_(False)
    hits = 0
    for index, word in enumerate("pqrstuvw"):
        losses = []
        for letter in "abcd":
            tokens = tokenizer(f"{word} is {letter}", return_tensors="pt")["input_ids"]
            scores = network(tokens).logits.log_softmax(-1)[0, :-1]
            # the continuation is a blank and the letter
            losses.append(float(scores.gather(1, tokens[0, 1:, None])[-2:].sum()))
        hits += losses.index(max(losses)) == index % 4
    return hits / 8


def test_log_likelihoods_of_16_bits_are_summed_in_32(task: Path, tmp_path, monkeypatch) -> None:
    import torch
    from lm_eval import evaluator
    from lm_eval.api.instance import Instance
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from magr_score import loaders, zero_shot

    folder = save_tiny_model("llama", tmp_path / "model")
    network = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.bfloat16).eval()
    monkeypatch.setitem(zero_shot.LOADERS, "transformers", loaders.Loader(lambda *_: network, "transformers"))
    seen = []

    def keep(lm, **_):
        seen.append(lm)
        return {"results": {}}

    monkeypatch.setattr(evaluator, "evaluate", keep)
    zero_shot.accuracies({"tasks": [str(task)], "checkpoint": str(folder), "engine": "transformers"})
    words = "p is " + "abcdefgh" * 60
    ((found, _),) = seen[0].loglikelihood([Instance("loglikelihood", {}, ("p is ", words[5:]), 0)])
    tokens = AutoTokenizer.from_pretrained(folder)(words, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        scores = network(tokens).logits.double().log_softmax(-1)[0, :-1]
    # lm-eval counts the blank before the continuation as part of it
    wanted = float(scores.gather(1, tokens[0, 1:, None])[3:].sum())
    # at this size bfloat16 has steps of 16
    assert wanted < -2048
    assert found == pytest.approx(wanted, abs=0.1)


def test_a_missing_dataset_and_an_unknown_task_are_named(task: Path, tmp_path) -> None:
    with pytest.raises(InputError, match=r"dataset of task 'arc_easy' is not in the local cache"):
        zero_shot(["arc_easy"], tmp_path / "log")
    # without a process of its own
    with pytest.raises(ScoreError, match=r"lm-eval 0\.4\.\d+ has no task 'arc_eazy'"):
        load_tasks(["arc_eazy"])
