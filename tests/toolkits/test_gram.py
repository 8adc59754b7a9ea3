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


@pytest.mark.parametrize("road", [road for road in ("gptqmodel", "optimum") if road in installed()])
@pytest.mark.parametrize("both", [False, True])
def test_but_for_the_first_document_no_product_is_made_twice(
    road: str, both: bool, tmp_path, monkeypatch
) -> None:
    model = str(save_tiny_model("two-blocks", tmp_path / "model"))
    given: list[bool] = []
    of = Half.of.__func__

    def seen(cls, *args: torch.Tensor, **kwargs: object) -> Half:
        given.append(kwargs.get("gram") is not None)
        return of(cls, *args, **kwargs)

    monkeypatch.setattr(Half, "of", classmethod(seen))
    monkeypatch.setattr("four_roads.BATCHES", 1)
    toolkits = ["gptqmodel", "optimum"] if both else [road]
    with magr_gptq.enabled(*toolkits):
        ROADS[road](model)
    documents = len(calibration_rows())
    assert given.count(True) == given.count(False) // 2 * (documents - 1) > 0
