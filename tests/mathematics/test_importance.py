"""The importance of tokens, against the Jacobian of an attention that is small enough to have one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from magr_gptq.reduction.importance import by_document, importance

TOKENS, WIDTH = 6, 4


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal, one head, [tokens, width]; the first key is loud, so that all attend to it."""
    scores = (query @ key.T).tril().masked_fill(torch.ones(TOKENS, TOKENS).triu(1).bool(), -torch.inf)
    scores = scores + 3 * torch.eye(1, TOKENS)
    return scores.softmax(-1) @ value


def parts() -> list[Tensor]:
    return [random(TOKENS, WIDTH, seed=seed).requires_grad_() for seed in range(3)]


def test_it_is_the_root_of_the_squared_gradient_of_all_layers_with_an_input() -> None:
    given, u = parts(), random(TOKENS, WIDTH, seed=9)
    jacobians = torch.func.jacrev(attention, argnums=(0, 1, 2))(*(part.detach() for part in given))
    gradients = [torch.einsum("td,tdsf->sf", u, jacobian) for jacobian in jacobians]
    squares = [gradient.square().sum(-1) for gradient in gradients]
    (together,) = importance(attention(*given), [given], u)
    query, value = importance(attention(*given), [given[:1], given[2:]], u)
    torch.testing.assert_close(together.double(), sum(squares).sqrt(), rtol=1e-6, atol=0)
    torch.testing.assert_close(query.double(), squares[0].sqrt(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(value.double(), squares[2].sqrt(), rtol=1e-6, atol=0)


def test_its_square_is_on_average_what_attention_loses_of_an_error() -> None:
    given, many = parts(), 4000
    jacobian = torch.func.jacrev(attention, argnums=2)(*(part.detach() for part in given))
    squares = [
        importance(attention(*given), [given[2:]], random(TOKENS, WIDTH, seed=seed))[0].double().square()
        for seed in range(many)
    ]
    exact = jacobian.square().sum((0, 1, 3))
    # a sum of WIDTH or more squares has a relative deviation of at most √(2/WIDTH)
    torch.testing.assert_close(
        torch.stack(squares).mean(0), exact, rtol=4 * (2 / WIDTH / many) ** 0.5, atol=0
    )


def test_the_token_that_all_attend_to_counts_most() -> None:
    given = parts()
    (found,) = importance(attention(*given), [given[1:]], random(TOKENS, WIDTH, seed=9))
    assert found.argmax() == 0


def test_what_nothing_depends_on_has_none() -> None:
    given, idle = parts(), random(TOKENS, WIDTH, seed=7).requires_grad_()
    assert importance(attention(*given), [[idle], given], random(TOKENS, WIDTH, seed=9))[0] is None


def test_every_document_counts_as_much_as_its_tokens_are() -> None:
    found = by_document(torch.tensor([[1.0, 3.0, 2.0], [400.0, 100.0, 100.0]]))
    torch.testing.assert_close(found, torch.tensor([[0.5, 1.5, 1.0], [2.0, 0.5, 0.5]]))


def test_padding_is_not_counted() -> None:
    kept = torch.tensor([[False, True, True]])
    found = by_document(torch.tensor([[99.0, 1.0, 3.0]]), kept)
    torch.testing.assert_close(found[kept], torch.tensor([0.5, 1.5]))


@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
def test_a_document_without_a_usable_importance_counts_as_if_it_had_none(value: float) -> None:
    found = by_document(torch.tensor([[value, value], [1.0, 3.0]]))
    torch.testing.assert_close(found, torch.tensor([[1.0, 1.0], [0.5, 1.5]]))
