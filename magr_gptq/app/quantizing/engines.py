"""The toolkits that quantize from the command line: one entry is all that a new one needs."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from magr_gptq.errors import InputError
from magr_gptq.toolkits import TOOLKITS, installed
from magr_gptq.toolkits.report import RunReport

Quantize = Callable[..., tuple[float, RunReport]]


@dataclass(frozen=True)
class Engine:
    """One way from a model to a checkpoint.

    toolkit: its name in `magr_gptq.toolkits`, and its distribution's extra without hyphens.
    module: has `quantize(job, config, windows, batch_size, progress)`, as `by_gptqmodel` has it.
    loaders: what loads the checkpoints, of `LOADING` and of `magr_score`; the first one scores them.
    """

    toolkit: str
    module: str
    loaders: tuple[str, ...]

    @property
    def loader(self) -> str:
        """Of `magr_score.loaders`: what scores the checkpoints."""
        return self.loaders[0]

    @property
    def distribution(self) -> str:
        """The toolkit's name for pip."""
        return TOOLKITS[self.toolkit].distribution

    @property
    def quantize(self) -> Quantize:
        """The module's function; imports the toolkit."""
        found: Quantize = importlib.import_module(self.module).quantize
        return found


ENGINES = {
    "gptqmodel": Engine(
        toolkit="gptqmodel",
        module="magr_gptq.app.quantizing.by_gptqmodel",
        loaders=("gptqmodel", "transformers", "auto-gptq"),
    ),
    "auto-gptq": Engine(
        toolkit="auto-gptq",
        module="magr_gptq.app.quantizing.by_autogptq",
        # GPTQModel 7.6 refuses what AutoGPTQ saved
        loaders=("auto-gptq",),
    ),
}
DEFAULT_ENGINE = "gptqmodel"

# how a checkpoint is loaded in Python, by loader
LOADING = {
    "gptqmodel": "from gptqmodel import GPTQModel\nmodel = GPTQModel.load({out!r})",
    "auto-gptq": "from auto_gptq import AutoGPTQForCausalLM\n"
    "model = AutoGPTQForCausalLM.from_quantized({out!r})",
    "transformers": "from transformers import AutoModelForCausalLM  # with gptqmodel installed\n"
    'model = AutoModelForCausalLM.from_pretrained({out!r}, device_map="auto")',
}


def find_engine(name: str) -> Engine:
    """The engine of this name, whose toolkit is installed here.

    Raises:
        InputError: an unknown name, or a toolkit that is missing, with the command that installs it.
    """
    if name not in ENGINES:
        raise InputError(f"--engine {name!r}: the engines are {', '.join(ENGINES)}")
    toolkit = ENGINES[name].toolkit
    if toolkit not in installed():
        here = ", ".join(installed()) or "none of the toolkits"
        raise InputError(
            f"{toolkit} is not installed in this environment, which has {here}; "
            f"pip install 'magr-gptq[{toolkit.replace('-', '')}]'"
        )
    return ENGINES[name]
