"""Loading a model folder with an unmodified toolkit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch


@dataclass(frozen=True)
class Loader:
    """A toolkit that loads model folders.

    load: from a folder and a device to a model in evaluation mode. distribution: the toolkit's name for pip.
    """

    load: Callable[[str, str], Any]
    distribution: str

    def versions(self) -> dict[str, str]:
        """The installed releases of what the numbers depend on."""
        return {name: version(name) for name in sorted({self.distribution, "transformers", "torch"})}


def device() -> str:
    """Where models are loaded to: the first GPU, or the CPU."""
    return "cuda:0" if torch.cuda.is_available() else "cpu"


def load_gptqmodel(folder: str, device: str) -> Any:
    """A GPTQ checkpoint, through GPTQModel."""
    from gptqmodel import BACKEND, GPTQModel

    if device == "cpu":
        model = GPTQModel.load(folder, backend=BACKEND.TORCH, device="cpu", dtype=torch.float16)
        # GPTQModel refuses to load float32; its kernel computes in the dtype of its input
        return model.model.float().eval()
    return GPTQModel.load(folder, device=device, dtype=torch.float16).model.eval()


def load_autogptq(folder: str, device: str) -> Any:
    """A GPTQ checkpoint, through AutoGPTQ."""
    from auto_gptq import AutoGPTQForCausalLM

    if device == "cpu":
        model = AutoGPTQForCausalLM.from_quantized(
            folder, device="cpu", torch_dtype=torch.float32, disable_exllama=True, disable_exllamav2=True
        )
        return model.model.float().eval()
    return AutoGPTQForCausalLM.from_quantized(folder, device=device, torch_dtype=torch.float16).model.eval()


def load_transformers(folder: str, device: str) -> Any:
    """Any model that transformers loads, computing in float32; a quantized one as its config says."""
    from transformers import AutoModelForCausalLM

    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(folder, torch_dtype="auto")
    # transformers refuses to cast a quantized model, whose kernels compute in the dtype of their input
    return torch.nn.Module.float(model).to(device).eval()


def load_original(folder: str, device: str) -> Any:
    """The unquantized model: in float32 on a CPU, in 16 bits on as many GPUs as it takes."""
    if device == "cpu":
        return load_transformers(folder, device)
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float16, device_map="auto")
    return model.eval()


LOADERS = {
    "gptqmodel": Loader(load_gptqmodel, "gptqmodel"),
    "auto-gptq": Loader(load_autogptq, "auto-gptq"),
    "transformers": Loader(load_transformers, "transformers"),
}
