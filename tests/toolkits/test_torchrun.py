"""Two ranks of torchrun on this machine give the weights of one, and share the layers out between them."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

import pytest
import torch
from tiny import SHAPES, save_tiny_model

pytest.importorskip("llmcompressor")

import torchrun_llmcompressor
from llmcompressor.modifiers.gptq import helpers
from llmcompressor_runs import run_script
from safetensors.torch import load_file
from torchrun_llmcompressor import RUNS

pytestmark = pytest.mark.long

LAYERS = 14


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Checkpoints and reports of one process in `one`, of two ranks in `two`."""
    root = tmp_path_factory.mktemp("torchrun")
    for folder in ("one", "two"):
        (root / folder).mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SHAPES, "two blocks", {**SHAPES["llama"], "num_hidden_layers": 2})
        model = str(save_tiny_model("two blocks", root / "model"))
        patch.setattr(helpers, "GPTQ_PRECISION", helpers.GPTQ_PRECISION)
        torchrun_llmcompressor.main(model, root / "one", RUNS, rank=0, ranks=1)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run_script([*torchrun, torchrun_llmcompressor.__file__], model, str(root / "two"), *RUNS, cwd=root)
    return root


def tensors(runs: Path, name: str) -> list[dict[str, torch.Tensor]]:
    return [load_file(runs / ranks / name / "model.safetensors") for ranks in ("one", "two")]


def ranks(runs: Path, name: str) -> list[dict[str, list[str]]]:
    return [json.loads((runs / "two" / f"{name}-{rank}.json").read_text()) for rank in range(2)]


def test_two_ranks_give_the_very_weights_of_one_where_the_sum_is_exact(runs) -> None:
    """In double precision the order of a Hessian's sum is lost when it is rounded to single."""
    one, two = tensors(runs, "double")
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


def test_two_ranks_give_the_weights_of_one_to_the_tolerance_of_the_sum(runs) -> None:
    """The first block's inputs are the same, so only the order of summing 512 tokens differs.

    That is a relative 1e-7 of the Hessian; it can only move a code that lies on an edge, and with it the
    scales that are fitted to its row; any other scale moves by the last of half precision's 11 bits. Later
    blocks see what became of such a code.
    """
    one, two = tensors(runs, "single")
    first = [name for name in one if ".layers.0." in name]
    for name in (name for name in first if name.endswith("weight_scale")):
        packed = name.replace("weight_scale", "weight_packed")
        same = (one[packed] == two[packed]).all(1)
        assert same.float().mean() > 0.9
        torch.testing.assert_close(two[name][same], one[name][same], rtol=2**-10, atol=0)
    codes = [(nibbles(one[n]), nibbles(two[n])) for n in first if n.endswith("weight_packed")]
    differing = sum(int((a != b).sum()) for a, b in codes) / sum(a.numel() for a, _ in codes)
    assert differing < 1e-2


def nibbles(packed: torch.Tensor) -> torch.Tensor:
    """The 4-bit codes."""
    return torch.stack([packed >> shift & 15 for shift in range(0, 32, 4)])


@pytest.mark.parametrize("name", ["double", "single"])
def test_each_layer_is_reduced_once_by_the_rank_that_owns_it(name: str, runs) -> None:
    first, second = ranks(runs, name)
    assert first["reduced"]
    assert second["reduced"]
    assert len({*first["reduced"], *second["reduced"]}) == LAYERS
    assert len(first["reduced"]) + len(second["reduced"]) == LAYERS
    for rank in (first, second):
        assert sorted(rank["reduced"]) == sorted(rank["given"])
        assert sorted(rank["report"]) == sorted(first["reduced"] + second["reduced"])


def test_a_rank_without_layers_is_no_failure(runs) -> None:
    first, second = ranks(runs, "one layer")
    assert len(first["reduced"]) == 1
    assert second["reduced"] == []
    assert second["report"] == first["report"] == first["reduced"]


def test_ranks_sum_up_both_chains(runs) -> None:
    """Other documents are in each half than with one rank, but the same in all."""
    shares = [
        json.loads((runs / folder / "both chains-0.json").read_text())["shares"] for folder in ("one", "two")
    ]
    differences = []
    for name, (shrinkage, correction) in shares[0].items():
        # it is found in doublings
        assert abs(math.log2(shares[1][name][0] / shrinkage)) < 1.4
        differences.append(abs(shares[1][name][1] - correction))
    # a single layer differs by more than layers do on average
    assert statistics.fmean(differences) < 0.06
    assert max(differences) < 0.35
    assert max(correction for _, correction in shares[0].values()) > 0.2
