"""The scorer against perplexity by its definition, in the process in which it is meant to run."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from forked import run_forked
from tiny import byte_tokenizer, save_tiny_model

from magr_score.__main__ import main
from magr_score.errors import ScoreError
from magr_score.windows import cut_windows, spelled, tokenize


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_tiny_model("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def prose(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "prose.txt"
    path.write_text("It is a truth universally acknowledged. " * 10, encoding="utf-8")
    return path


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run_forked("magr_score", "perplexity", *arguments, "--engine", "transformers")


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


def ask(quantity: str, **request: object) -> dict:
    """The one event that answers a request."""
    (line,) = run_forked("magr_score", quantity, json.dumps(request)).stdout.splitlines()
    return json.loads(line)


@torch.no_grad()
def divergence_by_definition(original: Path, model: Path, windows: list[list[int]]) -> float:
    """One window at a time, in float64."""
    from transformers import AutoModelForCausalLM

    p, q = (
        AutoModelForCausalLM.from_pretrained(f, torch_dtype=torch.float32).double() for f in (original, model)
    )
    total = 0.0
    for window in windows:
        one, other = (m(torch.tensor([window])).logits[0, :-1].softmax(-1) for m in (p, q))
        total += float((one * (one / other).log()).sum())
    return total / sum(len(window) - 1 for window in windows)


def test_divergence_by_its_definition(model: Path, prose: Path, tmp_path) -> None:
    from transformers import AutoTokenizer

    other = save_tiny_model("llama", tmp_path / "other", seed=1)
    tokens = AutoTokenizer.from_pretrained(model)(prose.read_text())["input_ids"]
    # more than one batch, and windows that are cut into parts
    asked = {"text": str(prose), "engine": "transformers", "seqlen": 60, "limit": None}
    found = ask("divergence", original=str(model), models=[str(other), str(model)], **asked)
    assert found["event"] == "done"
    far, near = found["result"]["scores"]
    wanted = divergence_by_definition(
        model, other, [tokens[i * 60 : i * 60 + 60] for i in range(far["windows"])]
    )
    assert far["divergence"] == pytest.approx(wanted, rel=1e-4)
    assert near["divergence"] == 0
    alone = json.loads(run(other, prose, "--seqlen", 60).stdout)
    assert far["perplexity"] == pytest.approx(alone["perplexity"], rel=1e-6)
    assert {name: far[name] for name in ("windows", "tokens", "seqlen")} == {
        name: alone[name] for name in ("windows", "tokens", "seqlen")
    }


def test_divergence_does_not_depend_on_how_windows_are_batched(monkeypatch) -> None:
    from types import SimpleNamespace

    from magr_score import divergence

    class Bigrams(torch.nn.Module):
        device = torch.device("cpu")

        def __init__(self, seed: int) -> None:
            super().__init__()
            self.table = torch.randn(11, 11, generator=torch.Generator().manual_seed(seed))

        def forward(self, input_ids, **_):
            return SimpleNamespace(logits=self.table[input_ids])

    rows = torch.randint(11, (19, 6), generator=torch.Generator().manual_seed(0))
    original, model = Bigrams(0), Bigrams(1)
    p, q = (m.table.double().softmax(-1) for m in (original, model))
    wanted = float((p * (p / q).log()).sum(-1)[rows[:, :-1]].mean())
    monkeypatch.setattr(divergence, "WINDOW_TOKENS_AT_ONCE", 18)
    monkeypatch.setattr(divergence, "POSITIONS_AT_ONCE", 4)
    found = divergence.compare(original, model, rows)
    assert found["divergence"] == pytest.approx(wanted, rel=1e-5)
    assert found["perplexity"] == pytest.approx(
        float(q[rows[:, :-1], rows[:, 1:]].log().mean().neg().exp()), rel=1e-5
    )


def test_a_request_that_cannot_be_met_is_answered_with_its_reason(model: Path, prose: Path) -> None:
    asked = {"models": [str(model)], "text": str(prose), "engine": "transformers", "limit": None}
    found = ask("perplexity", seqlen=2048, **asked)
    assert found == {
        "event": "error", "input": True,
        "message": "the text has 400 tokens, too few for one window of 2,048",
    }  # fmt: skip
    found = ask("perplexity", seqlen=60, **{**asked, "engine": "awq"})
    assert (found["event"], found["input"]) == ("error", False)
    assert "awq" in found["message"]


def test_the_weights_of_a_model_are_those_of_its_file(model: Path, tmp_path) -> None:
    from safetensors.torch import load_file

    out = tmp_path / "weights.pt"
    found = ask("weights", checkpoint=str(model), engine="transformers", out=str(out))
    weights, saved = torch.load(out), load_file(model / "model.safetensors")
    assert found["result"]["layers"] == list(weights)
    assert len(weights) == 8
    for name, weight in weights.items():
        assert torch.equal(weight, saved[f"{name}.weight"].float())


def test_a_text_that_is_too_short_is_named_in_a_line(model: Path, prose: Path) -> None:
    done = run(model, prose)
    assert done.returncode != 0
    assert "400 tokens, too few for one window of 2,048" in done.stderr
    assert "Traceback" not in done.stderr


def test_stdout_is_one_json_line(model: Path, prose: Path) -> None:
    """As it is meant to be run, in a process that nothing has prepared."""
    options = ["--engine", "transformers", "--seqlen", "60", "--limit", "2"]
    command = [sys.executable, "-I", "-m", "magr_score", "perplexity", str(model), str(prose), *options]
    lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    assert len(lines) == 1
    assert json.loads(lines[0])["windows"] == 2


def test_a_limit_spreads_the_windows_over_the_text() -> None:
    windows = cut_windows(list(range(100)), 10, 3)
    assert windows[:, 0].tolist() == [0, 30, 60]
    assert cut_windows(list(range(105)), 10, None).shape == (10, 10)
    assert cut_windows(list(range(100)), 10, 99).shape == (10, 10)


def test_windows_begin_as_the_tokenizer_begins_a_text() -> None:
    tokenizer = byte_tokenizer(begins=True)
    beginning, tokens = tokenize(tokenizer, "abcdefg", "tokenizer")
    letters = tokenizer.convert_tokens_to_ids(list("abcdefg"))
    assert (beginning, tokens) == ([0], letters)
    assert spelled(tokenizer, beginning) == "<|endoftext|>"
    windows = cut_windows(tokens, 4, None, beginning)
    assert windows.tolist() == [[0, *letters[:3]], [0, *letters[3:6]]]
    with pytest.raises(ScoreError, match="2 tokens, too few for one window of 4"):
        cut_windows(letters[:2], 4, None, beginning)


def test_a_stream_has_the_beginning_once() -> None:
    tokenizer = byte_tokenizer(begins=True)
    whole = tokenizer("abcdefg")["input_ids"]
    assert whole[0] == whole[-1] == 0
    assert tokenize(tokenizer, "abcdefg", "stream") == ([], whole)


@pytest.mark.parametrize("text", ["abcdefg", "a", " a\n\na "])
def test_a_tokenizer_that_adds_nothing_makes_the_same_windows_of_both_cuts(text: str) -> None:
    tokenizer = byte_tokenizer()
    found = tokenize(tokenizer, text, "tokenizer")
    assert found == tokenize(tokenizer, text, "stream") == ([], tokenizer(text)["input_ids"])


def test_the_demos_tokenizer_adds_nothing() -> None:
    from transformers import AutoTokenizer

    from magr_gptq.app.cli.demo import shipped_model, shipped_text

    tokenizer = AutoTokenizer.from_pretrained(shipped_model())
    text = shipped_text("evaluation.txt").read_text(encoding="utf-8")
    assert tokenize(tokenizer, text, "tokenizer") == ([], tokenizer(text)["input_ids"])


def test_a_score_is_of_windows_as_they_were_asked_for(prose: Path, tmp_path) -> None:
    from transformers import AutoTokenizer

    model = save_tiny_model("llama", tmp_path / "begins", begins=True)
    tokens = AutoTokenizer.from_pretrained(model)(prose.read_text())["input_ids"]
    own = tokens[1:-1]
    made = [[0, *own[start : start + 59]] for start in range(0, len(own) - 58, 59)]
    cuts = [tokens[start : start + 60] for start in range(0, len(tokens) - 59, 60)]
    for windows, more, beginning in ((made, (), "<|endoftext|>"), (cuts, ("--cut", "stream"), "")):
        found = json.loads(run(model, prose, "--seqlen", 60, *more).stdout)
        starts = [60 * number for number in range(len(windows))]
        wanted = by_definition(model, [token for window in windows for token in window], starts, 60)
        assert found["perplexity"] == pytest.approx(wanted, rel=1e-5)
        assert (found["windows"], found["beginning"]) == (len(windows), beginning)
        assert found["cut"] == (more[1] if more else "tokenizer")


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
        (["{model}", "{text}", "--limit", "0"], "--limit at least 1"),
    ],
)
def test_bad_input_is_named(
    arguments, message: str, model: Path, prose: Path, tmp_path, monkeypatch, capsys
) -> None:
    filled = [a.format(folder=tmp_path, text=prose, model=model) for a in arguments]
    monkeypatch.setattr(sys, "argv", ["magr_score", "perplexity", *filled, "--engine", "transformers"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code
    assert message in capsys.readouterr().err + str(ended.value)
