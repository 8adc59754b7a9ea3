"""Coordinate descent for a block's output: its moments, and that held-out windows have the say."""

from __future__ import annotations

import pytest
import torch
from tiny import calibration_rows, save_tiny_model
from transformers import AutoModelForCausalLM

from eval.studies.block.run import STAGES, Block, _entering, _through


@pytest.fixture(scope="module")
def block(tmp_path_factory) -> Block:
    """The first block of a Llama with weights of few codes, which is to return what the original returns."""
    folder = save_tiny_model("llama", tmp_path_factory.mktemp("model") / "tiny")
    original, model = (
        AutoModelForCausalLM.from_pretrained(folder).float().eval().requires_grad_(False) for _ in range(2)
    )
    scales = {}
    for name in (name for names in STAGES for name in names):
        weight = model.model.layers[0].get_submodule(name).weight
        scales[name] = (weight.abs().amax(1, keepdim=True) / 2).expand_as(weight)
        weight.copy_((weight / scales[name]).round().clamp(-2, 1) * scales[name])
    batches = calibration_rows(8).split(2)
    inputs, arguments = _entering(original, batches)
    targets = _through(original.model.layers[0], inputs, arguments)
    return Block(model.model.layers[0], scales, (-2, 1), arguments, inputs, targets)


@pytest.mark.parametrize("names", STAGES)
def test_the_slope_is_that_of_the_blocks_error(names: tuple[str, ...], block: Block) -> None:
    weights = [block.layer(name).weight.requires_grad_() for name in names]
    loss = sum((block(block.inputs[i]) - block.targets[i]).square().sum() for i in range(2))
    wanted = torch.autograd.grad(loss, weights)
    for weight in weights:
        weight.requires_grad_(False)
    for found, gradient in zip(block.moments(names, range(2)), wanted, strict=True):
        torch.testing.assert_close(found.gradient, gradient, rtol=1e-3, atol=1e-4 * gradient.abs().max())


def test_what_down_returns_is_added_to_the_stream_as_it_is(block: Block) -> None:
    (found,) = block.moments(["mlp.down_proj"], range(2))
    assert found.curvature.equal(torch.ones(len(found.curvature)))


def test_held_out_windows_are_no_worse_for_it(block: Block) -> None:
    before = block.loss(range(1, 4, 2))
    lengths, left = block.descend()
    assert block.loss(range(1, 4, 2)) == pytest.approx(left * before)
    assert left <= 1
    for name, scales in block.scales.items():
        codes = block.layer(name).weight / scales
        torch.testing.assert_close(codes, codes.round().clamp(-2, 1), rtol=0, atol=1e-4)
    assert len(lengths) == len(STAGES)
