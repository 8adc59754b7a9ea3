"""The shrinkage of a Hessian, against what stored tokens say in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from magr_gptq.reduction.shrinkage import even_, shrink_, shrinkage, shrinkage_of_halves


def tokens_of(count: int, columns: int, seed: int = 0) -> Tensor:
    """Correlated Gaussian tokens, float64."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    mix *= torch.arange(1, columns + 1, dtype=torch.float64) ** -1.0
    return torch.randn(count, columns, generator=generator, dtype=torch.float64) @ mix.T


def obvious_share(tokens: Tensor) -> float:
    """ρ from correlations, pair by pair."""
    count, columns = tokens.shape
    variance = cost = 0.0
    for i in range(columns):
        for j in range(columns):
            if i != j:
                r = float(tokens[:, i] @ tokens[:, j] / (tokens[:, i].norm() * tokens[:, j].norm()))
                variance += (1 + r * r) / count
                cost += r * r
    return min(1.0, variance / cost)


def share_of(tokens: Tensor) -> float:
    return float(shrinkage(tokens.T @ tokens, len(tokens)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("count", "columns"), [(2, 5), (7, 20), (40, 8), (500, 16)])
def test_it_is_the_share_that_the_pairs_give(count: int, columns: int, dtype: torch.dtype) -> None:
    tokens = tokens_of(count, columns)
    found = float(shrinkage((3 * tokens.T @ tokens).to(dtype), count))
    assert found == pytest.approx(obvious_share(tokens), rel=1e-4)


def test_most_of_these_shares_are_neither_zero_nor_one() -> None:
    assert all(0.001 < obvious_share(tokens_of(count, 20)) < 0.9 for count in (7, 20, 100, 500))


def test_shrunk_correlations_are_as_near_to_the_truth_as_the_best_fixed_share_brings_them() -> None:
    columns, count = 16, 24
    mix = torch.eye(columns, dtype=torch.float64) + 0.3 * tokens_of(columns, columns, 5).tril(-1).clamp(-1, 1)
    truth = mix @ mix.T
    truth = truth / truth.diagonal().sqrt().outer(truth.diagonal().sqrt())
    generator = torch.Generator().manual_seed(6)
    fixed = torch.linspace(0, 1, 51, dtype=torch.float64)
    errors, own = torch.zeros(51, dtype=torch.float64), 0.0

    def error(hessian: Tensor) -> float:
        scale = hessian.diagonal().sqrt()
        return float((hessian / scale.outer(scale) - truth).square().sum())

    for _ in range(200):
        sample = torch.randn(count, columns, generator=generator, dtype=torch.float64) @ mix.T
        hessian = sample.T @ sample
        errors += torch.tensor([error(shrink_(hessian.clone(), rho)) for rho in fixed])
        own += error(shrink_(hessian.clone(), shrinkage(hessian, count)))
    assert 0.05 < float(fixed[errors.argmin()]) < 0.9
    assert own < 1.1 * float(errors.min()) < 0.6 * float(errors[0])


@given(exponent=st.floats(-12, 12), seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_neither_the_factor_nor_the_scale_of_single_columns_matters(exponent: float, seed: int) -> None:
    tokens = tokens_of(30, 12, seed)
    generator = torch.Generator().manual_seed(seed)
    loud = tokens * 10 ** (3 * torch.rand(12, generator=generator, dtype=torch.float64))
    assert float(shrinkage(10**exponent * loud.T @ loud, 30)) == pytest.approx(share_of(tokens), rel=1e-9)


def test_a_loud_column_leaves_the_others_as_they_are() -> None:
    tokens = tokens_of(30, 12)
    loud = tokens.clone()
    loud[:, 3] *= 1000
    rho = shrinkage(tokens.T @ tokens, 30)
    others = [column for column in range(12) if column != 3]
    quiet, found = shrink_(tokens.T @ tokens, rho), shrink_(loud.T @ loud, rho)
    torch.testing.assert_close(found[others][:, others], quiet[others][:, others])


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_a_float32_hessian_of_any_size_has_the_same_share(factor: float) -> None:
    tokens = tokens_of(30, 12)
    found = float(shrinkage((factor * tokens.T @ tokens).float(), 30))
    assert found == pytest.approx(share_of(tokens), rel=1e-4)


def test_pairs_are_shrunk_and_columns_stay_to_the_bit() -> None:
    tokens = tokens_of(30, 12)
    hessian = (tokens.T @ tokens).float()
    shrunk = shrink_(hessian.clone(), torch.tensor(0.25, dtype=torch.float64))
    assert torch.equal(shrunk.diagonal(), hessian.diagonal())
    torch.testing.assert_close(shrunk, 0.75 * hessian + 0.25 * hessian.diagonal().diag())


def test_columns_that_no_input_reached_count_as_none_and_stay_zero() -> None:
    tokens = tokens_of(30, 12)
    padded = torch.zeros(30, 15, dtype=torch.float64)
    padded[:, 2:14] = tokens
    assert share_of(padded) == pytest.approx(share_of(tokens), rel=1e-12)
    shrunk = shrink_(padded.T @ padded, torch.tensor(0.5))
    assert not shrunk[[0, 1, 14]].any()


def test_many_tokens_leave_the_hessian_alone() -> None:
    tokens = tokens_of(200, 12)
    few, many = shrinkage(tokens.T @ tokens, 200), shrinkage(tokens.T @ tokens, 200_000)
    assert float(many) == pytest.approx(float(few) / 1000, rel=1e-9)


def test_a_single_token_says_nothing_of_pairs() -> None:
    assert share_of(tokens_of(1, 12)) == 1
    assert float(shrinkage(torch.eye(4), 1000)) == 1
    assert not shrink_(torch.zeros(3, 3), shrinkage(torch.zeros(3, 3), 5)).any()


def test_a_batch_is_as_one_after_another() -> None:
    tokens = torch.stack([tokens_of(30, 12, seed) for seed in range(3)])
    hessians = tokens.mT @ tokens
    shares = shrinkage(hessians, 30)
    assert shares.tolist() == pytest.approx([share_of(one) for one in tokens], rel=1e-12)
    for one, rho, together in zip(hessians, shares, shrink_(hessians.clone(), shares), strict=True):
        torch.testing.assert_close(shrink_(one.clone(), rho), together)


def obvious_evenness(tokens: Tensor) -> float:
    """λ before it is bounded by ρ, entry by entry."""
    sizes = [float(column @ column) for column in tokens.T]
    mean = sum(sizes) / len(sizes)
    return 2 / len(tokens) * sum(h * h for h in sizes) / sum((h - mean) ** 2 for h in sizes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("count", "columns"), [(7, 20), (40, 8), (500, 16)])
def test_the_diagonal_goes_to_its_mean_by_the_share_that_its_entries_give(count, columns, dtype) -> None:
    tokens = tokens_of(count, columns)
    share, hessian = obvious_evenness(tokens), (tokens.T @ tokens).to(dtype)
    assert 0 < share < 0.9
    found = even_(hessian.clone(), torch.tensor(0.95), count)
    mean = hessian.diagonal().mean()
    wanted = hessian - share * hessian.diagonal().diag() + share * mean * torch.eye(columns, dtype=dtype)
    torch.testing.assert_close(found, wanted)
    assert float(found.trace()) == pytest.approx(float(hessian.trace()), rel=1e-5)


def test_no_more_of_the_diagonal_is_moved_than_pairs_were_shrunk_by() -> None:
    tokens = tokens_of(2, 30)
    hessian = tokens.T @ tokens
    rho = shrinkage(hessian, 2000)
    assert float(rho) < obvious_evenness(tokens) / 1000 < 1
    found = even_(shrink_(hessian.clone(), rho), rho, 2)
    mean = hessian.diagonal().mean() * torch.eye(30, dtype=torch.float64)
    torch.testing.assert_close(found, (1 - rho) * hessian + rho * mean)
    # of rank 2 before
    assert float(torch.linalg.eigvalsh(found).min()) > 0


def test_a_diagonal_that_went_to_its_mean_is_as_near_to_the_truth_as_the_best_fixed_share_brings_it() -> None:
    count, columns = 12, 16
    truth = torch.linspace(0.2, 2, columns, dtype=torch.float64)
    generator = torch.Generator().manual_seed(6)
    fixed = torch.linspace(0, 1, 51, dtype=torch.float64)
    errors, own = torch.zeros(51, dtype=torch.float64), 0.0
    for _ in range(300):
        sample = torch.randn(count, columns, generator=generator, dtype=torch.float64) * truth.sqrt()
        found = sample.square().mean(0)
        moved = found + fixed[:, None] * (found.mean() - found)
        errors += (moved - truth).square().sum(-1)
        evened = even_(found.diag(), torch.tensor(1.0), count).diagonal()
        own += float((evened - truth).square().sum())
    assert 0.1 < float(fixed[errors.argmin()]) < 0.9
    assert own < 1.2 * float(errors.min())
    assert own < 0.7 * float(errors[0])


def test_columns_that_no_input_reached_stay_out_of_the_mean_and_zero() -> None:
    tokens = tokens_of(30, 12)
    padded = torch.zeros(30, 15, dtype=torch.float64)
    padded[:, 2:14] = tokens
    rho = torch.tensor(0.9)
    found = even_(padded.T @ padded, rho, 30)
    torch.testing.assert_close(found[2:14, 2:14], even_(tokens.T @ tokens, rho, 30))
    assert not found[[0, 1, 14]].any()
    assert not even_(torch.zeros(3, 3), rho, 30).any()


def test_equal_columns_stay_and_many_tokens_leave_the_diagonal_alone() -> None:
    assert torch.equal(even_(torch.eye(4), torch.tensor(0.5), 3), torch.eye(4))
    hessian = torch.tensor([1.0, 3.0]).diag()
    few, many = (even_(hessian.clone(), torch.tensor(1.0), n).diagonal()[0] - 1 for n in (100, 100_000))
    assert float(many) == pytest.approx(float(few) / 1000, rel=1e-2)


def test_a_batch_of_diagonals_is_as_one_after_another() -> None:
    tokens = torch.stack([tokens_of(30, 12, seed) for seed in range(3)])
    hessians, rho = tokens.mT @ tokens, torch.tensor([0.01, 0.2, 0.9])
    together = even_(hessians.clone(), rho, 30)
    for one, share, found in zip(hessians, rho, together, strict=True):
        torch.testing.assert_close(even_(one.clone(), share, 30), found)


def obvious_share_of_halves(first: Tensor, second: Tensor) -> float:
    """What two halves of the tokens agree on, pair by pair."""
    signal = power = 0.0
    both = torch.cat((first, second))
    for i in range(first.shape[1]):
        for j in range(first.shape[1]):
            if i != j:
                r, r1, r2 = (
                    float(x[:, i] @ x[:, j] / (x[:, i].norm() * x[:, j].norm()))
                    for x in (both, first, second)
                )
                signal += r1 * r2
                power += r * r
    return min(1.0, max(0.0, 1 - signal / power))


def share_of_halves(first: Tensor, second: Tensor) -> float:
    return float(shrinkage_of_halves(first.T @ first, second.T @ second))


@pytest.mark.parametrize(("count", "columns"), [(4, 5), (14, 20), (40, 8), (500, 16), (600, 300)])
def test_of_halves_it_is_what_they_disagree_on(count: int, columns: int) -> None:
    first, second = tokens_of(count, min(columns, 20)).split(count // 2)
    assert share_of_halves(first, second) == pytest.approx(obvious_share_of_halves(first, second), abs=1e-6)


def test_of_halves_of_independent_tokens_it_is_that_of_their_number() -> None:
    """Where correlations are weak; the number's formula overstates the variance of strong ones."""
    generator = torch.Generator().manual_seed(8)
    by_halves, by_number = 0.0, 0.0
    for _ in range(60):
        tokens = torch.randn(400, 8, generator=generator, dtype=torch.float64)
        tokens += 0.4 * torch.randn(400, 1, generator=generator, dtype=torch.float64)
        by_halves += share_of_halves(*tokens.split(200))
        by_number += share_of(tokens)
    assert by_halves == pytest.approx(by_number, rel=0.1)


def test_of_halves_it_knows_that_a_documents_tokens_are_alike() -> None:
    """Every token four times over says no more than once, but the number of tokens is four times as large."""
    documents = tokens_of(40, 8)
    alike = documents.repeat_interleave(4, 0)
    assert share_of_halves(*alike.split(80)) == pytest.approx(share_of_halves(*documents.split(20)), rel=1e-6)
    assert share_of(alike) < 0.3 * share_of(documents)


def test_of_halves_without_any_pair_it_is_whole() -> None:
    assert share_of_halves(torch.zeros(4, 3), torch.zeros(4, 3)) == 1
    assert float(shrinkage_of_halves(torch.eye(3), 2 * torch.eye(3))) == 1


def test_of_halves_neither_a_factor_nor_a_columns_scale_matters() -> None:
    first, second = tokens_of(40, 8).split(20)
    scales = torch.logspace(-3, 3, 8, dtype=torch.float64)
    assert share_of_halves(first * scales, second * scales) == pytest.approx(
        share_of_halves(first, second), rel=1e-6
    )
