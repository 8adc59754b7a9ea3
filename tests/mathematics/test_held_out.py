"""The share that rounding wants, against what regressions on the data leave of other data, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from magr_gptq.reduction.held_out import LEAST, held_out_share, left_over
from magr_gptq.reduction.shrinkage import shrink_, shrinkage_of_halves

COLUMNS = 24


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens(count: int, seed: int, *, strong: int = COLUMNS, faint: float = 0.0) -> Tensor:
    """Inputs of a few strong directions, and of columns' own faint ones."""
    mix = random(COLUMNS, strong, seed=99) * torch.arange(1, strong + 1, dtype=torch.float64) ** -0.7
    return random(count, strong, seed=seed) @ mix.T + faint * random(count, COLUMNS, seed=seed + 500)


def gram(inputs: Tensor) -> Tensor:
    return inputs.T @ inputs


def obvious_left_over(hessian: Tensor, other: Tensor, rho: float) -> float:
    """Each column's inputs less the best linear guess from the later ones, by shrunken moments."""
    shrunk, total = shrink_(hessian.clone(), torch.tensor(rho)), 0.0
    for column in range(COLUMNS):
        later = slice(column + 1, None)
        guess = torch.linalg.solve(shrunk[later, later], shrunk[later, column])
        total += float(
            other[column, column] - 2 * guess @ other[later, column] + guess @ other[later, later] @ guess
        )
    return total


@pytest.mark.parametrize("rho", [0.0, 0.1, 1.0])
def test_it_is_what_regressions_on_later_columns_leave(rho: float) -> None:
    hessian, other = gram(tokens(60, 1)), gram(tokens(60, 2))
    found = left_over(hessian.float(), other.float(), torch.tensor(rho, dtype=torch.float64))
    # float32, and a ridge of 1e-6 of the mean diagonal
    assert float(found) == pytest.approx(obvious_left_over(hessian, other, rho), rel=1e-3)


@pytest.mark.parametrize("loud", [0, COLUMNS // 2, COLUMNS - 1])
def test_a_few_signs_stand_for_many_columns_also_where_one_is_loud(loud: int, monkeypatch) -> None:
    monkeypatch.setattr("magr_gptq.reduction.held_out.COLUMNS", 0)
    inputs = [tokens(60, seed, faint=0.3) for seed in (1, 2)]
    for each in inputs:
        each[:, loud] *= 30
    hessian, other = map(gram, inputs)
    found = left_over(hessian.float(), other.float(), torch.tensor(0.1))
    assert float(found) == pytest.approx(obvious_left_over(hessian, other, 0.1), rel=0.1)


# few strong directions among faint ones want more than all pairs want; where none is faint less
INPUTS = {"more": {"strong": 2, "faint": 1.0}, "less": {}}


@pytest.mark.parametrize("which", INPUTS)
def test_the_share_that_is_found_is_better_on_text_that_no_half_has_seen(which: str) -> None:
    halves = [gram(tokens(40, seed, **INPUTS[which])) for seed in (1, 2)]
    rho = shrinkage_of_halves(*halves)
    found = held_out_share(*halves, rho)
    assert (found > rho) if which == "more" else (found < rho)
    other, whole = gram(tokens(8000, 3, **INPUTS[which])), sum(halves)
    order = whole.diagonal().argsort(descending=True)
    other, whole = other[order][:, order], whole[order][:, order]
    # 6 and 10 %
    assert obvious_left_over(whole, other, float(found)) < 0.96 * obvious_left_over(whole, other, float(rho))


def test_a_share_that_suits_stays() -> None:
    halves = [gram(tokens(60, seed, faint=0.6)) for seed in (11, 12)]
    rho = shrinkage_of_halves(*halves)
    # the best of the doublings and halvings is the share itself
    assert 0.5**0.5 <= held_out_share(*halves, rho) / rho <= 2**0.5


def test_where_two_shares_are_as_good_it_does_not_matter_which_is_a_hair_better(monkeypatch) -> None:
    found = []
    for nudge in (-1e-6, 1e-6):
        left = iter([2.0, 1.0 + nudge, 1.0, 3.0])
        monkeypatch.setattr("magr_gptq.reduction.held_out._left", lambda *_, left=left: next(left))
        found.append(float(held_out_share(torch.eye(3), torch.eye(3), torch.tensor(0.1).double())))
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_a_share_beyond_one_half_is_not_pushed_to_one(monkeypatch) -> None:
    left = {0.4: 2.0, 0.8: 1.0, 1.0: 1.1}
    monkeypatch.setattr("magr_gptq.reduction.held_out._left", lambda _, rho: left[round(float(rho), 3)])
    assert float(held_out_share(torch.eye(3), torch.eye(3), torch.tensor(0.4).double())) == pytest.approx(0.8)


@pytest.mark.parametrize("rho", [0.0, LEAST / 2, 1.0, torch.nan])
def test_where_there_is_nothing_to_find_nothing_is_factored(rho: float, monkeypatch) -> None:
    monkeypatch.delattr("magr_gptq.reduction.held_out.left_over")
    given = torch.tensor(rho, dtype=torch.float64)
    assert held_out_share(torch.eye(3), torch.eye(3), given) is given


def test_sizes_and_the_order_of_halves_and_columns_change_nothing() -> None:
    first, second = (gram(tokens(80, seed, faint=0.3)) for seed in (1, 2))
    rho = shrinkage_of_halves(first, second)
    # left over in float32, of which the parabola takes differences
    wanted = pytest.approx(float(held_out_share(first, second, rho)), rel=1e-4)
    order = torch.randperm(COLUMNS, generator=torch.Generator().manual_seed(4))
    assert float(held_out_share(second, first, rho)) == wanted
    assert float(held_out_share(1e9 * first, 1e9 * second, rho)) == wanted
    assert float(held_out_share(first[order][:, order], second[order][:, order], rho)) == wanted


def test_nothing_that_is_given_changes() -> None:
    first, second = (gram(tokens(80, seed)).float() for seed in (1, 2))
    before = first.clone(), second.clone()
    held_out_share(first, second, torch.tensor(0.1, dtype=torch.float64))
    assert torch.equal(first, before[0])
    assert torch.equal(second, before[1])


def test_columns_that_no_token_reached_are_harmless() -> None:
    halves = [gram(tokens(80, seed)).float() for seed in (1, 2)]
    for half in halves:
        half[3], half[:, 3] = 0, 0
    assert held_out_share(*halves, torch.tensor(0.1, dtype=torch.float64)).isfinite()
