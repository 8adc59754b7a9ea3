"""AutoGPTQ 0.7.1: `BaseQuantizeConfig(..., magr=True)`.

What is touched, why there, all undone by `Patches.undo`:

- `modeling._base.BaseQuantizeConfig`: gains the field `magr`; its `to_dict` writes it into
  quantize_config.json, where unmodified loaders ignore what they don't know.
- `modeling._base.BaseGPTQForCausalLM.quantize`: opens a report for each run and makes the config
  known to the layers, which AutoGPTQ doesn't; raises where no layer was reduced.
- `quantization.gptq.GPTQ.add_batch`: counts the tokens that go into the Hessian; more for the unquantized
  chain, see `chain`.
- `quantization.gptq.GPTQ.fasterquant`: puts candidate rows into the layer, from where the toolkit
  takes the weight that it rounds, and keeps each row's best.
- only without CUDA: `modeling._base.CUDA_0`, where layers are moved to, becomes the CPU, and the
  name `torch` inside `modeling._base` and `quantization.gptq` a view on torch that passes the check
  for CUDA and has nothing to synchronize. torch itself stays as it is.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from contextlib import nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from auto_gptq.modeling import _base
from auto_gptq.quantization import gptq
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from magr_gptq.config import MagRConfig
from magr_gptq.reduction.target import weighed_
from magr_gptq.rounding.rounded import Rounded
from magr_gptq.toolkits import layer_step
from magr_gptq.toolkits.autogptq import chain
from magr_gptq.toolkits.layer_step import Aside, Given, descending_order
from magr_gptq.toolkits.patching import Patches, applied
from magr_gptq.toolkits.quantizer import shrunk_grid
from magr_gptq.toolkits.report import LayerReport, RunReport, reported_run

log = logging.getLogger(__name__)

# the format stores zero − 1 in an unsigned field
LOWEST_ZERO = 1
# of scales, whatever the model's dtype
STORED = torch.float16

FASTERQUANT_PARAMETERS = ("self", "blocksize", "percdamp", "group_size", "actorder", "static_groups")


@dataclass(frozen=True)
class _Run:
    """The quantization in progress: its settings, its report, and the names of the model's modules."""

    magr: MagRConfig
    bits: int
    report: RunReport
    names: dict[int, str]


_run: ContextVar[_Run | None] = ContextVar("magr_run", default=None)


def apply(patches: Patches) -> None:
    """Teach AutoGPTQ the switch `magr`, and to quantize without CUDA."""
    patches.add_magr_field(_base.BaseQuantizeConfig, _init)
    patches.wrap(_base.BaseQuantizeConfig, "to_dict", _to_dict, ("self",))
    patches.wrap(_base.BaseGPTQForCausalLM, "quantize", _quantize_model)
    chain.apply(patches)
    patches.wrap(gptq.GPTQ, "add_batch", _count, ("self", "inp", "out"))
    patches.wrap(gptq.GPTQ, "fasterquant", _quantize_layer, FASTERQUANT_PARAMETERS)
    if not torch.cuda.is_available():
        cuda = _View(torch.cuda, is_available=lambda: True, synchronize=lambda: None)
        patches.replace(_base, "CUDA_0", torch.device("cpu"))
        for module in (_base, gptq):
            patches.replace(module, "torch", _View(torch, cuda=cuda))


class _View:
    """Another object seen through, but for the attributes that are answered here."""

    def __init__(self, target: Any, **answers: Any) -> None:
        self.__dict__.update(answers, _target=target)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)


def _init(original: Callable[..., None]) -> Callable[..., None]:
    def init(self: Any, *args: Any, magr: Any = None, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.magr = MagRConfig.parse(magr)
        self.magr_report = RunReport()

    return init


def _to_dict(original: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    def to_dict(self: Any) -> dict[str, Any]:
        written = original(self)
        return written if self.magr is None else {**written, "magr": self.magr.to_dict()}

    return to_dict


def _quantize_model(original: Callable[..., Any]) -> Callable[..., Any]:
    def quantize(self: Any, *args: Any, **kwargs: Any) -> Any:
        config = self.quantize_config
        if config.magr is None:
            return original(self, *args, **kwargs)
        names = {id(module): name for name, module in self.model.named_modules()}
        home = chain.home_of(original, self, *args, **kwargs)
        with reported_run(config) as report, chain.followed(config.magr, self, home):
            token = _run.set(_Run(config.magr, config.bits, report, names))
            try:
                return original(self, *args, **kwargs)
            finally:
                _run.reset(token)

    return quantize


def count_tokens(task: Any, inputs: Tensor) -> None:
    """Count the tokens that the toolkit, which counts sequences, adds to its Hessian; not a convolution's.

    An AutoGPTQ with a field `magr` of its own calls this in `add_batch`.
    """
    if isinstance(task.layer, (torch.nn.Linear, Conv1D)):
        task.magr_tokens = getattr(task, "magr_tokens", 0) + inputs.shape[:-1].numel()


def _count(original: Callable[..., None]) -> Callable[..., None]:
    def add_batch(self: Any, inp: Tensor, out: Tensor) -> None:
        original(self, inp, out)
        if _run.get() is not None:
            count_tokens(self, inp)

    return add_batch


def _quantize_layer(original: Callable[..., Any]) -> Callable[..., Any]:
    def fasterquant(
        self: Any, blocksize: int = 128, percdamp: float = 0.01, group_size: int = -1,
        actorder: bool = False, static_groups: bool = False,
    ) -> Any:  # fmt: skip
        def quantize() -> Any:
            return original(self, blocksize, percdamp, group_size, actorder, static_groups)

        run = _run.get()
        if run is None:
            return quantize()
        return _quantize_rows(self, run, quantize, group_size, actorder, static_groups)

    return fasterquant


def quantize_model(
    config: Any, quantize: Callable[[], Any], model: Any = None, home: torch.device | None = None
) -> None:
    """Have the toolkit's own `quantize` make a run with `magr`, under a report.

    What an AutoGPTQ with a field `magr` of its own calls; its setting is checked here.

    Args:
        model: AutoGPTQ's, whose unquantized outputs the layers come near; without it each comes near its own.
        home: the device where the toolkit keeps hidden states between blocks, for those of the unquantized
            model, too; None is where a batch is run.

    Raises:
        ValueError, TypeError: the setting makes no sense.
        NothingReducedError: no layer was reduced.
    """
    magr = MagRConfig.parse(config.magr)
    config.magr = magr and magr.to_dict()
    followed = nullcontext() if model is None else chain.followed(magr, model, home)
    with reported_run(config), applied("auto-gptq", chain.apply), followed:
        quantize()


def quantize_layer(task: Any, quantize: Callable[[], Any], config: Any, name: str) -> Any:
    """Have the toolkit's own `quantize` round MagR's rows in place of the layer's, where `magr` asks for it.

    What an AutoGPTQ with a field `magr` of its own calls.

    Args:
        config: of the run, which `quantize_model` has opened.
        name: of the layer, for the report.
    """
    magr = MagRConfig.parse(config.magr)
    if magr is None:
        return quantize()
    run = _Run(magr, config.bits, config.magr_report, {id(task.layer): name})
    return _quantize_rows(task, run, quantize, config.group_size, config.desc_act, config.static_groups)


def _quantize_rows(
    task: Any, run: _Run, quantize: Callable[[], Any], group_size: int, reorders: bool, static_groups: bool
) -> Any:
    """Have the toolkit round MagR's rows, and give it back what a row each became."""
    name = run.names[id(task.layer)]
    weight = task.layer.weight
    own = weight.data
    # the toolkit keeps a grid that was set before
    quantizer = copy.deepcopy(task.quantizer)

    def step_aside(why: str, outcome: str = "skipped") -> Any:
        run.report.add(LayerReport(name, run.bits, group_size, skipped=why, aside=outcome))
        log.warning("magr steps aside for %s: %s", name, why)
        return quantize()

    try:
        given = _given(task, run, group_size, reorders, static_groups)
    except layer_step.LAYER_ERRORS as error:
        return step_aside(layer_step.first_line(error))
    # symmetric zero points are 2ᵇ⁻¹, which every format holds
    lowest = 0 if quantizer.sym else LOWEST_ZERO

    def round_rows(rows: Tensor, factors: Tensor, hessian: Tensor) -> Rounded:
        task.H, task.quantizer = hessian, copy.deepcopy(quantizer)
        # float32 for as long as it is rounded: half precision would blur the reduced magnitudes
        weight.data = _from_matrix(task.layer, rows)
        try:
            with shrunk_grid(task.quantizer, factors=factors, bits=run.bits, lowest_zero=lowest):
                scale, zero, group_of = quantize()
            return Rounded(_to_matrix(task.layer), scale, zero, group_of)
        finally:
            weight.data = own

    done = layer_step.quantize_layer(given, round_rows)
    if isinstance(done, Aside):
        task.H, task.quantizer = done.hessian, quantizer
        return step_aside(done.reason, done.outcome)
    run.report.add(LayerReport.of(name, run.bits, group_size, done))
    return _result(task.layer, done.settled.rounded)


def _given(task: Any, run: _Run, group_size: int, reorders: bool, static_groups: bool) -> Given:
    """The layer with its Hessian, its plan, and what both chains add up to."""
    halves = chain.halves_of(task.layer)
    task.H = weighed_(task.H, halves)
    order = descending_order(task.H, dead=1.0) if reorders and not static_groups else None
    return Given(
        weight=_to_matrix(task.layer),
        hessian=task.H,
        plan=run.magr.resolve(run.bits, group_size, order, STORED),
        tokens=getattr(task, "magr_tokens", None),
        in_order=not reorders,
        halves=halves,
    )


def _result(layer: Any, best: Rounded) -> Any:
    """What the toolkit's `fasterquant` returns, and leaves in the layer."""
    layer.weight.data = _from_matrix(layer, best.weight).to(layer.weight.data)
    return best.scale, best.zero, best.group_of


def _to_matrix(layer: Any) -> torch.Tensor:
    """The weight as [out, in], as AutoGPTQ lays it out."""
    weight: torch.Tensor = layer.weight.data
    return weight.t() if isinstance(layer, Conv1D) else weight.flatten(1)


def _from_matrix(layer: Any, matrix: torch.Tensor) -> torch.Tensor:
    """The inverse of `_to_matrix`, for any number of rows."""
    return matrix.t() if isinstance(layer, Conv1D) else matrix.view(-1, *layer.weight.shape[1:])
