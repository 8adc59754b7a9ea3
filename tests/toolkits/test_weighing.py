"""How much each token counts to queries, keys and values, asked of an attention that is run."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from magr_gptq.reduction.importance import by_document, importance
from magr_gptq.toolkits.weighing import DOCUMENTS, Weighing

WIDTH, TOKENS = 8, 5
NAMES = ("q", "k", "v")


class Attention(nn.Module):
    """Causal, of one head; it scales queries in place."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, hidden: torch.Tensor, scale: float = 2.0) -> tuple[torch.Tensor, None]:
        query, key, value = self.q(hidden), self.k(hidden), self.v(hidden)
        query *= scale
        return self.out(scaled_dot_product_attention(query, key, value, is_causal=True)), None


class WithoutGradient(Attention):
    """As a kernel for inference is."""

    def forward(self, hidden: torch.Tensor, scale: float = 2.0) -> tuple[torch.Tensor, None]:
        returned, _ = super().forward(hidden, scale)
        return returned.detach(), None


def made(kind: type[Attention] = Attention) -> tuple[Attention, Weighing]:
    torch.manual_seed(0)
    attention, weighing = kind().requires_grad_(False), Weighing()
    weighing.watch(attention)
    return attention, weighing


def hidden(seed: int = 1) -> torch.Tensor:
    return torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(seed))


def by_hand(attention: Attention, state: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    outputs = [getattr(attention, name)(state).requires_grad_() for name in NAMES]
    query, key, value = outputs
    mixed = scaled_dot_product_attention(2 * query, key, value, is_causal=True)
    (found,) = importance(attention.out(mixed), [outputs], u)
    return found


@pytest.mark.parametrize("inference", [False, True])
def test_layers_with_one_input_have_the_importance_of_all(inference: bool) -> None:
    attention, weighing = made()
    u = torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(7))
    exact = by_hand(attention, hidden(), u)
    with torch.inference_mode(inference), torch.no_grad():
        state = hidden()
        returned, found = weighing.run(attention.forward, (state,), {"scale": 2.0}, ["q", "v"], 7, None)
    assert set(found) == {"q", "v"}
    for each in found.values():
        torch.testing.assert_close(each, exact)
    assert not returned[0].requires_grad
    torch.testing.assert_close(returned[0], attention(hidden())[0])


def test_nobody_reads_what_padding_returns() -> None:
    attention, weighing = made()
    kept = torch.ones(2, TOKENS, dtype=torch.bool)
    kept[:, -2:] = False
    _, found = weighing.run(attention.forward, (hidden(),), {}, ["v"], 7, kept)
    # causal: nothing that is kept depends on it
    assert not found["v"][:, -2:].any()
    assert found["v"][:, :-2].all()


def test_a_layer_is_not_watched_otherwise() -> None:
    attention, weighing = made()
    weighing.run(attention.forward, (hidden(),), {}, ["v"], 7, None)
    assert not attention(hidden())[0].requires_grad


def test_where_there_is_no_gradient_all_tokens_count_alike_from_then_on() -> None:
    attention, weighing = made(WithoutGradient)
    with pytest.warns(UserWarning, match="attention without a gradient: they count alike from here on"):
        returned, found = weighing.run(attention.forward, (hidden(),), {}, ["v"], 7, None)
    assert (found, weighing.possible) == ({}, False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(returned[0], attention(hidden())[0])


def test_without_memory_for_the_way_back_all_tokens_count_alike(monkeypatch) -> None:
    attention, weighing = made()

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr("magr_gptq.toolkits.weighing.importance", full)
    with pytest.warns(UserWarning, match="no memory to weigh tokens"):
        returned, found = weighing.run(attention.forward, (hidden(),), {}, ["v"], 7, None)
    assert (found, weighing.possible) == ({}, False)
    assert torch.equal(returned[0], attention(hidden())[0])


@pytest.mark.parametrize("inference", [False, True])
def test_what_attention_writes_for_later_blocks_is_there_and_holds_no_graph(inference: bool) -> None:
    attention, weighing = made()

    def forward(state: torch.Tensor, *, shared: dict[str, torch.Tensor]) -> torch.Tensor:
        shared["value"] = value = attention.v(state) + shared["earlier"]
        return attention.out(value)

    with torch.inference_mode(inference):
        shared = {"earlier": hidden(3)}
        _, found = weighing.run(forward, (hidden(),), {"shared": shared}, ["v"], 7, None)
    assert not shared["value"].requires_grad
    torch.testing.assert_close(shared["value"], attention.v(hidden()) + hidden(3))
    assert set(found) == {"v"}


def test_a_layer_that_is_not_called_is_not_weighed() -> None:
    attention, weighing = made()
    run = lambda state: attention.out(attention.v(state))  # noqa: E731
    _, found = weighing.run(run, (hidden(),), {}, ["q", "v"], 7, None)
    assert set(found) == {"v"}
    assert weighing.run(attention.out.forward, (hidden(),), {}, ["q"], 7, None)[1] == {}
    assert weighing.possible


def asked(weighing: Weighing, attention: Attention, kept: torch.Tensor | None = None) -> list[torch.Tensor]:
    """Of batches of two documents, until there would be enough."""
    runs = [
        weighing.run(attention.forward, (hidden(seed),), {}, ["v"], seed, kept)
        for seed in range(DOCUMENTS // 2)
    ]
    return [found["v"] for _, found in runs]


def test_once_enough_documents_have_told_others_count_by_the_place() -> None:
    attention, weighing = made()
    assert weighing.known(["v"], 3, TOKENS) == {}
    told = torch.cat([by_document(each) for each in asked(weighing, attention)])
    assert len(told) == DOCUMENTS
    (found,) = weighing.known(["v"], 3, TOKENS).values()
    torch.testing.assert_close(found, told.mean(0).expand(3, -1))
    # those of another length have to be asked, as has another layer
    assert weighing.known(["v"], 3, TOKENS - 1) == {}
    assert weighing.known(["v", "q"], 3, TOKENS) == {}


def test_documents_with_padding_tell_nothing_of_a_place() -> None:
    attention, weighing = made()
    kept = torch.ones(2, TOKENS, dtype=torch.bool)
    kept[0, -1] = False
    asked(weighing, attention, kept)
    assert weighing.known(["v"], 3, TOKENS) == {}
