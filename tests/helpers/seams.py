"""What adapters hand over to `layer_step`."""

from __future__ import annotations

import pytest
from torch import Tensor

from magr_gptq.toolkits import layer_step
from magr_gptq.toolkits.layer_step import Given


def layers_given(monkeypatch: pytest.MonkeyPatch) -> list[Given]:
    """Every layer that an adapter hands over from now on."""
    seen: list[Given] = []
    real = layer_step.quantize_layer
    monkeypatch.setattr(layer_step, "quantize_layer", lambda given, *a: seen.append(given) or real(given, *a))
    return seen


def orders_given(monkeypatch: pytest.MonkeyPatch) -> list[Tensor | None]:
    """The toolkit's own order of every such layer's columns."""
    seen: list[Tensor | None] = []
    real = layer_step.quantize_layer

    def quantize_layer(given: Given, *rest: object) -> object:
        seen.append(given.plan.order)
        return real(given, *rest)

    monkeypatch.setattr(layer_step, "quantize_layer", quantize_layer)
    return seen
