"""What `magr=` accepts, what it refuses, and the presets."""

from __future__ import annotations

import pytest

from magr_gptq import MagRConfig


@pytest.mark.parametrize("off", [None, False])
def test_off(off) -> None:
    assert MagRConfig.parse(off) is None


def test_on() -> None:
    assert MagRConfig.parse(True) == MagRConfig()
    assert MagRConfig.parse({"beta": 0.9}) == MagRConfig(beta=0.9)
    given = MagRConfig(alpha=1e-3)
    assert MagRConfig.parse(given) is given


@pytest.mark.parametrize(
    "config", [MagRConfig(), MagRConfig(alpha=1e-3, beta=1.0), MagRConfig.paper(2), MagRConfig(strength=0.1)]
)
def test_round_trip_through_a_dict(config: MagRConfig) -> None:
    assert MagRConfig.parse(config.to_dict()) == config


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
    assert lazy.alpha_for(group_size) == alpha
    assert lazy.beta_for(bits, group_size) == beta
    assert lazy.solver_iterations() == 150


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
]


@pytest.mark.parametrize(("setting", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_values_are_named(setting: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MagRConfig.parse(setting)


@pytest.mark.parametrize("setting", ["true", 1, 0.5])
def test_other_types_are_refused(setting) -> None:
    with pytest.raises(TypeError, match="MagRConfig"):
        MagRConfig.parse(setting)
