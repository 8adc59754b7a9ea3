"""The unquantized chain beside a toolkit's, on blocks small enough to run both by hand."""

from __future__ import annotations

import copy
import threading
from collections import UserDict
from types import MethodType
from typing import Any

import pytest
import torch
from torch import nn

from magr_gptq.reduction.target import Half
from magr_gptq.toolkits import undamaged
from magr_gptq.toolkits.block_passes import BlockPasses
from magr_gptq.toolkits.original import Original
from magr_gptq.toolkits.pairs import Pairs
from magr_gptq.toolkits.stream import BLOCK, layout_of
from magr_gptq.toolkits.undamaged import UndamagedChain

WIDTH, INNER, TOKENS, BATCHES = 8, 12, 5, 4


class Block(nn.Module):
    """Two layers that write into the stream, one by a norm's output, one by another layer's."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.first_norm, self.second_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.value, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)
        self.scale = scale

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor]:
        hidden = hidden + self.scale * self.out(self.value(self.first_norm(hidden)))
        return (hidden + self.down(self.up(self.second_norm(hidden)).relu()),)


@pytest.fixture
def blocks() -> list[Block]:
    torch.manual_seed(0)
    return [Block().requires_grad_(False) for _ in range(2)]


@pytest.fixture
def inputs() -> list[torch.Tensor]:
    return list(torch.randn(BATCHES, 1, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1)))


def damage(layer: nn.Linear) -> None:
    """What a toolkit's rounding does."""
    layer.weight.copy_((layer.weight * 4).round() / 4)


def given_to(block: Block, name: str, states: list[torch.Tensor]) -> list[torch.Tensor]:
    """What the layer is given of every batch, [tokens, in] float64."""
    seen = []
    handle = block.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
    for state in states:
        block(state)
    handle.remove()
    return [found.double() for found in seen]


def in_halves(documents: list[torch.Tensor]) -> list[torch.Tensor]:
    """Every second document; the first one is cut in two."""
    middle = len(documents[0]) // 2
    return [
        torch.cat([documents[0][:middle], *documents[2::2]]),
        torch.cat([documents[0][middle:], *documents[1::2]]),
    ]


def follow(chain: UndamagedChain, block: Block, states: list[torch.Tensor], *names: str) -> dict[str, Pairs]:
    """One pass of a toolkit that wants these layers' inputs."""
    pairs = {name: Pairs() for name in names}
    chain.open(block, names)
    hooks = [
        block.register_forward_pre_hook(lambda _, args, kw: chain.run(number, args, kw), with_kwargs=True)
    ]
    for name in names:
        pair = lambda _, args, output, name=name: chain.pair(name, pairs[name], args[0], output)  # noqa: E731
        hooks.append(block.get_submodule(name).register_forward_hook(pair))
    for number, state in enumerate(states):  # noqa: B007 - read by the hook
        block(state)
    for hook in hooks:
        hook.remove()
    chain.close()
    return pairs


def test_pairs_are_the_sums_of_both_chains_inputs(blocks, inputs) -> None:
    original = copy.deepcopy(blocks)
    chain = UndamagedChain()
    follow(chain, blocks[0], inputs, "value")
    damage(blocks[0].value)
    damage(blocks[0].up)
    follow(chain, blocks[0], inputs)
    damaged = [blocks[0](state)[0] for state in inputs]
    clean = [original[0](state)[0] for state in inputs]
    follow(chain, blocks[1], damaged, "value")
    damage(blocks[1].value)
    pairs = follow(chain, blocks[1], damaged, "up")
    xs, ys = given_to(original[1], "up", clean), given_to(blocks[1], "up", damaged)
    sides = zip(in_halves(xs), in_halves(ys), strict=True)
    for found, (x, y) in zip(pairs["up"].halves, sides, strict=True):
        torch.testing.assert_close(found.gram.double(), y.T @ y, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.lacking.double(), (x - y).T @ y, rtol=1e-3, atol=1e-4)
    assert [half.whole for half in pairs["up"].halves] == [1, 2]


def test_a_writer_is_paired_with_what_its_output_and_the_stream_lack(blocks, inputs) -> None:
    original = copy.deepcopy(blocks[0])
    chain = UndamagedChain()
    follow(chain, blocks[0], inputs, "value")
    damage(blocks[0].out)
    pairs = follow(chain, blocks[0], inputs, "up", "down")
    assert not pairs["up"].of_output
    assert pairs["down"].of_output
    streams, spoiled = given_to(original, "second_norm", inputs), given_to(blocks[0], "second_norm", inputs)
    xs, ys = given_to(original, "down", inputs), given_to(blocks[0], "down", inputs)
    weight = original.down.weight.double()
    sides = [in_halves(tokens) for tokens in (streams, spoiled, xs, ys)]
    for found, (stream, damaged, x, y) in zip(pairs["down"].halves, zip(*sides, strict=True), strict=True):
        exact = ((x - y) @ weight.T + stream - damaged).T @ y
        torch.testing.assert_close(found.lacking.double(), exact, rtol=1e-3, atol=1e-4)


def test_only_layers_whose_output_is_added_as_it_is_write(inputs) -> None:
    assert layout_of(Block(), (inputs[0],), {}).writers == {"out": BLOCK, "down": "second_norm"}
    assert layout_of(Block(scale=0.5), (inputs[0],), {}).writers == {"down": "second_norm"}


def test_an_output_that_is_lost_in_a_loud_stream_belongs_to_the_earliest_place(inputs) -> None:
    """As in bfloat16, where Gemma 3's stream reaches 98,517; a later place is not seen when the layer is."""
    loud = 1e8 * inputs[0].bfloat16()
    found = layout_of(Block().bfloat16(), (loud,), {}).writers
    assert {"out", "down"} <= set(found)
    assert set(found.values()) == {BLOCK}


def test_without_a_norm_the_block_itself_is_given_the_stream(inputs) -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(WIDTH, WIDTH)

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return hidden + self.out(hidden.relu())

    assert layout_of(Bare(), (inputs[0],), {}).writers == {"out": BLOCK}


def test_a_layer_that_returns_more_than_its_output_writes_nothing(inputs) -> None:
    class Router(nn.Linear):
        """As Llama-4's: a linear layer that returns scores and logits."""

        def forward(self, hidden):
            logits = super().forward(hidden)
            return logits.sigmoid(), logits

    class Routed(Block):
        def __init__(self) -> None:
            super().__init__()
            self.router = Router(WIDTH, 1)

        def forward(self, hidden):
            return super().forward(hidden * self.router(hidden)[0])

    assert layout_of(Routed(), (inputs[0],), {}).writers == {"out": "first_norm", "down": "second_norm"}


def test_documents_fall_into_halves_in_turn_the_first_into_both_padding_into_none(blocks, inputs) -> None:
    chain, pairs = UndamagedChain(), Pairs()
    batch = torch.cat(inputs[:3])
    kept = torch.ones(3, TOKENS, dtype=torch.bool)
    kept[1, 2:] = False
    chain.open(blocks[0], ["up"])
    chain.run(0, (batch,), {})
    chain.pair("up", pairs, torch.ones(3, TOKENS, WIDTH), torch.ones(3, TOKENS, INNER), kept)
    counted = [half.gram[0, 0] for half in pairs.halves]
    assert counted == [TOKENS // 2 + TOKENS, TOKENS - TOKENS // 2 + 2]
    assert [half.whole for half in pairs.halves] == [1, 1]


def test_a_first_document_of_one_token_makes_two_halves_too() -> None:
    """Several processes sum them up one by one, so that all must have as many."""
    pairs, one = Pairs(), torch.ones(1, 1, WIDTH)
    pairs.add(0, one, one)
    assert [float(half.gram.sum()) for half in pairs.halves] == [0, WIDTH**2]
    pairs.add(1, one, one, gram=torch.full((WIDTH, WIDTH), 2.0))
    assert [float(half.gram[0, 0]) for half in pairs.halves] == [0, 3]


@pytest.mark.parametrize("shape", [(3 * TOKENS,), (3, TOKENS, 2)], ids=["flat", "heads"])
def test_a_mask_fits_tokens_that_lie_otherwise(shape, blocks, inputs) -> None:
    chain, pairs = UndamagedChain(), Pairs()
    kept = torch.ones(3, TOKENS, dtype=torch.bool)
    kept[1, 2:] = False
    chain.open(blocks[0], ["up"])
    chain.run(0, (torch.cat(inputs[:3]),), {})
    chain._here.seen.taken["up"] = torch.ones(*shape, WIDTH)
    chain.pair("up", pairs, torch.ones(*shape, WIDTH), torch.ones(*shape, INNER), kept)
    heads = 2 if len(shape) == 3 else 1
    counted = sum(int(half.gram[0, 0]) for half in pairs.halves)
    assert counted == heads * int(kept.sum())
    assert [half.whole for half in pairs.halves] == [1, 1]


def test_several_processes_with_one_document_each_have_no_whole_one() -> None:
    """Every rank cuts its first document in two, so that both halves hold a part of all."""
    draw = torch.Generator().manual_seed(0)
    documents = [torch.randn(TOKENS, WIDTH, generator=draw) for _ in range(4)]

    def pairs_of(*numbered: torch.Tensor) -> Pairs:
        pairs = Pairs()
        for number, document in enumerate(numbered):
            pairs.add(number, document[None], document[None])
        return pairs

    def summed(mine: Pairs, others: Pairs) -> list[int]:
        sums = iter(
            [x for half in others.halves for x in (half.gram, half.lacking, torch.tensor(half.whole))]
        )
        mine.sum_up(lambda total: total.add_(next(sums)))
        return [half.whole for half in mine.halves]

    mine = pairs_of(documents[0])
    assert summed(mine, pairs_of(documents[1])) == [0, 0]
    whole = sum(half.gram for half in mine.halves)
    torch.testing.assert_close(whole, sum(document.T @ document for document in documents[:2]))
    assert summed(pairs_of(*documents[:2]), pairs_of(*documents[2:])) == [0, 2]


def test_the_first_block_is_not_damaged(blocks, inputs) -> None:
    pairs = follow(UndamagedChain(), blocks[0], inputs, "value")
    assert not any(half.lacking.any() for half in pairs["value"].halves)


def test_a_mixtures_experts_are_not_paired_and_do_not_end_their_block(inputs) -> None:
    class Mixture(Block):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList([nn.Linear(WIDTH, WIDTH)])

        def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor]:
            (mixed,) = super().forward(hidden)
            return (mixed + self.experts[0](hidden),)

    block = Mixture().requires_grad_(False)
    chain, pairs = UndamagedChain(), Pairs()
    chain.open(block, ["experts.0"])
    chain.run(0, (inputs[0],), {})
    chain.pair("experts.0", pairs, inputs[0], inputs[0])
    chain.close()
    assert pairs.halves is None
    assert chain.states == {}
    # the copy is still that of the unquantized block
    damage(block.value)
    found = follow(chain, block, inputs, "out")["out"]
    assert any(half.lacking.any() for half in found.halves)


def test_inputs_of_another_shape_are_not_paired(blocks, inputs) -> None:
    chain, pairs = UndamagedChain(), Pairs()
    chain.open(blocks[0], ["up"])
    chain.run(0, (inputs[0],), {})
    chain.pair("up", pairs, inputs[0][:, :3], inputs[0][:, :3])
    assert pairs.halves is None


def test_the_rest_of_the_original_does_not_run_once_all_is_seen(blocks, inputs) -> None:
    chain, ran = UndamagedChain(), []
    chain.open(blocks[0], ["value"])
    chain.run(0, (inputs[0],), {})  # the first batch is looked at as a whole
    original = next(iter(chain._original._copies.values()))
    original.down.register_forward_hook(lambda *_: ran.append("down"))
    chain.run(1, (inputs[1],), {})
    assert ran == []


def test_the_block_is_left_as_it_was(blocks, inputs) -> None:
    before = blocks[0](inputs[0])[0]
    follow(UndamagedChain(), blocks[0], inputs, "up", "down")
    assert torch.equal(blocks[0](inputs[0])[0], before)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in blocks[0].modules())


def test_threads_do_not_mix_their_batches(blocks, inputs) -> None:
    alone = follow(UndamagedChain(), blocks[0], inputs, "up")["up"].halves
    chain, pairs = UndamagedChain(), Pairs()
    chain.open(blocks[0], ["up"])
    barrier = threading.Barrier(BATCHES)

    def run(number: int) -> None:
        chain.run(number, (inputs[number],), {})
        barrier.wait(timeout=60)
        seen = given_to(copy.deepcopy(blocks[0]), "up", [inputs[number]])[0]
        chain.pair("up", pairs, seen.float()[None], blocks[0].up(seen.float()[None]))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(BATCHES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    grams = sorted(float(half.gram.trace()) for half in pairs.halves)
    assert grams == pytest.approx(sorted(float(half.gram.trace()) for half in alone), rel=1e-5)


class Sharing(nn.Module):
    """A block whose attention writes values for later ones, or reads those of an earlier one."""

    def __init__(self, writes: bool) -> None:
        super().__init__()
        self.norm, self.attention, self.up = nn.LayerNorm(WIDTH), nn.Module(), nn.Linear(WIDTH, WIDTH)
        if writes:
            self.attention.value = nn.Linear(WIDTH, WIDTH)
        self.attention.out = nn.Linear(WIDTH, WIDTH)
        self.attention.forward = MethodType(attend, self.attention)

    def forward(self, hidden: torch.Tensor, shared: UserDict) -> tuple[torch.Tensor]:
        hidden = hidden + self.attention(self.norm(hidden), shared)
        return (hidden + self.up(hidden),)


def attend(attention: nn.Module, hidden: torch.Tensor, shared: UserDict) -> torch.Tensor:
    if hasattr(attention, "value"):
        shared["values"] = attention.value(hidden)
    return attention.out(hidden * shared["values"])


def test_blocks_read_what_earlier_ones_of_their_own_chain_have_written(inputs) -> None:
    torch.manual_seed(0)
    blocks = [Sharing(writes).requires_grad_(False) for writes in (True, False)]
    clean, written, shared = inputs[0], UserDict(), UserDict()
    for block in copy.deepcopy(blocks):
        (clean,) = block(clean, written)
    chain, damaged = UndamagedChain(), inputs[0]
    for block in blocks:
        linear = [name for name, layer in block.named_modules() if isinstance(layer, nn.Linear)]
        # in the last pass the attention is not run again
        for name in (*sorted(linear, key=lambda name: "value" not in name), None):
            chain.open(block, [name] if name else [])
            chain.run(0, (damaged,), {"shared": shared})
            (returned,) = block(damaged, shared=shared)
            chain.close()
            if name:
                damage(block.get_submodule(name))
        damaged = returned
    assert not torch.allclose(shared["values"], written["values"])
    torch.testing.assert_close(chain.states[0], clean)


class Toolkit:
    """Goes through blocks as AutoGPTQ and optimum do, and rounds one layer after another."""

    def __init__(self, blocks: list[Block], passes: BlockPasses) -> None:
        self.blocks, self.passes, self.pairs = blocks, passes, {}

    def quantize(self, states: list[torch.Tensor], names: list[str]) -> list[torch.Tensor]:
        for block in self.blocks:
            for name in names:
                layer = block.get_submodule(name)
                self.passes.begin(layer)
                handle = layer.register_forward_hook(
                    lambda m, args, output: self.passes.add(m, args[0], output)
                )
                for state in states:
                    block(state)
                handle.remove()
                self.pairs[layer] = self.passes.end(layer)
                damage(layer)
            states = [block(state)[0] for state in states]
        return states


def test_passes_are_told_apart_by_tasks_alone(blocks, inputs) -> None:
    original = copy.deepcopy(blocks)
    blocks[0](inputs[0])  # as a toolkit does that looks for what enters the first block
    passes = BlockPasses(blocks)
    blocks[0](inputs[1])
    toolkit = Toolkit(blocks, passes)
    toolkit.quantize(inputs, ["value", "up"])
    passes.finish()
    clean = [original[0](state)[0] for state in inputs]
    found = toolkit.pairs[blocks[1].up].halves[1]
    first = copy.deepcopy(original[1])
    damage(first.value)
    damaged = [blocks[0](state)[0] for state in inputs]
    x, y = (
        in_halves(tokens)[1]
        for tokens in (given_to(original[1], "up", clean), given_to(first, "up", damaged))
    )
    torch.testing.assert_close(found.lacking.double(), (x - y).T @ y, rtol=1e-3, atol=1e-4)
    assert not any(block._forward_pre_hooks for block in blocks)


@pytest.mark.parametrize("home", [None, torch.device("cpu"), torch.device("meta")], ids=str)
def test_hidden_states_are_kept_where_the_toolkit_keeps_its_own(home, blocks, inputs, monkeypatch) -> None:
    homes, run = [], UndamagedChain.run

    def noting(self, number, args, kwargs, home=None) -> None:
        homes.append(home)
        run(self, number, args, kwargs)

    monkeypatch.setattr(UndamagedChain, "run", noting)
    Toolkit(blocks, BlockPasses(blocks, home)).quantize(inputs, ["value", "up"])
    assert homes == [home] * len(homes)
    assert len(homes) == len(blocks) * 3 * len(inputs)


def test_blocks_that_run_in_turns_have_no_chain(blocks, inputs) -> None:
    passes = BlockPasses(blocks)
    for block in blocks:
        passes.begin(block.up)
    state = inputs[0]
    for block in blocks:
        state = block(state)[0]
    assert passes.end(blocks[0].up) is None
    assert passes.end(blocks[1].up) is None


@pytest.mark.parametrize("place", ["copy", "run", "pair"])
def test_without_memory_the_chain_ends_and_the_toolkit_goes_on(place, blocks, inputs, monkeypatch) -> None:
    chain = UndamagedChain()
    assert follow(chain, blocks[0], inputs, "value")["value"].halves
    follow(chain, blocks[0], inputs)
    names = {"copy": (undamaged, "Original"), "run": (Original, "run"), "pair": (Pairs, "add")}
    real, calls = getattr(*names[place]), []

    def short(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == (1 if place == "copy" else 3):
            raise torch.OutOfMemoryError("no room")
        return real(*args, **kwargs)

    monkeypatch.setattr(*names[place], short)
    with pytest.warns(UserWarning, match="no memory for the unquantized chain"):
        pairs = follow(chain, blocks[1], inputs, "value")
    # what was summed up of some documents says too little of all
    assert pairs["value"].halves is None
    assert follow(chain, blocks[1], inputs, "up")["up"].halves is None
    follow(chain, blocks[1], inputs)
    # what enters a later block is damaged, and must not be taken for undamaged
    assert follow(chain, blocks[0], inputs, "value")["value"].halves is None
    assert not chain.states
    assert not chain._here.damaged_stream


def test_a_rank_without_memory_ends_as_the_others_would_wait_for_it(blocks, inputs, monkeypatch) -> None:
    def short(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(Pairs, "add", short)
    monkeypatch.setattr(undamaged, "is_distributed", lambda: True)
    with pytest.raises(torch.OutOfMemoryError):
        follow(UndamagedChain(), blocks[0], inputs, "value")


def test_a_thread_that_pairs_while_another_loses_the_chain_adds_nothing(blocks, inputs, monkeypatch) -> None:
    """It has its batch in hand already; what it adds later must not count."""
    chain, pairs = UndamagedChain(), Pairs()
    follow(chain, blocks[0], inputs, "value")
    chain.open(blocks[0], ["out"])
    chain.run(0, (inputs[0],), {})
    damaged, returned = torch.randn(1, TOKENS, WIDTH), torch.randn(1, TOKENS, WIDTH)
    original = chain._original
    real = original.written_at

    def lost_meanwhile(name: str) -> str | None:
        with pytest.warns(UserWarning, match="no memory"), chain._or_lost():
            raise torch.OutOfMemoryError("no room")
        return real(name)

    monkeypatch.setattr(original, "written_at", lost_meanwhile)
    chain.pair("out", pairs, damaged, returned)
    assert pairs.halves is None


def test_nothing_of_the_last_batch_is_kept_where_passes_have_no_end(blocks, inputs) -> None:
    passes = BlockPasses(blocks)
    passes.begin(blocks[0].value)
    for state in inputs:
        blocks[0](state)
    passes.end(blocks[0].value)
    assert not passes._chain._here.damaged_stream


def test_another_error_is_not_taken_for_missing_memory(blocks, inputs, monkeypatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(Pairs, "add", fails)
    with pytest.raises(RuntimeError, match="do not fit"):
        follow(UndamagedChain(), blocks[0], inputs, "value")


def test_nothing_of_the_last_batch_is_kept_while_layers_are_rounded(blocks, inputs) -> None:
    chain = UndamagedChain()
    follow(chain, blocks[0], inputs, "value")
    assert not chain._here.damaged_stream
    assert chain._here.seen.output is None
    assert not chain._here.seen.stream
    assert not chain._original._here.seen.stream


@pytest.mark.parametrize("documents", [1, 3])
def test_a_product_that_the_toolkit_has_made_is_taken(documents, blocks, inputs, monkeypatch) -> None:
    """Of a batch in both halves one half's is made, and the other has the rest."""
    exact = follow(UndamagedChain(), blocks[0], inputs, "up")["up"].halves
    made, of = [], Half.of.__func__

    def counted(cls, *args: torch.Tensor, **kwargs: Any) -> Half:
        made.append(kwargs["gram"] is None)
        return of(cls, *args, **kwargs)

    monkeypatch.setattr(Half, "of", classmethod(counted))
    chain, pairs = UndamagedChain(), Pairs()
    chain.open(blocks[0], ["up"])
    for number, state in enumerate(torch.cat(inputs).split(documents)):
        chain.run(number, (state,), {})
        given = torch.stack(given_to(copy.deepcopy(blocks[0]), "up", list(state[:, None]))).float()
        tokens = given.flatten(0, 1)
        chain.pair("up", pairs, given, blocks[0].up(given), gram=tokens.T @ tokens)
    for found, want in zip(pairs.halves, exact, strict=True):
        torch.testing.assert_close(found.gram, want.gram)
        torch.testing.assert_close(found.lacking, want.lacking)
    # alone the first document is cut in two by products of its own
    assert sum(made) == {1: 2, 3: 1}[documents]
