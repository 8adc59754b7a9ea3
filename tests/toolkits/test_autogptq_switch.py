"""What enabling AutoGPTQ touches, what it refuses, and that disabling leaves no trace."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import magr_gptq

pytest.importorskip("auto_gptq")

from auto_gptq import BaseQuantizeConfig
from auto_gptq.modeling import _base
from auto_gptq.quantization import gptq

OWNERS = (_base, gptq, BaseQuantizeConfig, _base.BaseGPTQForCausalLM, gptq.GPTQ)


@pytest.fixture(autouse=True)
def _switched_off():
    yield
    magr_gptq.disable()


def attributes() -> dict[tuple[str, str], int]:
    """Which object every attribute of what the adapter touches is."""
    return {(owner.__name__, name): id(value) for owner in OWNERS for name, value in vars(owner).items()}


def test_enable_touches_what_it_says_and_disable_leaves_no_trace() -> None:
    before, synchronize = attributes(), torch.cuda.synchronize
    touched = magr_gptq.enable("auto-gptq")
    during = attributes()
    changed = {key for key in during if during[key] != before.get(key)}
    assert {tuple(symbol.split(".")[-2:]) for symbol in touched} == {
        (owner.split(".")[-1], name) for owner, name in changed
    }
    assert (_base.CUDA_0, _base.torch.cuda.is_available()) == (torch.device("cpu"), True)
    # torch itself stays as it is
    assert not torch.cuda.is_available()
    assert torch.cuda.synchronize is synchronize
    assert magr_gptq.enable("auto-gptq") == touched
    assert attributes() == during
    magr_gptq.disable("auto-gptq")
    assert attributes() == before


def test_the_switch_exists_only_while_enabled() -> None:
    for _ in range(2):
        with pytest.raises(TypeError, match="magr"):
            BaseQuantizeConfig(magr=True)
        with magr_gptq.enabled("auto-gptq"):
            config = BaseQuantizeConfig(3, 64, magr=True)
            assert (config.bits, config.group_size, config.magr) == (3, 64, magr_gptq.MagRConfig())
            assert dataclasses.replace(config, bits=2).magr == config.magr
            assert [BaseQuantizeConfig(magr=off).magr for off in (False, None)] == [None, None]
            assert BaseQuantizeConfig().magr is None
    assert "magr" not in [field.name for field in dataclasses.fields(BaseQuantizeConfig)]


@pytest.mark.parametrize(
    ("setting", "error", "message"),
    [
        ({"alpha": -1}, ValueError, "alpha=-1 "),
        ({"beta": 1.5}, ValueError, "beta=1.5 "),
        ({"strong": 1}, ValueError, "'strong'"),
        ("yes", TypeError, "'yes'"),
    ],
)
def test_bad_settings_are_refused_by_the_config(setting, error, message) -> None:
    with magr_gptq.enabled("auto-gptq"), pytest.raises(error, match=message):
        BaseQuantizeConfig(magr=setting)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (BaseQuantizeConfig, "to_dict"),
        (_base.BaseGPTQForCausalLM, "quantize"),
        (gptq.GPTQ, "fasterquant"),
        (_base, "CUDA_0"),
        (gptq, "torch"),
    ],
)
def test_a_missing_symbol_is_named_and_nothing_changes(owner, name, monkeypatch) -> None:
    monkeypatch.delattr(owner, name)
    before = attributes()
    with pytest.raises(magr_gptq.SeamError, match=rf"auto-gptq 0\.7\.1 has no .*{owner.__name__}\.{name};"):
        magr_gptq.enable("auto-gptq")
    assert attributes() == before


def test_another_signature_is_named_and_nothing_changes(monkeypatch) -> None:
    monkeypatch.setattr(gptq.GPTQ, "fasterquant", lambda self: self)
    before = attributes()
    found = r"auto-gptq 0\.7\.1: .*GPTQ\.fasterquant takes \('self',\), not"
    with pytest.raises(magr_gptq.SeamError, match=found):
        magr_gptq.enable("auto-gptq")
    assert attributes() == before
