"""What `magr=` accepts, what it refuses, and the presets."""

from __future__ import annotations

import json

import pytest

from magr_gptq import MagRConfig
from magr_gptq.config import Candidate, Derived, Linear
from magr_gptq.rounding.choice import KAPPA


@pytest.mark.parametrize("off", [None, False])
def test_off(off) -> None:
    assert MagRConfig.parse(off) is None


def test_on() -> None:
    assert MagRConfig.parse(True) == MagRConfig()
    assert MagRConfig.parse({"beta": 0.9}) == MagRConfig(beta=0.9)
    given = MagRConfig(alpha=1e-3)
    assert MagRConfig.parse(given) is given


@pytest.mark.parametrize(
    "config",
    [
        MagRConfig(),
        MagRConfig(alpha=1e-3, beta=1.0),
        MagRConfig.paper(2),
        MagRConfig(strength=0.1),
        MagRConfig(search=False, gain=False, refine=5, rounding="nearest"),
        MagRConfig(search=[[0.1, 0.9], [0.2, 1]]),
    ],
)
def test_round_trip_through_a_dict(config: MagRConfig) -> None:
    assert MagRConfig.parse(json.loads(json.dumps(config.to_dict()))) == config


# the paper's section 5: α, β by bits and group
PAPER = [
    (2, -1, 1e-3, 0.8),
    (3, -1, 1e-3, 0.9),
    (4, -1, 1e-3, 1.0),
    (2, 128, 1e-4, 0.95),
    (3, 128, 1e-4, 0.95),
    (4, 128, 1e-4, 1.0),
]


@pytest.mark.parametrize(("bits", "group_size", "alpha", "beta"), PAPER)
def test_paper_preset(bits: int, group_size: int, alpha: float, beta: float) -> None:
    config = MagRConfig.paper(bits, group_size)
    assert (config.alpha, config.beta, config.iterations) == (alpha, beta, 150)
    lazy = MagRConfig(preset="paper")
    plan = lazy.resolve(bits, group_size)
    assert plan.candidates == (Candidate(Linear(alpha), (beta,)),)
    assert (plan.iterations, plan.proximal) == (150, True)


def pairs(config: MagRConfig, bits: int, group_size: int = -1) -> list[tuple]:
    candidates = config.resolve(bits, group_size).candidates
    return [(found.penalty, *found.factors) for found in candidates]


PLAIN = (None, 1.0)


@pytest.mark.parametrize("group_size", [-1, 64])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_rows_choose_among_strengths_and_groups_among_factors(bits, group_size) -> None:
    found = MagRConfig().resolve(bits, group_size).candidates
    assert len({candidate.penalty for candidate in found}) == len(found) > 1
    (factors,) = {candidate.factors for candidate in found}
    assert factors[0] == 1
    assert sorted(factors) == sorted(-factor for factor in factors)
    assert MagRConfig().betas(bits, group_size) == factors[: len(factors) // 2]


def test_no_default_strength_is_expected_to_lose_to_plain_gptq() -> None:
    """S + cE ≤ cE₀ where S is what was shrunk away: then E + (1 + κ)S ≤ E₀ for c up to 1/(1 + κ)."""
    strengths = [found.penalty.strength for mirror in (None, False)
                 for found in MagRConfig(mirror=mirror).resolve(3).candidates]  # fmt: skip
    assert max(strengths) <= 1 / (1 + KAPPA)


def test_what_is_given_is_not_searched_but_plain_gptq_is_beside_it() -> None:
    plain, *found = pairs(MagRConfig(beta=0.7), 2)
    assert plain == PLAIN
    assert {tuple(factors) for _, *factors in found} == {(0.7,)}
    assert PLAIN not in pairs(MagRConfig(beta=1.0), 2)
    assert {penalty for penalty, *_ in pairs(MagRConfig(strength=0.5), 2)[1:]} == {Derived(0.5)}
    assert pairs(MagRConfig(strength=0.5, beta=0.7), 2) == [PLAIN, (Derived(0.5), 0.7)]
    assert pairs(MagRConfig(alpha=1e-3, beta=0.7), 2) == [PLAIN, (Linear(1e-3), 0.7)]
    assert pairs(MagRConfig(search=[(0.1, 0.9)]), 2) == [PLAIN, (Derived(0.1), 0.9)]


def test_mirrored_grids_can_be_left_out_or_asked_for() -> None:
    betas = MagRConfig().betas(2, -1)
    assert {tuple(factors) for _, *factors in pairs(MagRConfig(mirror=False), 2)} == {betas}
    assert [penalty for penalty, *_ in pairs(MagRConfig(mirror=False), 2)] == [
        Derived(0.04), Derived(0.1), Derived(0.2)
    ]  # fmt: skip
    assert pairs(MagRConfig(mirror=False, strength=0.5), 2)[1:] == [(Derived(0.5), *betas)]
    assert pairs(MagRConfig(mirror=True), 2) == pairs(MagRConfig(), 2)
    assert pairs(MagRConfig(strength=0.5, beta=0.7, mirror=True), 2)[1] == (Derived(0.5), 0.7, -0.7)
    assert pairs(MagRConfig(preset="paper", mirror=True), 2) == [(Linear(1e-3), 0.8, -0.8)]
    assert pairs(MagRConfig(search=[(0.1, 0.9)], mirror=True), 2) == [PLAIN, (Derived(0.1), 0.9, -0.9)]
    assert MagRConfig.parse(MagRConfig(mirror=False).to_dict()) == MagRConfig(mirror=False)


def test_a_toolkit_can_fix_the_step() -> None:
    assert {beta for _, beta in pairs(MagRConfig().with_beta(1.0), 2)} == {1.0}
    assert {beta for _, beta in pairs(MagRConfig(search=False).with_beta(1.0), 2)} == {1.0}
    assert pairs(MagRConfig(beta=0.9).with_beta(1.0), 2) == pairs(MagRConfig(beta=0.9), 2)
    listed = MagRConfig(search=[(0.1, 0.8), (0.1, 0.9), (0.2, 0.9)])
    assert pairs(listed.with_beta(1.0), 2) == [PLAIN, (Derived(0.1), 1.0), (Derived(0.2), 1.0)]


def test_without_a_search_there_is_one_pair() -> None:
    config = MagRConfig(search=False)
    (found,) = config.resolve(3).candidates
    assert found == MagRConfig().resolve(3).candidates[0]
    assert found.penalty == config.penalty(-1)
    assert pairs(MagRConfig(preset="paper"), 2) == [(Linear(1e-3), 0.8)]
    assert pairs(MagRConfig(preset="paper", search=True), 2) == [PLAIN, (Linear(1e-3), 0.8)]


def test_one_sweep_follows_unless_given_or_meaningless() -> None:
    def sweeps(**settings) -> int:
        return MagRConfig(**settings).resolve(3).sweeps

    assert sweeps() == sweeps(search=False) == 1
    assert sweeps(preset="paper") == sweeps(rounding="nearest") == 0
    assert [sweeps(preset=preset, refine=0) for preset in ("default", "paper")] == [0, 0]
    assert sweeps(preset="paper", refine=30) == 30


def test_the_default_corrects_the_gain_and_the_paper_does_not() -> None:
    assert MagRConfig().resolve(3).corrects_gain
    assert not MagRConfig(preset="paper").resolve(3).corrects_gain
    assert not MagRConfig(gain=False).resolve(3).corrects_gain


BAD = [
    ({"preset": "papers"}, "preset='papers'"),
    ({"alpha": 0}, "alpha=0"),
    ({"alpha": float("nan")}, "alpha=nan"),
    ({"alpha": True}, "alpha=True"),
    ({"strength": -1.0}, "strength=-1.0"),
    ({"strength": 0.1, "alpha": 1e-3}, "strength=0.1"),
    ({"strength": 0.1, "preset": "paper"}, "strength=0.1"),
    ({"beta": 0.0}, "beta=0.0"),
    ({"beta": 1.1}, "beta=1.1"),
    ({"beta": "0.9"}, "beta='0.9'"),
    ({"iterations": 0}, "iterations=0"),
    ({"iterations": 2.5}, "iterations=2.5"),
    ({"alhpa": 1e-3}, "alhpa"),
    ({"refine": -1}, "refine=-1"),
    ({"refine": True}, "refine=True"),
    ({"gain": "yes"}, "gain='yes'"),
    ({"mirror": "left"}, "mirror='left'"),
    ({"mirror": 0}, "mirror=0 must be True or False"),
    ({"rounding": "rtn"}, "rounding='rtn'"),
    ({"target": "block"}, r"target='block' is unknown; use one of \('model', 'layer'\)"),
    ({"search": []}, r"search=\[\]"),
    ({"search": [[0.1]]}, r"search=\[\[0.1\]\]"),
    ({"search": [[0.1, 1.5]]}, r"search=\[\[0.1, 1.5\]\]"),
    ({"search": [[0.1, 0.9]], "beta": 0.9}, "leave out strength"),
    ({"search": [[0.1, 0.9]], "preset": "paper"}, "leave out strength"),
]


@pytest.mark.parametrize(("setting", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_values_are_named(setting: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MagRConfig.parse(setting)


@pytest.mark.parametrize("setting", ["true", 1, 0.5])
def test_other_types_are_refused(setting) -> None:
    with pytest.raises(TypeError, match="MagRConfig"):
        MagRConfig.parse(setting)


@pytest.mark.parametrize(
    ("settings", "aims"),
    [
        ({}, True),
        ({"target": "layer"}, False),
        ({"preset": "paper"}, False),
        ({"preset": "paper", "target": "model"}, True),
        ({"rounding": "nearest"}, False),
    ],
)
def test_the_default_alone_aims_at_the_unquantized_model(settings: dict, aims: bool) -> None:
    assert MagRConfig(**settings).resolve(3).aims_at_model is aims
