"""The float64 reference of the default: its minimum is the minimum, and the default comes near it."""

import pytest
import torch

from eval.lib import baselines, reference
from eval.lib.reference import quantize
from eval.lib.simulate import LayerQuantizer, Setting
from eval.studies.reference import losses
from eval.studies.reference import run as study

GENERATOR = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(24, 128, generator=GENERATOR, dtype=torch.float64)
MIXING = torch.eye(128) + 0.05 * torch.randn(128, 128, generator=GENERATOR, dtype=torch.float64)
INPUTS = torch.randn(512, 128, generator=GENERATOR, dtype=torch.float64) @ MIXING
HESSIAN = INPUTS.T @ INPUTS / len(INPUTS)


@pytest.mark.parametrize("group_size", [-1, 48])
def test_minimum_is_the_one_that_another_method_finds(group_size):
    factor = baselines.inverse_factor(HESSIAN)
    penalty = baselines.derived_penalty(factor, 2, group_size, 0.06)

    def total(rows):
        return float(baselines.objective(rows, WEIGHT, HESSIAN, penalty).sum())

    found = total(reference.minimise(WEIGHT, HESSIAN, factor, penalty))
    least = total(baselines.accelerated(WEIGHT, HESSIAN, penalty, 4000, tolerance=1e-6))
    # the gap at which it ends is a share of the gain
    assert abs(found - least) <= reference.TOLERANCE * (total(WEIGHT) - least)


def test_gap_that_stays_open_is_an_error(monkeypatch):
    monkeypatch.setattr(reference, "METRICS", ((0.1, 10),))
    factor = baselines.inverse_factor(HESSIAN)
    with pytest.raises(RuntimeError, match="left after 10 steps"):
        reference.minimise(WEIGHT, HESSIAN, factor, baselines.derived_penalty(factor, 2, strength=0.06))


@pytest.mark.parametrize(("bits", "group_size"), [(2, -1), (3, 64)])
def test_default_loses_little_to_it(bits, group_size):
    weight, hessian = WEIGHT.float(), HESSIAN.float()
    wanted, _ = quantize(weight, hessian, bits, group_size)
    found = LayerQuantizer(Setting("", "magr", bits, group_size))(weight, hessian)
    losses = [baselines.proxy_loss(rows, weight, hessian) for rows in (found, wanted)]
    # 24 rows: a single code of another choice is a share of this size
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_comparison_is_by_grid_over_seeds():
    lines = [
        {"name": f"W2 | {method} | {seed}", "perplexity": perplexity, "mean_proxy_loss": 1.0}
        for method, perplexities in (("default", (10.1, 10.3)), ("reference", (10.0, 10.0)))
        for seed, perplexity in enumerate(perplexities)
    ]
    assert "| W2 | +2.00 % (+1.00 to +3.00) | +0.00 % (+0.00 to +0.00) |" in study.comparison(lines)


def test_losses_are_compared_as_means_and_by_layer():
    line = {"grid": "W2", "default": [0.101, 0.3], "reference": [0.1, 0.3]}
    assert "| W2 | +0.25 % | +0.0 to +1.0 % |" in losses.table([line])


def test_what_it_returns_lies_on_a_grid_of_each_group():
    found, _ = quantize(WEIGHT.float(), HESSIAN.float(), 2, 48)  # the last group is shorter
    for group in found.split(48, dim=1):
        # four codes: a group of a row has at most four values
        assert max(len(row.unique()) for row in group) <= 4
