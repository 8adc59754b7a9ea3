"""What became of every layer of a quantized model, whatever MagR and the toolkit each know of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from magr_gptq.app.quantizing.job import Job
from magr_gptq.errors import InputError
from magr_gptq.toolkits.report import LayerReport, RunReport

UNSEEN = "the toolkit quantized it without asking MagR"
FUSED = "the toolkit leaves fused experts in 16 bits"


def quantized_layers(model: torch.nn.Module) -> list[str]:
    """The names of the layers with packed weights."""
    return [name for name, module in model.named_modules() if hasattr(module, "qweight")]


def fused_experts(model: torch.nn.Module) -> list[str]:
    """The names of weights [experts, …, …] that are still parameters; filters of convolutions are none."""
    return [
        f"{name}.{own}"
        for name, module in model.named_modules()
        if not isinstance(module, torch.nn.modules.conv._ConvNd)
        for own, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3 and parameter.is_floating_point()
    ]


def full_report(
    job: Job, seen: RunReport, names: Iterable[str], fallbacks: dict[str, str], left: Iterable[str] = ()
) -> RunReport:
    """MagR's report, with the layers that it lacks, those where the toolkit fell back, those in 16 bits."""
    # a layer that the toolkit tried twice is there twice, and the last one holds
    known = {layer.name: layer for layer in seen.layers}
    report = RunReport(seen.notes)
    report.dropped = seen.dropped
    for name in dict.fromkeys([*names, *known, *fallbacks]):
        why = UNSEEN if job.magr is not None else None
        layer = known.get(name, LayerReport(name, *job.width_of(name), skipped=why))
        report.add(replace(layer, fallback=layer.fallback or fallbacks.get(name)))
    for name in left:
        report.add(LayerReport(name, 16, -1, skipped=FUSED, aside="not quantized"))
    return report


def refuse_shared(model: torch.nn.Module) -> None:
    """InputError where two linear layers are one: the second visit would reduce what is rounded already."""
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, torch.nn.Linear):
            names.setdefault(id(module.weight), []).append(name)
    shared = [layers for layers in names.values() if len(layers) > 1]
    if shared:
        raise InputError(
            f"{shared[0][0]} and {shared[0][1]} share one weight ({len(shared)} such in the model), which "
            "would be reduced once for each; --no-magr leaves them to the toolkit alone"
        )


class InputsSeen:
    """Which linear layers got any input while the toolkit calibrated; a context manager."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._names: set[str] = set()
        self._hooks = [
            module.register_forward_pre_hook(self._note(name))
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear)
        ]

    def _note(self, name: str) -> Any:
        def hook(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            if inputs[0].numel():
                self._names.add(name)

        return hook

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def __enter__(self) -> InputsSeen:
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
