"""GPTQModel's product of a batch is taken from it, and not made again."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from tiny import calibration_rows, save_tiny_model

import magr_gptq
from magr_gptq.reduction.target import Half
from magr_gptq.toolkits import installed

if find_spec("gptqmodel") is None:
    pytest.skip("needs GPTQModel", allow_module_level=True)

from four_roads import ROADS


# optimum takes rows one by one
@pytest.mark.parametrize(
    ("road", "batch"),
    [pair for pair in (("gptqmodel", 1), ("gptqmodel", 2), ("optimum", 1)) if pair[0] in installed()],
)
@pytest.mark.parametrize("both", [False, True])
def test_a_product_is_made_for_one_half_of_a_batch_at_most(
    road: str, both: bool, batch: int, tmp_path, monkeypatch
) -> None:
    model = str(save_tiny_model("two-blocks", tmp_path / "model"))
    given: list[bool] = []
    of = Half.of.__func__

    def seen(cls, *args: torch.Tensor, **kwargs: object) -> Half:
        # that of weighed tokens is another product
        if kwargs["importance"] is None:
            given.append(kwargs["gram"] is not None)
        return of(cls, *args, **kwargs)

    monkeypatch.setattr(Half, "of", classmethod(seen))
    monkeypatch.setattr("four_roads.BATCHES", batch)
    toolkits = ["gptqmodel", "optimum"] if both else [road]
    with magr_gptq.enabled(*toolkits):
        ROADS[road](model)
    documents = len(calibration_rows())
    # with batches of one both halves of the first document are made, and no other
    made, taken = (2, documents - 1) if batch == 1 else (1, 1)
    assert given.count(True) * made == given.count(False) * taken > 0


@pytest.mark.skipif("gptqmodel" not in installed(), reason="needs GPTQModel")
def test_the_product_of_padded_rows_is_that_of_their_tokens(tmp_path, monkeypatch) -> None:
    """GPTQModel makes one of each row then, of what is no padding."""
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    model = str(save_tiny_model("two-blocks", tmp_path / "model"))
    off: list[float] = []
    of = Half.of.__func__

    def seen(cls, damaged: torch.Tensor, *args: torch.Tensor, **kwargs: object) -> Half:
        half = of(cls, damaged, *args, **kwargs)
        if not half.weighed:
            exact = damaged.double().T @ damaged.double()
            off.append(float((half.gram.double() - exact).norm() / exact.norm()))
        return half

    monkeypatch.setattr(Half, "of", classmethod(seen))
    lengths = [16 + 6 * number for number in range(len(calibration_rows()))]
    rows = [
        {"input_ids": row[:length].tolist(), "attention_mask": [1] * length}
        for row, length in zip(calibration_rows(), lengths, strict=True)
    ]
    with magr_gptq.enabled("gptqmodel"):
        config = QuantizeConfig(bits=3, group_size=32, device="cpu", offload_to_disk=False, magr=True)
        loaded = GPTQModel.load(model, config, backend=BACKEND.TORCH, dtype=torch.float32)
        loaded.quantize(rows, batch_size=4, backend=BACKEND.TORCH)
    assert max(off) < 1e-5
    assert len(off) > 10
