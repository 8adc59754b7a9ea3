"""A copy of a block is one block that runs by itself, wherever the block's weights are kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from torch import nn

from magr_gptq.toolkits.copying import plain_copy

WIDTH = 8


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
        self.register_buffer("scale", torch.rand(WIDTH))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.scale * self.layer(self.norm(hidden))


@pytest.fixture
def block() -> Block:
    torch.manual_seed(0)
    return Block().requires_grad_(False)


@pytest.fixture
def state() -> torch.Tensor:
    return torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(1))


def as_it_is(block: Block, folder: Path) -> None:
    pass


def in_host_memory(block: Block, folder: Path) -> None:
    offloaded(block, "cpu")


def on_disk(block: Block, folder: Path) -> None:
    offloaded(block, "disk", offload_dir=str(folder))


def offloaded(block: Block, where: str, **settings: str) -> None:
    offload = pytest.importorskip("compressed_tensors.offload")
    for module in block.modules():
        offload.offload_module(module, "cpu", where, **settings)


def under_a_hook(block: Block, folder: Path) -> None:
    cpu_offload_with_hook(block, execution_device="cpu")


def held_by_hooks(block: Block, folder: Path) -> None:
    cpu_offload(block, execution_device=torch.device("cpu"))


KEPT = pytest.mark.parametrize("kept", [as_it_is, in_host_memory, on_disk, under_a_hook, held_by_hooks])


@KEPT
def test_a_copy_does_what_the_block_does(kept: Callable, block, state, tmp_path) -> None:
    exact = block(state)
    kept(block, tmp_path)
    copied = plain_copy(block)
    assert torch.equal(copied(state), exact)
    assert torch.equal(block(state), exact)


@KEPT
def test_a_copy_runs_wherever_it_is_moved(kept: Callable, block, state, tmp_path) -> None:
    kept(block, tmp_path)
    copied = plain_copy(block).to("meta")
    assert copied(state.to("meta")).is_meta
    assert not block(state).is_meta


@pytest.mark.parametrize("kept", [in_host_memory, on_disk])
def test_a_copy_keeps_weights_that_the_toolkit_changes(kept: Callable, block, state, tmp_path) -> None:
    exact = block(state)
    kept(block, tmp_path)
    offload = pytest.importorskip("compressed_tensors.offload")
    with offload.disable_offloading():
        copied = plain_copy(block)
        offload.update_offload_parameter(block.layer, "weight", torch.zeros(WIDTH, WIDTH))
        assert torch.equal(copied(state), exact)
        assert not torch.equal(block(state), exact)


def test_one_of_a_chain_of_blocks_is_copied_alone(state, monkeypatch) -> None:
    made: list[Block] = []

    def counted(self: Block, values: dict) -> None:
        made.append(self)
        nn.Module.__setstate__(self, values)

    monkeypatch.setattr(Block, "__setstate__", counted)
    blocks, hook = [Block().requires_grad_(False) for _ in range(4)], None
    for each in blocks:
        _, hook = cpu_offload_with_hook(each, execution_device="cpu", prev_module_hook=hook)
    copied = plain_copy(blocks[-1])
    assert made == [copied]
    assert torch.equal(copied(state), blocks[-1](state))
    assert blocks[-1]._hf_hook is hook.hook
    assert hook.hook.prev_module_hook.model is blocks[-2]


def test_hooks_stay_with_the_block(block, state) -> None:
    calls: list[str] = []
    block.layer.register_forward_hook(lambda *_: calls.append("after"))
    block.layer.register_forward_pre_hook(lambda *_: calls.append("before"))
    plain_copy(block)(state)
    assert not calls
    block(state)
    assert calls == ["before", "after"]
