"""llm-compressor's own kernel, which takes no negative step, is off while mirrored grids are rounded."""

from __future__ import annotations

import os

import pytest
import torch
from problems import hessian_of, weight_of

pytest.importorskip("llmcompressor")

from compressed_tensors.utils.impl_backend import ImplBackend
from llmcompressor.modifiers.gptq import base as toolkit
from llmcompressor.modifiers.gptq import gptq_quantize
from llmcompressor_runs import round_layers, run_script, scheme
from places import HELPERS

from magr_gptq.toolkits.llmcompressor.kernels import SWITCH
from magr_gptq.toolkits.llmcompressor.modifier import MagRGPTQModifier

LAYERS = [(weight_of(16, 64), hessian_of(64))]


@pytest.fixture(params=[None, "0", "1"], ids=str)
def before(request, monkeypatch) -> str | None:
    """What a user has set the toolkit's variable to."""
    if request.param is None:
        monkeypatch.delenv(SWITCH, raising=False)
    else:
        monkeypatch.setenv(SWITCH, request.param)
    return request.param


@pytest.fixture
def during(monkeypatch) -> list[str | None]:
    """The variable at each of the toolkit's roundings."""
    seen, original = [], toolkit.quantize_weight

    def quantize_weight(**kwargs):
        seen.append(os.environ.get(SWITCH))
        return original(**kwargs)

    monkeypatch.setattr(toolkit, "quantize_weight", quantize_weight)
    return seen


@pytest.fixture
def by_kernel(monkeypatch) -> list[int]:
    """The blocks, by their width, that the toolkit would hand to its kernel on a GPU."""
    seen, name = [], "gptq_block_update"

    def kernel(work, *args, **kwargs) -> None:
        seen.append(work.shape[-1])
        ImplBackend.call(name, work, *args, **kwargs)

    ((_, requirement, priority),) = ImplBackend._backends[name]
    monkeypatch.setitem(ImplBackend._backends, name, [(kernel, requirement, priority)])
    monkeypatch.setattr(gptq_quantize, "triton_req", lambda *_: True)
    return seen


def modifier(magr) -> MagRGPTQModifier:
    return MagRGPTQModifier(config_groups=scheme(3, 32), magr=magr)


@pytest.mark.parametrize("mirror", [True, False])
def test_the_switch_is_the_users_again_afterwards(mirror: bool, before, during) -> None:
    round_layers(modifier({"mirror": mirror}), LAYERS)
    assert during == ["1" if mirror else before]
    assert os.environ.get(SWITCH) == before


def test_the_switch_is_the_users_again_after_an_error(before, monkeypatch) -> None:
    def stop(**_) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(toolkit, "quantize_weight", stop)
    with pytest.raises(KeyboardInterrupt):
        round_layers(modifier(True), LAYERS)
    assert os.environ.get(SWITCH) == before


@pytest.mark.parametrize("mirror", [True, False])
def test_mirrored_grids_never_reach_the_kernel(mirror: bool, by_kernel, monkeypatch) -> None:
    """The toolkit asks the switch at every block."""
    monkeypatch.delenv(SWITCH, raising=False)
    (module,) = round_layers(modifier({"mirror": mirror}), LAYERS)
    assert bool((module.weight_scale < 0).any()) == mirror
    assert by_kernel == ([] if mirror else [64])


def test_a_layer_that_is_left_to_the_toolkit_has_its_kernel(by_kernel, monkeypatch) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    round_layers(modifier(True), [(weight_of(16, 64), hessian_of(64) * float("nan"))])
    assert by_kernel == [64]


def test_the_kernel_rounds_negative_steps_to_about_zero(tmp_path) -> None:
    """Why there is a switch; where this fails the toolkit has mended its kernel, and may have it back."""
    pytest.importorskip("triton")
    weights = weight_of(16, 32)
    inverse = torch.linalg.cholesky(torch.linalg.inv(hessian_of(32)), upper=True)
    scale = weights.abs().amax(1, keepdim=True) / 3.5
    inputs, out = tmp_path / "inputs.pt", tmp_path / "out.pt"
    torch.save([{"weights": weights, "inverse": inverse, "scale": sign * scale} for sign in (1, -1)], inputs)
    run_script([str(HELPERS / "dump_block_kernel.py")], str(inputs), str(out), cwd=tmp_path)
    plain, mirrored = torch.load(out)
    torch.testing.assert_close(plain["kernel"], plain["eager"])
    assert mirrored["eager"].abs().amax() > 0.5 * weights.abs().amax()
    assert mirrored["kernel"].abs().amax() < 1e-30
