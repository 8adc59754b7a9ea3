"""llm-compressor with MagR over two hosts: the weights of one rank, and an end where one of them is lost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny import SHAPES, save_tiny_model
from two_hosts import start_torchrun, two_hosts, why_not

pytest.importorskip("llmcompressor")

import torchrun_llmcompressor
from llmcompressor.modifiers.gptq import helpers
from places import HELPERS
from safetensors.torch import load_file

WHY_NOT = why_not()
pytestmark = [pytest.mark.long, pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))]

TIMEOUT, A_MINUTE = 300, 60


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[str, str]]:
    with two_hosts() as names:
        yield names


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SHAPES, "two blocks", {**SHAPES["llama"], "num_hidden_layers": 2})
        return str(save_tiny_model("two blocks", tmp_path_factory.mktemp("model") / "model"))


def run(hosts: tuple[str, str], script: str, *arguments: str, cwd: Path) -> list[tuple[int, str]]:
    """Exit code and output of each host's torchrun."""
    started = [
        start_torchrun(host, rank, HELPERS / script, *arguments, cwd=cwd) for rank, host in enumerate(hosts)
    ]
    try:
        output = [process.communicate(timeout=TIMEOUT)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, text) for process, text in zip(started, output, strict=True)]


def test_two_hosts_give_the_very_weights_of_one_rank(hosts, model: str, tmp_path, monkeypatch) -> None:
    """Hessians are summed in double precision, where the order of the sum is lost when it is rounded."""
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    ended = run(hosts, "torchrun_llmcompressor.py", model, str(tmp_path / "two"), "double", cwd=tmp_path)
    assert [code for code, _ in ended] == [0, 0], ended
    monkeypatch.setattr(helpers, "GPTQ_PRECISION", helpers.GPTQ_PRECISION)
    torchrun_llmcompressor.main(model, tmp_path / "one", ["double"], rank=0, ranks=1)
    one, two = (load_file(tmp_path / n / "double" / "model.safetensors") for n in ("one", "two"))
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


def test_a_host_that_is_lost_ends_the_other_within_a_minute_and_nothing_is_half_written(
    hosts, model: str, tmp_path
) -> None:
    out = tmp_path / "out"
    (code, text), _ = run(hosts, "torchrun_trouble.py", model, str(out), "killed", cwd=tmp_path)
    assert time.time() - float((tmp_path / "killed-at").read_text()) < A_MINUTE
    assert code != 0
    assert "Connection closed by peer" in text, text[-3000:]
    assert not out.exists() or not list(out.iterdir())


def test_a_rank_without_calibration_rows_is_told(hosts, model: str, tmp_path) -> None:
    """llm-compressor shares rows out, and ended in a StopIteration where a rank was left with none."""
    out = tmp_path / "out"
    ended = run(hosts, "torchrun_trouble.py", model, str(out), "no rows", cwd=tmp_path)
    assert all(code for code, _ in ended)
    for _, text in ended:
        assert "magr: rank 0 of 2 has no calibration rows" in text, text[-3000:]
    assert not out.exists() or not list(out.iterdir())
