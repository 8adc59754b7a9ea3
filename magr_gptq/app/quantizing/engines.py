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
    loaders: what may load the checkpoints, of `LOADING` and of `magr_score`; the first one must, and scores
        them. See `verifying` for whether they do.
    least_tokens: the toolkit leaves out calibration windows that are shorter.
    kernels: what transformers needs, to load the checkpoints.
    packer: the distribution that packs the codes, where it is not the toolkit.
    plain_nearest: whether it rounds to nearest without MagR, too. desc_act: whether it can save an order.
    mixed: whether its checkpoints can name a width for each layer.
    """

    toolkit: str
    module: str
    loaders: tuple[str, ...]
    least_tokens: int = 1
    kernels: str = "gptqmodel and optimum"
    packer: str | None = None
    plain_nearest: bool = False
    desc_act: bool = True
    mixed: bool = False

    @property
    def loader(self) -> str:
        """Of `magr_score.loaders`: what scores the checkpoints."""
        return self.loaders[0]

    @property
    def distribution(self) -> str:
        """The toolkit's name for pip."""
        return TOOLKITS[self.toolkit].distribution

    @property
    def distributions(self) -> tuple[str, ...]:
        """All that decides what is saved: the toolkit, and those that round and pack for it."""
        rounds = TOOLKITS[self.toolkit].requires
        others = (TOOLKITS[rounds].distribution if rounds else None, self.packer)
        return (self.distribution, *(other for other in others if other))

    @property
    def quantize(self) -> Quantize:
        """The module's function; imports the toolkit."""
        found: Quantize = importlib.import_module(self.module).quantize
        return found


ENGINES = {
    "gptqmodel": Engine(
        toolkit="gptqmodel",
        module="magr_gptq.app.quantizing.by_gptqmodel",
        loaders=("gptqmodel", "transformers"),
        least_tokens=11,
        plain_nearest=True,
        mixed=True,
    ),
    "auto-gptq": Engine(
        toolkit="auto-gptq",
        module="magr_gptq.app.quantizing.by_autogptq",
        # GPTQModel 7.6 refuses what AutoGPTQ saved
        loaders=("auto-gptq",),
    ),
    "optimum": Engine(
        toolkit="optimum",
        module="magr_gptq.app.quantizing.by_optimum",
        loaders=("transformers", "gptqmodel"),
    ),
    "transformers": Engine(
        toolkit="optimum",
        module="magr_gptq.app.quantizing.by_transformers",
        loaders=("transformers", "gptqmodel"),
    ),
    "llm-compressor": Engine(
        toolkit="llm-compressor",
        module="magr_gptq.app.quantizing.by_llmcompressor",
        loaders=("transformers",),
        kernels="compressed-tensors",
        packer="compressed-tensors",
        plain_nearest=True,
        desc_act=False,
        mixed=True,
    ),
}
DEFAULT_ENGINE = "gptqmodel"

# how a checkpoint is loaded in Python, by loader; see `loading`
LOADING = {
    "gptqmodel": "from gptqmodel import GPTQModel\nmodel = GPTQModel.load({out!r})",
    "auto-gptq": "from auto_gptq import AutoGPTQForCausalLM\n"
    "model = AutoGPTQForCausalLM.from_quantized({out!r})",
    "transformers": "from transformers import AutoModelForCausalLM  # with {kernels} installed\n"
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


def loading(engine: str, loader: str, out: str) -> str:
    """The lines of Python in which this loader loads the folder that the engine saved."""
    return LOADING[loader].format(out=out, kernels=ENGINES[engine].kernels)


def require_able(
    name: str, *, rounding: str, magr: bool, desc_act: bool = False, mixed: bool = False
) -> None:
    """InputError where the engine of this name can't do what a job asks of it, with one that can."""
    engine = ENGINES[name]
    if rounding == "nearest" and not magr and not engine.plain_nearest:
        able = " or ".join(other for other, found in ENGINES.items() if found.plain_nearest)
        raise InputError(f"{name} cannot round to nearest without MagR; use --engine {able}")
    if mixed and not engine.mixed:
        able = " or ".join(other for other, found in ENGINES.items() if found.mixed)
        raise InputError(f"{name} gives all layers one width: name --bits, or use --engine {able}")
    if desc_act and not engine.desc_act:
        raise InputError(
            f"--desc-act: {name} saves no order of columns (it rounds them by importance anyhow, and puts "
            "them back); leave --desc-act out, or use another --engine"
        )
