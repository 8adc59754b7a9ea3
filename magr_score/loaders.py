"""Loading a model folder with an unmodified toolkit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch

DTYPES = ("dtype", "torch_dtype")


@dataclass(frozen=True)
class Loader:
    """A toolkit that loads model folders.

    load: from a folder, a device and a dtype, see `dtype_on`, to a model in evaluation mode.
    distribution: the toolkit's name for pip.
    """

    load: Callable[[str, str, torch.dtype], Any]
    distribution: str

    def versions(self) -> dict[str, str]:
        """The installed releases of what the numbers depend on."""
        return {name: version(name) for name in sorted({self.distribution, "transformers", "torch"})}


def device() -> str:
    """Where models are loaded to: the first GPU, or the CPU."""
    return "cuda:0" if torch.cuda.is_available() else "cpu"


def dtype_on(device: str, folder: str) -> torch.dtype:
    """What a model, and all that is compared with it, computes in: float32 on a CPU, else 16 bits.

    A model that was saved in bfloat16 stays so: activations may lie beyond float16, as Gemma 3's do.
    """
    return torch.float32 if device == "cpu" else _stored(folder)


def _stored(folder: str) -> torch.dtype:
    """bfloat16 where the model was saved in it, else float16, as not all kernels know bfloat16."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    # transformers 4 calls it torch_dtype; models that see, too, may tell it of their text's part alone
    named = [getattr(part, name, None) for part in (config, config.get_text_config()) for name in DTYPES]
    return torch.bfloat16 if torch.bfloat16 in named else torch.float16


def load_gptqmodel(folder: str, device: str, dtype: torch.dtype) -> Any:
    """A GPTQ checkpoint, through GPTQModel; over all GPUs where there are several."""
    from gptqmodel import BACKEND, GPTQModel

    if device == "cpu":
        # GPTQModel refuses to load float32; its kernel computes in the dtype of its input
        model = GPTQModel.load(folder, backend=BACKEND.TORCH, device="cpu", dtype=_stored(folder))
        return model.model.to(dtype).eval()
    where = {"device_map": "auto"} if torch.cuda.device_count() > 1 else {"device": device}
    return GPTQModel.load(folder, dtype=dtype, **where).model.eval()


def load_autogptq(folder: str, device: str, dtype: torch.dtype) -> Any:
    """A GPTQ checkpoint, through AutoGPTQ."""
    from auto_gptq import AutoGPTQForCausalLM

    if device == "cpu":
        model = AutoGPTQForCausalLM.from_quantized(
            folder, device="cpu", torch_dtype=dtype, disable_exllama=True, disable_exllamav2=True
        )
        return model.model.to(dtype).eval()
    return AutoGPTQForCausalLM.from_quantized(folder, device=device, torch_dtype=dtype).model.eval()


def load_transformers(folder: str, device: str, dtype: torch.dtype) -> Any:
    """Any model that transformers loads, a quantized one as its config says; on as many GPUs as it takes."""
    from transformers import AutoModelForCausalLM

    if device != "cpu":
        spread: Any = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=dtype, device_map="auto")
        return spread.eval()
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(folder, torch_dtype="auto")
    # transformers refuses to cast a quantized model, whose kernels compute in the dtype of their input
    return torch.nn.Module.to(model, dtype).eval()


LOADERS = {
    "gptqmodel": Loader(load_gptqmodel, "gptqmodel"),
    "auto-gptq": Loader(load_autogptq, "auto-gptq"),
    "transformers": Loader(load_transformers, "transformers"),
}
