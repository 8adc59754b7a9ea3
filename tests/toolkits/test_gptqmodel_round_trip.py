"""Quantize, save, load in an unmodified GPTQModel: the weights are the very ones that were rounded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from covering import covering
from tiny import save_tiny_model

import magr_gptq

pytest.importorskip("gptqmodel")

from gptqmodel.quantization.gptq import GPTQ
from gptqmodel_runs import quantize, run_vanilla

pytestmark = pytest.mark.long

ROUND_TRIPS = covering((2, 3, 4, 8), (-1, 32, 128), (True, False), (False, True), ("gptq", "gptq_v2"))


@pytest.fixture(scope="module")
def round_trips(tmp_path_factory) -> Path:
    """Every checkpoint with the weights that GPTQ rounded to, then dequantized by a vanilla process."""
    root = tmp_path_factory.mktemp("round-trips")
    model_folder = str(save_tiny_model("llama", root / "model"))
    saved, recorded = [], {}
    with magr_gptq.enabled("gptqmodel"), pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(GPTQ, "quantize", _recording(GPTQ.quantize, recorded))
        for bits, group_size, sym, desc_act, checkpoint_format in ROUND_TRIPS:
            recorded.clear()
            model = quantize(
                model_folder, bits=bits, group_size=group_size, sym=sym, desc_act=desc_act,
                format=checkpoint_format, magr=True,
            )  # fmt: skip
            folder = root / f"{bits}-{group_size}-{sym}-{desc_act}-{checkpoint_format}"
            model.save(str(folder))
            torch.save(dict(recorded), folder / "rounded.pt")
            saved.append(str(folder))
    run_vanilla("dequantize", *saved, cwd=root)
    return root


def _recording(original, recorded: dict):
    def quantize(self, blocksize=128):
        result = original(self, blocksize)
        weight, scale, zero = result[:3]
        recorded[self._named_module.full_name] = (weight.clone(), scale.clone(), zero.clone())
        return result

    return quantize


@pytest.mark.parametrize(("bits", "group_size", "sym", "desc_act", "checkpoint_format"), ROUND_TRIPS)
def test_vanilla_loader_reads_the_very_weights_that_were_rounded(
    bits, group_size, sym, desc_act, checkpoint_format, round_trips
) -> None:
    folder = round_trips / f"{bits}-{group_size}-{sym}-{desc_act}-{checkpoint_format}"
    rounded, read = torch.load(folder / "rounded.pt"), torch.load(folder / "dequantized.pt")
    assert set(read) == set(rounded)
    for name, (weight, scale, zero) in rounded.items():
        # a symmetric grid may be mirrored; of an asymmetric one nothing would be gained
        assert (scale < 0).any() or not sym
        # scales are stored in float16, 11 bits; a wrong code is off by at least 1/255 of the range
        torch.testing.assert_close(read[name].float(), weight.float(), rtol=2e-3, atol=1e-6)
        assert zero.min() >= 0
        assert zero.max() <= 2**bits - 1
    if not sym and group_size == -1:
        zeros = [zero for _, _, zero in rounded.values()]
        assert any(zero[0] == 0 for zero in zeros)
        assert any(zero[1] == 2**bits - 1 for zero in zeros)
