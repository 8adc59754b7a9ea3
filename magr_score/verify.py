"""Whether a loader gets everything out of a checkpoint: every tensor, and what the file's weights predict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from magr_score import packed
from magr_score.loaders import LOADERS, device, dtype_on

# two rows of so many random tokens are predicted on
TOKENS = 64
SEED = 0
# JSON has no infinity
BEYOND = 1e6


@torch.no_grad()
def verify(request: dict[str, Any]) -> dict[str, Any]:
    """Load the checkpoint; what was not in its files, and how far off its predictions are.

    `difference` is ‖L − R‖/‖R‖ of the logits L, less their mean at each position, and those R of the model's
    own class in float32 with the weights as `packed` reads them. It is None where that was not asked for, or
    where the files name tensors otherwise than the class does; `strange` then counts those that it lacks.

    Args:
        request: checkpoint, a folder; engine, of `LOADERS`; predict, whether to compare predictions.
    """
    folder = request["checkpoint"]
    model, missing = _load(folder, request["engine"])
    found = {"missing": sorted(missing), "difference": None, "strange": 0}
    if not request["predict"]:
        return found
    reference, strange = _reference(folder)
    if strange:
        return {**found, "strange": len(strange)}
    generator = torch.Generator().manual_seed(SEED)
    rows = torch.randint(reference.config.get_text_config().vocab_size, (2, TOKENS), generator=generator)
    return {**found, "difference": difference(_centred(reference, rows), _centred(model, rows))}


def difference(reference: Tensor, logits: Tensor) -> float:
    """‖L − R‖/‖R‖; `BEYOND` where it is not finite."""
    off = (logits - reference).norm() / reference.norm()
    return float(off) if off.isfinite() else BEYOND


def _centred(model: Any, rows: Tensor) -> Tensor:
    """Logits less their mean over the vocabulary, which no prediction depends on."""
    logits: Tensor = model(input_ids=rows.to(model.device), use_cache=False).logits.float().cpu()
    return logits - logits.mean(-1, keepdim=True)


def _load(folder: str, engine: str) -> tuple[Any, set[str]]:
    """The model and the names of tensors that it has from nowhere."""
    if engine == "transformers":
        from transformers import AutoModelForCausalLM

        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, torch_dtype="auto", output_loading_info=True
        )
        model, info = loaded
        missing = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
        return torch.nn.Module.float(model).to(device()).eval(), missing
    model = LOADERS[engine].load(folder, device(), dtype_on(device(), folder))
    return model, _without_source(model, _names(folder))


def _names(folder: str) -> set[str]:
    names: set[str] = set()
    for file in Path(folder).glob("*.safetensors"):
        with safe_open(file, framework="pt") as found:
            names |= set(found.keys())
    return names


def _without_source(model: torch.nn.Module, saved: set[str]) -> set[str]:
    """Parameters that neither the files have, nor share memory with one that they have."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    sources = {parameter.data_ptr() for name, parameter in parameters.items() if name in saved}
    return {
        name for name, parameter in parameters.items()
        if name not in saved and parameter.data_ptr() not in sources
    }  # fmt: skip


def _reference(folder: str) -> tuple[Any, set[str]]:
    """The model's class with the file's weights in float32, and which of its tensors have none."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    config = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    with torch.device("meta"):
        empty: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    weights, names = packed.tensors(folder), _names(folder)
    for name, module in empty.named_modules():
        # GPT-2's, which stores [in, out]
        if isinstance(module, Conv1D) and f"{name}.qweight" in names:
            weights[f"{name}.weight"] = weights[f"{name}.weight"].T.contiguous()
    # renames what the files name otherwise, as for any checkpoint of this class
    model, info = type(empty).from_pretrained(
        None,
        config=config,
        state_dict=weights,
        ignore_mismatched_sizes=True,
        torch_dtype=torch.float32,
        output_loading_info=True,
    )
    return model.eval(), {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
