"""How near the solver comes to the minimum, on layers whose columns differ by orders of magnitude."""

from __future__ import annotations

import pytest
import torch
from problems import hessian_of, weight_of

from eval.lib import baselines
from magr_gptq import MagRConfig, reduce
from magr_gptq.config.settings import STRENGTHS

COLUMNS = 48
WEIGHT = weight_of(8, COLUMNS)
SPREAD = torch.logspace(-0.7, 0.7, COLUMNS)
HESSIAN = hessian_of(COLUMNS) * SPREAD * SPREAD[:, None]


LIMITS = [(-1, None, 0.005), (12, None, 0.02), (-1, 40, 1e-6), (12, 40, 1e-6)]


def share_left(group_size: int, iterations: int | None) -> float:
    """Of the objective's way from the start to the minimum."""
    weight, hessian = WEIGHT.double(), HESSIAN.double()
    factor = baselines.inverse_factor(hessian)
    penalty = baselines.derived_penalty(factor, 2, group_size, STRENGTHS[0])
    config = MagRConfig(iterations=iterations)
    found = reduce(WEIGHT, HESSIAN, bits=2, group_size=group_size, config=config).weight.double()
    least = baselines.accelerated(weight, hessian, penalty, 4000)
    start, end, least = (
        float(baselines.objective(rows, weight, hessian, penalty).sum()) for rows in (weight, found, least)
    )
    return (end - least) / (start - least)


@pytest.mark.parametrize(("group_size", "iterations", "limit"), LIMITS)
def test_share_of_the_way_that_is_left(group_size: int, iterations: int | None, limit: float) -> None:
    assert -1e-5 <= share_left(group_size, iterations) <= limit


@pytest.mark.parametrize(("group_size", "alpha"), [(-1, 1e-3), (16, 1e-4)])
def test_the_papers_steps_are_the_papers(group_size: int, alpha: float) -> None:
    config = MagRConfig(preset="paper", iterations=20)
    found = reduce(WEIGHT, HESSIAN, bits=3, group_size=group_size, config=config).weight
    expected = baselines.paper_magr(WEIGHT, HESSIAN, alpha, 20, group_size)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
