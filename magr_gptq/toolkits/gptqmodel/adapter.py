"""GPTQModel 7.6 and 7.7: `QuantizeConfig(..., magr=True)`.

What is touched, why there, all undone by `Patches.undo`:

- `quantization.config`: the field `magr`; see `config`.
- `GPTQ.quantize`, `GPTAQ.quantize`, `FOEM.quantize`: hand the candidate rows over as `module_copy`,
  which the toolkit rounds instead of a clone, while `module` is a stand-in of their shape; keep each
  row's best. Changed on the class, so every name bound to it, optimum's included, sees the change.
- `models.base.BaseQModel.quantize`: opens a report for each run, raises where no layer was reduced.
- `looper.gptq_checkpoint.QuantizationCheckpointAdapter`: keeps the report where a run is stopped and resumed;
  see `resume`.
- `models.base.BaseQModel.prepare_dataset`: counts the rows that are dropped; see `calibration`.
- the looper's passes over the batches, where a layer aims at the unquantized model's output; see `chain`.

Called and left as they are: `CALLED` of a task, whose absence would end the process at the first layer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from gptqmodel.models.base import BaseQModel
from gptqmodel.quantization.foem import FOEM
from gptqmodel.quantization.gptaq import GPTAQ
from gptqmodel.quantization.gptq import GPTQ
from gptqmodel.utils.fallback import should_use_fallback
from transformers.pytorch_utils import Conv1D

from magr_gptq.config import MagRConfig, Plan
from magr_gptq.reduction.factorization import Factorization, Share
from magr_gptq.reduction.target import weighed_
from magr_gptq.toolkits import layer_step
from magr_gptq.toolkits.gptqmodel import calibration, chain, resume
from magr_gptq.toolkits.gptqmodel import config as config_field
from magr_gptq.toolkits.gptqmodel.rounding import RetriedError, Rounding, StandIn
from magr_gptq.toolkits.layer_step import Aside, Done, Given, descending_order
from magr_gptq.toolkits.patching import Patches, applied
from magr_gptq.toolkits.quantizer import restore_grid
from magr_gptq.toolkits.report import LayerReport, RunReport, reported_run

log = logging.getLogger(__name__)

CALLED = {
    "finalize_hessian": ("self", "target_device"),
    "_shared_factor_key": ("self", "ordering"),
    "clone_module": ("self", "copy", "device"),
    "_shared_factor_or_local": ("self", "ordering", "producer"),
    "_disable_shared_hessian_cache": ("self",),
}
# of scales, whatever the model's dtype
STORED = torch.float16
NOT_INVERTED = "its Hessian could not be inverted, so the toolkit rounded it to nearest"


def apply(patches: Patches) -> None:
    """Teach GPTQModel the switch `magr`."""
    config_field.apply(patches)
    for name, parameters in CALLED.items():
        patches.require(GPTQ, name, parameters)
    for task_class in (GPTQ, GPTAQ, FOEM):
        patches.wrap(task_class, "quantize", _quantize_layer, ("self", "blocksize"))
    patches.wrap(BaseQModel, "quantize", _quantize_model)
    resume.apply(patches)
    calibration.apply(patches)
    chain.apply(patches)


def _quantize_model(original: Callable[..., Any]) -> Callable[..., Any]:
    def quantize(self: Any, *args: Any, **kwargs: Any) -> Any:
        config = self.quantize_config
        asked = getattr(config, "magr", None) or any(o["magr"] for o in config_field.overrides(config))
        if not asked:
            return original(self, *args, **kwargs)
        with reported_run(config, config_field.unheard(config, _matrices(self.model))):
            return original(self, *args, **kwargs)

    return quantize


def _matrices(model: torch.nn.Module) -> list[str]:
    """The full names of modules with a weight matrix."""
    return [name for name, m in model.named_modules() if getattr(getattr(m, "weight", None), "ndim", 0) > 1]


def quantize_model(config: Any, quantize: Callable[[], Any]) -> Any:
    """Have the toolkit's own `quantize` make a run with `magr`, under a report.

    What a GPTQModel with a field `magr` of its own calls; its settings are checked here. The passes over the
    batches are hooked for as long as the run takes.

    Raises:
        ValueError, TypeError: a setting makes no sense.
        NothingReducedError: no layer was reduced.
    """
    config.magr = config_field.as_written(getattr(config, "magr", None), config)
    for override in config_field.overrides(config):
        override["magr"] = config_field.as_written(override["magr"], config)
    config_field.check_static_groups(config)
    with reported_run(config), applied("gptqmodel", resume.apply, chain.apply):
        return quantize()


def _quantize_layer(original: Callable[..., Any]) -> Callable[..., Any]:
    def quantize(self: Any, blocksize: int = 128) -> Any:
        """The toolkit's own, on MagR's rows in place of the layer's."""
        return quantize_layer(self, partial(original, self, blocksize=blocksize))

    return quantize


def quantize_layer(task: Any, quantize: Callable[[], Any]) -> Any:
    """Have the toolkit's own `quantize` round MagR's rows in place of the layer's, where `magr` asks for it.

    A GPTQModel with a field `magr` of its own calls this too.
    """
    if isinstance(task.module, StandIn):
        task.module = task.module.module
        restore_grid(task.quantizer)
        _step_aside(task, fallback="the toolkit met NaN and rounded without the Hessian")
        return quantize()
    magr = _setting(task)
    if magr is None:
        return quantize()
    if not hasattr(task.qcfg, "magr_report"):
        task.qcfg.magr_report = RunReport()  # a layer outside of a run
    if isinstance(task.module, torch.nn.Embedding):
        _step_aside(task, skipped="an embedding has no Hessian of its inputs")
    elif task.qcfg.mock_quantization:
        _step_aside(task, skipped="mock_quantization skips the Hessian")
    elif should_use_fallback(task.fallback, float(task.nsamples), task.expected_nsamples):
        _step_aside(task, fallback="too few calibration samples reached the layer")
    else:
        return _quantize_rows(task, _applicable(magr, task), quantize)
    return quantize()


def _quantize_rows(task: Any, magr: MagRConfig, quantize: Callable[[], Any]) -> Any:
    """Have the toolkit round MagR's rows, and give it back what a row each became."""
    try:
        given = _given(task, magr)
    except layer_step.LAYER_ERRORS as error:
        _step_aside(task, skipped=layer_step.first_line(error))
        return quantize()
    rounding = Rounding(task, quantize, _kind(given.plan))
    try:
        done = layer_step.quantize_layer(given, rounding)
    except RetriedError:
        return rounding.retried
    if isinstance(done, Aside):
        task.H = done.hessian
        # it may be shrunk, and must not serve other layers
        task._disable_shared_hessian_cache()
        _step_aside(task, skipped=done.reason, aside=done.outcome)
        return quantize()
    return _result(task, done, rounding.rest)


def _given(task: Any, magr: MagRConfig) -> Given:
    """The layer with its Hessian and its plan."""
    config = task.qcfg
    halves = chain.halves_of(task)
    found = task.finalize_hessian(target_device=getattr(task.module, "target_device", None))
    hessian = weighed_(found, halves)
    plan = magr.resolve(config.bits, config.group_size, _order(task, hessian), STORED)
    if plan.nearest:
        # other layers with this input may have shared their factor
        task._disable_shared_hessian_cache()
    corrects = isinstance(task, (GPTAQ, FOEM))
    return Given(
        weight=task.clone_module(copy=False, device=hessian.device),
        hessian=hessian,
        plan=plan,
        # where earlier layers are corrected for these are sequences
        tokens=None if corrects else int(task.nsamples),
        # padding is cut off where it stands, and a correction has its columns in their own order
        in_order=not (config.desc_act or task._tp_pad_cols or corrects),
        share=_share(task, plan, hessian),
        halves=halves,
    )


def _result(task: Any, done: Done, found: Any) -> Any:
    """What the toolkit's `quantize` returns, of the rows that were kept; counted in the report.

    Args:
        found: what comes after the columns' groups in what it returned the last time.
    """
    config, module = task.qcfg, task.module
    report, settled = LayerReport.of(_name(task), config.bits, config.group_size, done), done.settled
    duration, loss, damp, samples = found
    # a loss in words tells of another way to round
    config.magr_report.add(replace(report, fallback=NOT_INVERTED) if isinstance(loss, str) else report)
    if isinstance(loss, float):
        loss = settled.squared_error / 2 / samples  # as the toolkit counts it
    best = settled.rounded
    matrix = best.weight.t() if isinstance(module, Conv1D) else best.weight
    weight = matrix.reshape(module.weight.shape).to(module.weight)
    return weight, best.scale, best.zero, best.group_of, duration, loss, damp, samples


def _step_aside(task: Any, **why: Any) -> None:
    config = task.qcfg
    # where the toolkit retries, the reduced rows have been consumed
    task.module_copy = None
    config.magr_report.add(LayerReport(_name(task), config.bits, config.group_size, **why))
    log.warning("magr steps aside for %s: %s", _name(task), next(iter(why.values())))


def _applicable(magr: MagRConfig, task: Any) -> MagRConfig:
    """What of the setting applies beside the toolkit's other levers.

    GPTAQ and FOEM round towards another target than Ŵ, from which a choice or a refinement by the
    distance to Ŵ would lead away; the `mse` search chooses the step by itself.
    """
    if isinstance(task, (GPTAQ, FOEM)):
        magr = replace(magr, search=False, refine=0, gain=bool(magr.gain))
    return magr.with_beta(1.0) if task.qcfg.mse else magr


def _name(task: Any) -> str:
    named = task._named_module
    return str(task.name if named is None else named.full_name)


def _setting(task: Any) -> MagRConfig | None:
    """The layer's own setting: the config's, unless a `dynamic` override names the module."""
    default = MagRConfig.parse(getattr(task.qcfg, "magr", None))
    if task._named_module is None:
        return default
    override = task.qcfg.dynamic_get(task._named_module.full_name, "magr", None)
    return default if override is None else MagRConfig.parse(override)


def _kind(plan: Plan) -> str:
    """What sets the Hessians of layers with one input apart, for the toolkit's cache of factors."""
    order = "theirs" if plan.order is None else "desc_act"
    return f"magr, order {order}, shrinks {plan.shrinks}, reorders {plan.reorders}"


def _share(task: Any, plan: Plan, hessian: torch.Tensor) -> Share | None:
    """The toolkit's cache for layers with one input (q, k, v; gate, up), kept until the last of them is done.

    Not for a mixture's experts, whose names have numbers: all gates come before all ups, so that hundreds of
    factorizations would be kept.
    """
    if any(part.isdigit() for part in task.name.split(".")):
        return None

    def share(compute: Callable[[], Factorization]) -> Factorization:
        # which the toolkit looks at here, and lets go of once it has rounded a candidate
        task.H = hessian
        found: Factorization = task._shared_factor_or_local(_kind(plan), compute)
        return found

    return share


def _order(task: Any, hessian: torch.Tensor) -> torch.Tensor | None:
    """With desc_act a group is consecutive columns of this order."""
    if not task.qcfg.desc_act or task.qcfg.static_groups:
        return None
    return descending_order(hessian, dead=1.0)
