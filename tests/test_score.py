"""The scorer against perplexity by its definition, in the process in which it is meant to run."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import save_tiny_model

from magr_score.windows import cut_windows

PERPLEXITY = ("-I", "-m", "magr_score", "perplexity")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_tiny_model("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def prose(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "prose.txt"
    path.write_text("It is a truth universally acknowledged. " * 10, encoding="utf-8")
    return path


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *PERPLEXITY, *map(str, arguments), "--engine", "transformers"]
    return subprocess.run(command, capture_output=True, text=True)


def by_definition(model: Path, tokens: list[int], starts: list[int], length: int) -> float:
    """One window and one token at a time, in float64."""
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model, torch_dtype=torch.float32).double()
    losses = []
    for start in starts:
        window = tokens[start : start + length]
        with torch.no_grad():
            logits = network(torch.tensor([window])).logits[0]
        for position in range(length - 1):
            losses.append(-float(torch.log_softmax(logits[position], -1)[window[position + 1]]))
    return math.exp(sum(losses) / len(losses))


def test_perplexity_by_its_definition(model: Path, prose: Path) -> None:
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(model)(prose.read_text())["input_ids"]
    found = json.loads(run(model, prose, "--seqlen", 60).stdout)
    starts = list(range(0, len(tokens) - 59, 60))
    assert (found["windows"], found["tokens"], found["seqlen"]) == (len(starts), 60 * len(starts), 60)
    assert found["perplexity"] == pytest.approx(by_definition(model, tokens, starts, 60), rel=1e-5)
    assert {"torch", "transformers"} <= set(found["versions"])


def test_stdout_is_one_json_line(model: Path, prose: Path) -> None:
    lines = run(model, prose, "--seqlen", 60, "--limit", 2).stdout.splitlines()
    assert len(lines) == 1
    assert json.loads(lines[0])["windows"] == 2


def test_a_limit_spreads_the_windows_over_the_text() -> None:
    windows = cut_windows(list(range(100)), 10, 3)
    assert windows[:, 0].tolist() == [0, 30, 60]
    assert cut_windows(list(range(105)), 10, None).shape == (10, 10)
    assert cut_windows(list(range(100)), 10, 99).shape == (10, 10)


def test_windows_are_no_longer_than_the_model_allows(model: Path, prose: Path, tmp_path) -> None:
    config = json.loads((model / "config.json").read_text())
    for file in model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 32}))
    assert json.loads(run(tmp_path, prose).stdout)["seqlen"] == 32


def test_a_process_that_imported_magr_gets_no_score(model: Path, prose: Path) -> None:
    code = "import magr_gptq\nfrom magr_score.__main__ import main\nmain()"
    options = ["--engine", "transformers", "--limit", "1"]
    command = [sys.executable, "-c", code, "perplexity", model, prose, *options]
    done = subprocess.run(
        [str(part) for part in command] + ["--seqlen", "60"], capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "magr_gptq was imported" in done.stderr
    assert not done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{folder}", "{text}"], "is not a model folder"),
        (["{model}", "absent.txt"], "there is no file absent.txt"),
        (["{model}", "{text}"], "400 tokens, too few for one window of 2,048"),
        (["{model}", "{text}", "--limit", "0"], "--limit at least 1"),
    ],
)
def test_bad_input_is_named(arguments, message: str, model: Path, prose: Path, tmp_path) -> None:
    filled = [a.format(folder=tmp_path, text=prose, model=model) for a in arguments]
    done = run(*filled)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
