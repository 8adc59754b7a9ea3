"""A block of the unquantized model runs once for every batch, whatever a toolkit asks for, in any order."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from accelerate import cpu_offload
from torch import nn

from magr_gptq.toolkits.original import Original
from magr_gptq.toolkits.weighing import DOCUMENTS

WIDTH, TOKENS, BATCHES = 8, 5, 3
CPU = torch.device("cpu")


class Attention(nn.Module):
    """Returns its weights, too, where they are asked for."""

    def __init__(self, weights: bool = False) -> None:
        super().__init__()
        self.value, self.out, self.weights = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), weights

    def forward(self, hidden: torch.Tensor, *, scale: float) -> tuple[torch.Tensor, torch.Tensor | None]:
        weights = torch.ones(1, 9, TOKENS, TOKENS) if self.weights else None
        return self.out(scale * self.value(hidden).relu()), weights


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(hidden).relu())


class Block(nn.Module):
    def __init__(self, weights: bool = False) -> None:
        super().__init__()
        self.first_norm, self.second_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention, self.mlp = Attention(weights), Mlp()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden + self.attention(self.first_norm(hidden), scale=0.5)[0]
        return hidden + self.mlp(self.second_norm(hidden))


WRITERS = ("attention.out", "mlp.down")
PASSES = (["attention.value"], ["attention.out"], ["mlp.up"], ["mlp.down"])


@pytest.fixture
def block() -> Block:
    torch.manual_seed(0)
    return Block().requires_grad_(False)


@pytest.fixture
def states() -> list[torch.Tensor]:
    return list(torch.randn(BATCHES, 1, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1)))


def counted(block: Block) -> Counter:
    """How often each layer runs from now on, in all copies."""
    calls: Counter = Counter()
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear):
            forward = type(module).forward

            def run(self, hidden, name=name, forward=forward):
                calls[name] += 1
                return forward(self, hidden)

            module.forward = run.__get__(module)
    return calls


def run_all(original: Original, states: list[torch.Tensor], wanted: list[str]) -> list:
    return [original.run(number, (state,), {}, frozenset(wanted), CPU) for number, state in enumerate(states)]


def given_to(block: Block, state: torch.Tensor) -> dict[str, torch.Tensor]:
    seen: dict[str, torch.Tensor] = {}
    handles = [
        module.register_forward_hook(
            lambda _, args, output, name=name: seen.update({name: output if name in WRITERS else args[0]})
        )
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear)
    ]
    seen["output"] = block(state)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("weights", [False, True])
def test_every_pass_sees_what_the_block_does(weights: bool, states) -> None:
    torch.manual_seed(0)
    block = Block(weights).requires_grad_(False)
    exact = [given_to(block, state) for state in states]
    original = Original(block)
    for wanted in PASSES:
        for seen, want in zip(run_all(original, states, wanted), exact, strict=True):
            (name,) = wanted
            assert torch.equal(seen.taken[name], want[name])
    for seen, want in zip(run_all(original, states, []), exact, strict=True):
        assert torch.equal(seen.output, want["output"])


def test_each_layer_runs_once_a_batch_over_all_passes(block, states) -> None:
    original = Original(block)
    run_all(original, states[:1], ["attention.value"])  # one batch is looked at as a whole
    calls = counted(next(iter(original._copies.values())))
    last = [run_all(original, states, wanted) for wanted in PASSES][-1]
    assert calls == {name: BATCHES for (name,) in PASSES}
    # it has run to its end with the last layer's input, and nothing is kept any longer
    assert all(seen.output is not None for seen in last)
    assert not original._kept


def test_attention_that_returns_its_weights_runs_again(states) -> None:
    original = Original(Block(weights=True).requires_grad_(False))
    run_all(original, states, ["attention.out"])
    assert not original._kept
    calls = counted(next(iter(original._copies.values())))
    run_all(original, states, ["mlp.up"])
    assert calls["attention.value"] == BATCHES


def test_a_layer_that_is_wanted_late_is_seen_all_the_same(block, states) -> None:
    exact = [given_to(block, state)["attention.value"] for state in states]
    original = Original(block)
    run_all(original, states, ["attention.out"])
    assert original._kept
    for seen, want in zip(run_all(original, states, ["attention.value"]), exact, strict=True):
        assert torch.equal(seen.taken["attention.value"], want)


def test_all_layers_in_one_pass_take_one_run(block, states) -> None:
    original = Original(block)
    run_all(original, states[:1], [])
    calls = counted(next(iter(original._copies.values())))
    found = run_all(original, states, [name for names in PASSES for name in names])
    assert set(calls.values()) == {BATCHES}
    assert all(seen.output is not None and len(seen.taken) == 4 for seen in found)


def test_a_copy_for_another_device_has_weights_of_its_own(block, states) -> None:
    original = Original(block)
    run_all(original, states, ["attention.out"])
    first = next(iter(original._copies.values()))
    other = copy.deepcopy(first)
    other.mlp.up.weight.zero_()
    other.mlp.up.bias.zero_()
    assert not torch.equal(other.mlp(states[0]), first.mlp(states[0]))
    assert torch.equal(first.mlp(states[0]), block.mlp(states[0]))


def test_a_block_whose_weights_are_elsewhere_is_copied_once(block, states) -> None:
    exact = [given_to(block, state) for state in states]
    original = Original(cpu_offload(block, execution_device=CPU))
    for seen, want in zip(run_all(original, states, ["mlp.up"]), exact, strict=True):
        assert torch.equal(seen.taken["mlp.up"], want["mlp.up"])
    assert list(original._copies) == [CPU]


def test_attention_tells_what_each_token_counts_until_enough_documents_have(block) -> None:
    states = torch.randn(DOCUMENTS + 2, 1, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))
    original = Original(block)
    run_all(original, states[:1], [])  # one batch is looked at as a whole
    calls = counted(next(iter(original._copies.values())))
    found = run_all(original, list(states), ["attention.value"])
    weights = [seen.importance["attention.value"] for seen in found]
    assert all(weight.shape == (1, TOKENS) for weight in weights)
    # attention need not run any longer
    assert calls["attention.out"] == DOCUMENTS
    asked = torch.cat([weight / weight.mean() for weight in weights[:DOCUMENTS]])
    for weight in weights[DOCUMENTS:]:
        torch.testing.assert_close(weight[0], asked.mean(0))


def test_a_batch_with_padding_is_asked_again(block, states) -> None:
    original = Original(block)
    for number in range(DOCUMENTS + 1):
        original.run(number, (states[0],), {}, frozenset(["attention.value"]), CPU)
    calls = counted(next(iter(original._copies.values())))
    kept = torch.ones(1, TOKENS, dtype=torch.bool)
    kept[:, -1] = False
    original.run(number + 1, (states[0],), {}, frozenset(["attention.value"]), CPU, kept)
    assert calls["attention.out"] == 1


def test_an_mlp_tells_nothing(block, states) -> None:
    (seen,) = run_all(Original(block), states[:1], ["mlp.up"])
    assert not seen.importance
