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
    with pytest.warns(UserWarning, match="tokens count alike in attention that has no gradient"):
        returned, found = weighing.run(attention.forward, (hidden(),), {}, ["v"], 7, None)
    assert (found, weighing.possible) == ({}, False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(returned[0], attention(hidden())[0])


def test_missing_memory_is_not_taken_for_a_missing_gradient() -> None:
    _, weighing = made()

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(torch.OutOfMemoryError):
        weighing.run(full, (hidden(),), {}, ["v"], 7, None)
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
