"""The process that surveys a model: answers requests as `magr_gptq.app.processes` has it.

A process of its own, so that all of its memory is free when the toolkit starts.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from magr_gptq.allocation.worth import Width
from magr_gptq.app.inputs import local_folder, read_model
from magr_gptq.app.planning.survey import layers_to_plan, parted, shape_of, survey
from magr_gptq.app.processes import serve
from magr_gptq.config import MagRConfig
from magr_score.process import Tell

TOKENS_AT_ONCE = 2048
# of the calibration windows, as many as have so many tokens: the toolkit sees them all later
TOKENS = 16384


def answer(request: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """A survey; or, of a request without widths, the shapes of the layers to plan."""
    folder = local_folder(
        request["model"],
        allow_pickle=request["allow_pickle"],
        trust_remote_code=request["trust_remote_code"],
    )
    return _survey(folder, request, tell) if "widths" in request else _shapes(folder, request)


def _shapes(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    # only names and shapes are read
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, device_map="meta", trust_remote_code=request["trust_remote_code"]
    )
    layers = layers_to_plan(model, request["engine"], request["head"])
    return {name: shape_of(layer) for name, layer in layers.items()}


def _survey(folder: Path, request: dict[str, Any], tell: Tell) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    trust = request["trust_remote_code"]
    tell("stage", text="reading the calibration text")
    drawn = {name: request[name] for name in ("samples", "seqlen", "seed", "cut")}
    rows = torch.tensor(read_model(folder, trust).windows(request["calibration"], **drawn).rows)
    rows = rows[: max(1, TOKENS // rows.shape[1])]
    tell("stage", text="loading the model")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trust)
    model = model.cuda() if torch.cuda.is_available() else model.float()
    tell("stage", text="weighing the layers")
    at_once = max(1, TOKENS_AT_ONCE // rows.shape[1])
    rounding, weighing = parted(rows)
    found = survey(
        model.eval(),
        torch.split(rounding, at_once),
        torch.split(weighing, at_once),
        [Width(*width) for width in request["widths"]],
        engine=request["engine"],
        head=request["head"],
        sym=request["sym"],
        config=None if request["magr"] is None else MagRConfig(**request["magr"]),
        advance=lambda done, total: tell("layers", done=done, total=total),
    )
    return replace(found, asked=request).to_dict()


if __name__ == "__main__":
    serve(answer)
