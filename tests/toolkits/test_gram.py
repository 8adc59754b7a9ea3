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
        given.append(kwargs.get("gram") is not None)
        return of(cls, *args, **kwargs)

    monkeypatch.setattr(Half, "of", classmethod(seen))
    monkeypatch.setattr("four_roads.BATCHES", batch)
    toolkits = ["gptqmodel", "optimum"] if both else [road]
    with magr_gptq.enabled(*toolkits):
        ROADS[road](model)
    documents = len(calibration_rows())
    # with batches of one the first document alone is in both halves
    split = documents // batch if batch > 1 else 1
    assert given.count(True) * split == given.count(False) * (documents // batch) > 0
