"""The target of the unquantized chain, against what stored inputs of both chains say in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from magr_gptq.reduction import target
from magr_gptq.reduction.held_out import held_out_share
from magr_gptq.reduction.shrinkage import shrinkage_of_halves
from magr_gptq.reduction.target import (
    Half,
    Target,
    correction,
    cross_fitted,
    shrinkage_by_documents,
    target_of,
    weighed_,
)

COLUMNS, ROWS = 24, 10


class Chains(NamedTuple):
    """Inputs of one half's tokens, unquantized and damaged, [tokens, columns] float64."""

    clean: Tensor
    damaged: Tensor
    stream: Tensor | None = None

    def half(self, factor: float = 1.0) -> Half:
        damaged, lacking = self.damaged, self.clean - self.damaged
        if self.stream is not None:
            lacking = missing(weight_of(), self)
        return Half.of(
            factor**0.5 * damaged.float(), factor**0.5 * lacking.float(), of_output=self.stream is not None
        )


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weight_of(seed: int = 0) -> Tensor:
    return random(ROWS, COLUMNS, seed=seed)


def chains(
    tokens: int = 400, seed: int = 1, damage: float = 0.3, noise: float = 0.1
) -> tuple[Chains, Chains]:
    """Two halves whose damage is partly a linear map of the inputs, which a target can make up for."""
    identity = torch.eye(COLUMNS, dtype=torch.float64)
    mix = random(COLUMNS, COLUMNS, seed=99) * torch.arange(1, COLUMNS + 1, dtype=torch.float64) ** -0.7
    spoil = identity + damage * random(COLUMNS, COLUMNS, seed=98) / COLUMNS**0.5
    clean = random(2 * tokens, COLUMNS, seed=seed) @ mix.T
    damaged = clean @ spoil.T + noise * random(2 * tokens, COLUMNS, seed=seed + 1000)
    return Chains(clean[:tokens], damaged[:tokens]), Chains(clean[tokens:], damaged[tokens:])


def halves(*parts: Chains, factor: float = 1.0) -> list[Half]:
    return [part.half(factor) for part in parts]


def obvious_correction(weight: Tensor, part: Chains, rho: float) -> Tensor:
    """Ridge regression of what the outputs lack on the damaged inputs, both moments shrunk by ρ."""
    gram = part.damaged.T @ part.damaged
    ridge = rho * gram.diagonal().diag()
    return torch.linalg.solve((1 - rho) * gram + ridge, (1 - rho) * part.damaged.T @ missing(weight, part)).T


def rho_of(first: Chains, second: Chains) -> float:
    grams = [part.damaged.T @ part.damaged for part in (first, second)]
    return float(held_out_share(*grams, shrinkage_of_halves(*grams)))


def test_of_one_document_the_share_is_that_of_half_of_its_tokens() -> None:
    first, second = chains(tokens=30)
    parts = halves(first, second)
    # in float64, the package's in float32
    rho = rho_of(first, second)
    assert float(shrinkage_by_documents(parts)) == pytest.approx(rho, rel=1e-4)
    cut = [replace(part, whole=0) for part in parts]
    assert float(shrinkage_by_documents(cut)) == pytest.approx(2 * rho / (1 + rho), rel=1e-4)
    assert float(shrinkage_by_documents([cut[0], parts[1]])) == pytest.approx(rho, rel=1e-4)


def test_a_correction_by_one_document_is_shrunk_further() -> None:
    parts = halves(*chains(tokens=100))
    cut = [replace(part, whole=0) for part in parts]
    far, near = ((target_of(weight_of(), some).weight - weight_of()).norm() for some in (parts, cut))
    assert 0 < near < 0.99 * far


def missing(weight: Tensor, part: Chains) -> Tensor:
    """What the layer's output lacks, [tokens, rows]."""
    lost = (part.clean - part.damaged) @ weight.T
    return lost if part.stream is None else lost + part.stream


def held_out_loss(weight: Tensor, part: Chains, change: Tensor) -> float:
    return float((missing(weight, part) - part.damaged @ change.T).square().sum())


def obvious_target(weight: Tensor, first: Chains, second: Chains) -> Target:
    """The strength by the vertex of the parabola through three held-out losses."""
    rho = rho_of(first, second)
    found = [obvious_correction(weight, part, 2 * rho / (1 + rho)) for part in (first, second)]
    zero, half, one = (
        held_out_loss(weight, second, a * found[0]) + held_out_loss(weight, first, a * found[1])
        for a in (0.0, 0.5, 1.0)
    )
    curvature = 2 * (zero - 2 * half + one)
    by_halves = min(1.0, max(0.0, (zero + curvature - one) / (2 * curvature)))
    strength = 2 * by_halves / (1 + by_halves)
    both = Chains(*(None if a is None else torch.cat((a, b)) for a, b in zip(first, second, strict=True)))
    return Target(weight + strength * obvious_correction(weight, both, rho), strength)


@pytest.mark.parametrize(("tokens", "damage", "noise"), [(400, 0.3, 0.1), (40, 0.3, 0.3), (15, 0.1, 0.5)])
def test_it_is_what_stored_inputs_say(tokens: int, damage: float, noise: float) -> None:
    parts = chains(tokens, damage=damage, noise=noise)
    found, wanted = target_of(weight_of(), halves(*parts)), obvious_target(weight_of(), *parts)
    assert found.strength == pytest.approx(wanted.strength, rel=1e-3)
    torch.testing.assert_close(found.weight.double(), wanted.weight, rtol=1e-3, atol=1e-3)
    assert found.weight.dtype == torch.float32


def test_a_layer_that_writes_into_the_stream_makes_up_for_that_too() -> None:
    mix = 0.2 * random(ROWS, COLUMNS, seed=6)
    parts = [part._replace(stream=part.damaged @ mix.T) for part in chains()]
    found, wanted = target_of(weight_of(), halves(*parts)), obvious_target(weight_of(), *parts)
    torch.testing.assert_close(found.weight.double(), wanted.weight, rtol=1e-3, atol=1e-3)
    # the stream's damage is a linear map of the inputs, so nearly all of it is made up for
    without = target_of(weight_of(), halves(*chains()))
    left = parts[0].damaged @ ((found.weight - without.weight).double() - mix).T
    assert left.square().sum() < 0.02 * (parts[0].damaged @ mix.T).square().sum()


def test_some_of_many_rows_are_enough_for_the_strength(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, given = random(400, COLUMNS, seed=0), halves(*chains(30, damage=0.1, noise=0.5))
    some = target_of(weight, given).strength
    monkeypatch.setattr(target, "ROWS", 400)
    every = target_of(weight, given).strength
    assert some != every
    assert some == pytest.approx(every, abs=0.03)


def test_the_strength_for_all_documents_is_nearer_to_the_best_than_that_of_a_half() -> None:
    """Over many draws; the best is that on documents that were never seen."""
    weight, chosen, best = weight_of(), [], []
    for seed in range(20):
        first, second = chains(30, seed=seed, damage=0.1, noise=0.5)
        unseen, _ = chains(4000, seed=seed + 500, damage=0.1, noise=0.5)
        chosen.append(target_of(weight, halves(first, second)).strength)
        both = Chains(torch.cat((first.clean, second.clean)), torch.cat((first.damaged, second.damaged)))
        change = obvious_correction(weight, both, rho_of(first, second))
        output = unseen.damaged @ change.T
        best.append(float((missing(weight, unseen) * output).sum() / output.square().sum()))
    mean = sum(chosen) / 20
    by_halves = sum(a / (2 - a) for a in chosen) / 20
    assert by_halves < mean < sum(best) / 20
    assert sum(best) / 20 - mean < 0.5 * (sum(best) / 20 - by_halves)


def test_the_strengths_of_these_examples_differ() -> None:
    strengths = [
        obvious_target(weight_of(), *chains(tokens, damage=damage, noise=noise)).strength
        for tokens, damage, noise in ((400, 0.3, 0.1), (40, 0.3, 0.3), (15, 0.1, 0.5))
    ]
    assert strengths == sorted(strengths, reverse=True)
    assert strengths[0] > 0.9
    assert 0.05 < strengths[-1] < 0.8


def test_without_ridge_the_distance_to_the_target_is_the_loss_but_for_a_constant() -> None:
    """‖XŴᵀ − X̂Qᵀ‖² = ‖W* − Q‖²_Ĥ + const at α = 1 and ρ = 0."""
    weight, (part, _) = weight_of(), chains()
    gram = part.damaged.T @ part.damaged
    missing = weight @ (part.clean - part.damaged).T @ part.damaged
    nearest = weight + correction(missing.float(), gram.float(), torch.tensor(0.0)).double()
    constants = []
    for seed in range(3):
        quantized = weight + 0.3 * random(ROWS, COLUMNS, seed=seed)
        loss = (part.clean @ weight.T - part.damaged @ quantized.T).square().sum()
        distance = ((nearest - quantized) @ gram * (nearest - quantized)).sum()
        constants.append(float(loss - distance))
        assert constants[-1] < 0.9 * float(loss)
    assert constants == pytest.approx([constants[0]] * 3, rel=1e-3)


def test_a_whole_share_corrects_nothing() -> None:
    part = chains()[0].half()
    assert not correction(weight_of().float() @ part.lacking, part.gram, torch.tensor(1.0)).any()


def test_undamaged_inputs_leave_the_weight_exactly() -> None:
    parts = [Chains(part.clean, part.clean) for part in chains()]
    found = target_of(weight_of(), halves(*parts))
    assert found.strength == 0
    assert torch.equal(found.weight, weight_of().float())


def test_damage_that_is_independent_of_the_inputs_is_not_corrected() -> None:
    strengths = []
    for seed in range(20):
        parts = [
            Chains(part.damaged + random(*part.damaged.shape, seed=seed + 50 * number), part.damaged)
            for number, part in enumerate(chains(60, seed=seed))
        ]
        strengths.append(target_of(weight_of(), halves(*parts)).strength)
    assert sum(strengths) / len(strengths) < 0.05
    assert max(strengths) < 0.4


def test_fewer_tokens_take_a_smaller_share() -> None:
    few, many = (
        target_of(weight_of(), halves(*chains(tokens, damage=0.1, noise=0.5))).strength
        for tokens in (8, 2000)
    )
    assert few < 0.75 < 0.9 < many


def test_no_share_of_the_held_out_loss_is_better() -> None:
    weight, (first, second) = weight_of(), chains(20, damage=0.1, noise=0.4)
    found = [obvious_correction(weight, part, rho_of(first, second)) for part in (first, second)]
    given = halves(first, second)
    lost = [half.missing(weight.float()) for half in given]
    strength = cross_fitted([change.float() for change in found], lost, [half.gram for half in given])

    def loss(a: float) -> float:
        return held_out_loss(weight, second, a * found[0]) + held_out_loss(weight, first, a * found[1])

    assert 0 < strength < 1
    assert loss(strength) <= min(loss(a / 50) for a in range(51))


def test_halves_may_change_places() -> None:
    one, other = halves(*chains(50))
    found, swapped = target_of(weight_of(), (one, other)), target_of(weight_of(), (other, one))
    assert found.strength == pytest.approx(swapped.strength, rel=1e-6)
    torch.testing.assert_close(found.weight, swapped.weight)


@pytest.mark.parametrize("factor", [2.0**-30, 2.0**20, 3.0])
def test_a_factor_that_all_sums_have_in_common_changes_nothing(factor: float) -> None:
    """Toolkits divide by the number of tokens, or don't; the moments have a unit of their own."""
    given = halves(*chains(50))
    scaled = [replace(half, gram=factor * half.gram, lacking=factor * half.lacking) for half in given]
    found, wanted = target_of(weight_of(), scaled), target_of(weight_of(), given)
    assert found.strength == pytest.approx(wanted.strength, rel=1e-5)
    # a correlation matrix of condition 1e4, factored in float32
    torch.testing.assert_close(found.weight, wanted.weight, rtol=1e-3, atol=1e-4)


def test_inputs_in_another_unit_change_nothing() -> None:
    parts = chains(50)
    found, wanted = target_of(weight_of(), halves(*parts, factor=1e4)), target_of(weight_of(), halves(*parts))
    torch.testing.assert_close(found.weight, wanted.weight, rtol=1e-3, atol=1e-4)


def test_columns_in_another_order_give_the_target_in_that_order() -> None:
    parts, order = chains(50), torch.randperm(COLUMNS, generator=torch.Generator().manual_seed(5))
    moved = [Chains(part.clean[:, order], part.damaged[:, order]) for part in parts]
    found, wanted = target_of(weight_of()[:, order], halves(*moved)), target_of(weight_of(), halves(*parts))
    assert found.strength == pytest.approx(wanted.strength, rel=1e-4)
    torch.testing.assert_close(found.weight, wanted.weight[:, order], rtol=1e-4, atol=1e-4)


def test_sums_of_batches_add_up() -> None:
    first, second = (part._replace(stream=random(60, ROWS, seed=9)) for part in chains(60))
    batches = [Chains(*(side[start : start + 20] for side in first)).half() for start in (0, 20, 40)]
    summed = batches[0].add_(batches[1]).add_(batches[2])
    assert summed.whole == 3
    found = target_of(weight_of(), (summed, second.half()))
    wanted = target_of(weight_of(), halves(first, second))
    torch.testing.assert_close(found.weight, wanted.weight, rtol=1e-4, atol=1e-4)


def test_a_token_of_importance_two_counts_as_two_tokens() -> None:
    one, _ = chains(20)
    counts = torch.arange(20) % 3
    repeated = Chains(*(part.repeat_interleave(counts, 0) for part in one[:2]))
    damaged, lacking = one.damaged.float(), (one.clean - one.damaged).float()
    found, wanted = Half.of(damaged, lacking, importance=counts.float()), repeated.half()
    torch.testing.assert_close(found.gram, wanted.gram)
    torch.testing.assert_close(found.lacking, wanted.lacking)
    assert (found.weighed, wanted.weighed) == (True, False)


def test_a_product_of_tokens_that_count_alike_does_not_serve_others() -> None:
    one, _ = chains(20)
    given = one.damaged.float(), (one.clean - one.damaged).float()
    importance = random(20, seed=3).square().float()
    found = Half.of(*given, gram=torch.eye(COLUMNS), importance=importance)
    torch.testing.assert_close(found.gram, Half.of(*given, importance=importance).gram)


def test_the_hessian_of_weighed_tokens_is_as_large_as_the_toolkits() -> None:
    parts = [replace(half, weighed=True) for half in halves(*chains(60))]
    whole = parts[0].gram + parts[1].gram
    hessian = 7 * torch.eye(COLUMNS)
    assert weighed_(hessian, parts) is hessian
    torch.testing.assert_close(hessian, whole * (7 * COLUMNS / whole.trace()))


def test_the_hessian_of_tokens_that_count_alike_stays() -> None:
    hessian = random(COLUMNS, COLUMNS, seed=2).float()
    for given in (None, [], list(halves(*chains(60)))):
        assert torch.equal(weighed_(hessian.clone(), given), hessian)


def test_without_a_second_half_the_weight_stays() -> None:
    one, other = halves(*chains(60))
    nothing = replace(other, gram=torch.zeros_like(other.gram), lacking=torch.zeros_like(other.lacking))
    for given in ((one, nothing), (one,)):
        found = target_of(weight_of(), given)
        assert found.strength == 0
        assert torch.equal(found.weight, weight_of().float())


def test_a_column_that_no_token_reached_keeps_its_weights() -> None:
    parts = chains(60)
    for part in parts:
        part.damaged[:, 3] = 0
    found = target_of(weight_of(), halves(*parts))
    assert found.strength > 0
    torch.testing.assert_close(found.weight[:, 3], weight_of()[:, 3].float())


def test_fewer_tokens_than_columns_and_one_loud_token_give_finite_numbers() -> None:
    parts = chains(4)
    for part in parts:
        part.clean[0] *= 3000
        part.damaged[0] *= 3000
    found = target_of(weight_of(), halves(*parts))
    assert found.weight.isfinite().all()


def test_nothing_that_is_given_changes() -> None:
    weight, given = weight_of().float(), halves(*chains(60))
    before = [weight.clone(), *(sums.clone() for half in given for sums in (half.gram, half.lacking))]
    assert target_of(weight, given).weight is not weight
    after = [weight, *(sums for half in given for sums in (half.gram, half.lacking))]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_a_bad_sum_is_refused_with_its_name() -> None:
    one, other = halves(*chains(60))
    with pytest.raises(ValueError, match="lacking holds NaN"):
        target_of(weight_of(), (one, replace(other, lacking=other.lacking * torch.nan)))
    with pytest.raises(ValueError, match=r"gram is \(24, 23\).*needs \(24, 24\)"):
        target_of(weight_of(), (replace(one, gram=one.gram[:, 1:]), other))
    with pytest.raises(ValueError, match=r"lacking is \(3, 24\).*needs \(10, 24\)"):
        target_of(weight_of(), (replace(one, lacking=one.lacking[:3], of_output=True), other))


def test_a_strength_that_is_no_number_is_refused() -> None:
    infinite = [torch.full((2, 3), torch.inf)] * 2
    with pytest.raises(ValueError, match="both chains"):
        cross_fitted([torch.ones(2, 3)] * 2, infinite, [torch.eye(3)] * 2)
