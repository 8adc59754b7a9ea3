"""The unquantized model's layers: how MagR changes three of them, and the fraction rank of every input.

A process of its own, started for one request, whose values are those of `profile`.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from magr_gptq.app.inputs import read_model
from magr_gptq.app.inspecting.forecast import fraction_rank
from magr_gptq.app.inspecting.hessians import Layers, in_turns, layer_inputs, linear_layers, matrix_of
from magr_gptq.app.processes import answer_once
from magr_gptq.reduction.solver import reduce

SHOWN_LAYERS = 3
# points of a scatter plot; more would not be seen
SHOWN_CHANNELS = 400
TOKENS_AT_ONCE = 2048


def profile(request: dict[str, Any]) -> dict[str, Any]:
    """Fraction ranks of all layers' inputs, and largest magnitudes of three layers' channels.

    Args:
        request: model, a checked folder; bits and group_size; calibration, samples, seqlen, seed and cut, see
            `Model.windows`.
    """
    batches = _windows(request)
    model = _load(request["model"])
    model.eval()
    layers = linear_layers(model)
    shown = _spread_out(layers)
    ranks: dict[str, float] = {}
    magnitudes: dict[str, Any] = {}
    for turn in in_turns(layers):
        for given in layer_inputs(model, turn, batches, lambda: None):
            ranks |= dict.fromkeys(given.names, fraction_rank(given.hessian))
            for name in set(given.names) & set(shown):
                magnitudes[name] = _magnitudes(matrix_of(layers[name]), given.hessian, request)
    return {
        "fraction_ranks": {name: ranks[name] for name in layers if name in ranks},
        "rank_summary": _summary([100 * rank for rank in ranks.values()]),
        "magnitudes": {name: magnitudes[name] for name in shown if name in magnitudes},
    }


def _windows(request: dict[str, Any]) -> list[torch.Tensor]:
    """The windows that the quantizing engine draws, a few at a time."""
    model = read_model(Path(request["model"]))
    drawn = {name: request[name] for name in ("samples", "seqlen", "seed", "cut")}
    rows = torch.tensor(model.windows(request["calibration"], **drawn).rows)
    return list(torch.split(rows, max(1, TOKENS_AT_ONCE // rows.shape[1])))


def _load(folder: str) -> Any:
    if torch.cuda.is_available():
        return AutoModelForCausalLM.from_pretrained(folder, torch_dtype="auto", device_map="auto")
    return AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32)


def _spread_out(layers: Layers) -> list[str]:
    """The first layer, one in the middle, the last one."""
    names = list(layers)
    places = [round(i * (len(names) - 1) / (SHOWN_LAYERS - 1)) for i in range(SHOWN_LAYERS)]
    return list(dict.fromkeys(names[place] for place in places))


def _magnitudes(weight: torch.Tensor, hessian: torch.Tensor, request: dict[str, Any]) -> dict[str, Any]:
    found = reduce(weight, hessian, bits=request["bits"], group_size=request["group_size"])
    step = max(1, len(weight) // SHOWN_CHANNELS)
    return {
        "before": found.largest_before[::step].tolist(),
        "after": found.largest_after[::step].tolist(),
        "channels": len(weight),
        "median_ratio": float((found.largest_after / found.largest_before.clamp_min(1e-12)).median()),
    }


def _summary(values: list[float]) -> dict[str, float]:
    """As the paper's Table 2 has it, in percent."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"min": min(values), "max": max(values), "mean": statistics.mean(values), "q25": low, "q75": high}


if __name__ == "__main__":
    answer_once(profile)
