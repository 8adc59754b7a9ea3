"""GPTQModel 7.6: `QuantizeConfig(..., magr=True)`.

What is touched, why there, all undone by `Patches.undo`:

- `quantization.config.GPTQConfig`: gains the field `magr`. `QuantizeConfig(...)` is a factory that
  drops unknown keys, so nothing less than a real field of the class it builds would arrive.
- `GPTQConfig._update_meta_payload`: writes the setting under `meta`, where unmodified loaders keep
  what they don't know; the constructor reads it back from there.
- `config._resolve_quantize_config_class`: the one place where the factory picks a method; refuses
  `magr` for every method but GPTQ.
- `GPTQ.quantize`, `GPTAQ.quantize`, `FOEM.quantize`: hand the reduced weight over as `module_copy`,
  which the toolkit rounds instead of a clone. Changed on the class, so every name bound to it,
  optimum's included, sees the change.
- `models.base.BaseQModel.quantize`: opens a report for each run, raises where no layer was reduced.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from gptqmodel.models.base import BaseQModel
from gptqmodel.quantization import config as config_module
from gptqmodel.quantization.foem import FOEM
from gptqmodel.quantization.gptaq import GPTAQ
from gptqmodel.quantization.gptq import GPTQ
from gptqmodel.utils.fallback import should_use_fallback

from magr_gptq.config import MagRConfig
from magr_gptq.solver import reduce
from magr_gptq.toolkits._patch import Patches
from magr_gptq.toolkits._quantizer import shrunk_grid
from magr_gptq.toolkits.report import LayerReport, RunReport

log = logging.getLogger(__name__)


def apply(patches: Patches) -> None:
    """Teach GPTQModel the switch `magr`."""
    patches.add_magr_field(config_module.GPTQConfig, _init)
    patches.wrap(config_module.GPTQConfig, "_update_meta_payload", _update_meta, ("self", "meta_payload"))
    patches.wrap(config_module, "_resolve_quantize_config_class", _resolve_class, ("payload",))
    for task_class in (GPTQ, GPTAQ, FOEM):
        patches.wrap(task_class, "quantize", _quantize_layer, ("self", "blocksize"))
    patches.wrap(BaseQModel, "quantize", _quantize_model)


def _init(original: Callable[..., None]) -> Callable[..., None]:
    def init(self: Any, *args: Any, magr: Any = None, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        stored = self.meta.get("magr")
        self.meta = {key: value for key, value in self.meta.items() if key != "magr"}
        self.magr = MagRConfig.parse(stored if magr is None else magr)
        self.magr_report = RunReport()
        for override in _overrides(self):
            setting = MagRConfig.parse(override["magr"])
            override["magr"] = setting.to_dict() if setting else False

    return init


def _overrides(config: Any) -> list[dict[str, Any]]:
    """The per-module `dynamic` overrides that set `magr`."""
    return [o for o in (config.dynamic or {}).values() if isinstance(o, dict) and "magr" in o]


def _update_meta(original: Callable[..., None]) -> Callable[..., None]:
    def update_meta(self: Any, meta_payload: dict[str, Any]) -> None:
        original(self, meta_payload)
        if self.magr is not None:
            meta_payload["magr"] = self.magr.to_dict()

    return update_meta


def _resolve_class(original: Callable[..., Any]) -> Callable[..., Any]:
    def resolve_class(payload: dict[str, Any]) -> Any:
        found = original(payload)
        setting = payload.get("magr")
        if setting not in (None, False) and found is not config_module.GPTQConfig:
            raise ValueError(
                f"magr={setting!r} applies to method='gptq', and these settings select {found.__name__}; "
                "leave magr out, or choose method='gptq'"
            )
        return found

    return resolve_class


def _quantize_model(original: Callable[..., Any]) -> Callable[..., Any]:
    def quantize(self: Any, *args: Any, **kwargs: Any) -> Any:
        config = self.quantize_config
        asked = getattr(config, "magr", None) or any(o["magr"] for o in _overrides(config))
        if not asked:
            return original(self, *args, **kwargs)
        config.magr_report = RunReport()
        result = original(self, *args, **kwargs)
        config.magr_report.require_some()
        log.info(config.magr_report.summary())
        return result

    return quantize


def _quantize_layer(original: Callable[..., Any]) -> Callable[..., Any]:
    def quantize(self: Any, blocksize: int = 128) -> Any:
        magr = _setting(self)
        if magr is None:
            return original(self, blocksize=blocksize)
        config, report = self.qcfg, self.qcfg.magr_report
        why_not = _why_not(self)
        if why_not:
            # a retry after NaN comes back here with the reduced weight already consumed
            self.module_copy = None
            report.add(LayerReport(_name(self), config.bits, config.group_size, skipped=why_not))
            log.warning("magr steps aside for %s: %s", _name(self), why_not)
            return original(self, blocksize=blocksize)
        hessian = self.finalize_hessian(target_device=getattr(self.module, "target_device", None))
        reduction = reduce(
            self.clone_module(device=hessian.device), hessian,
            bits=config.bits, group_size=config.group_size, order=_order(self, hessian), config=magr,
        )  # fmt: skip
        self.module_copy = reduction.weight
        beta = _beta(magr, config)
        report.add(LayerReport.of(_name(self), config.bits, config.group_size, beta, reduction))
        with shrunk_grid(self.quantizer, beta=beta, bits=config.bits):
            return original(self, blocksize=blocksize)

    return quantize


def _name(task: Any) -> str:
    named = task._named_module
    return str(task.name if named is None else named.full_name)


def _setting(task: Any) -> MagRConfig | None:
    """The layer's own setting: the config's, unless a `dynamic` override names the module."""
    default = getattr(task.qcfg, "magr", None)
    if task._named_module is None:
        return default
    override = task.qcfg.dynamic_get(task._named_module.full_name, "magr", None)
    return default if override is None else MagRConfig.parse(override)


def _why_not(task: Any) -> str | None:
    """Why this layer can't be reduced, or None where it can."""
    if isinstance(task.module, torch.nn.Embedding):
        return "an embedding has no Hessian of its inputs"
    if task.qcfg.mock_quantization:
        return "mock_quantization skips the Hessian"
    if should_use_fallback(task.fallback, float(task.nsamples), task.expected_nsamples):
        return "too few calibration samples reached the layer; the toolkit's fallback quantized it"
    return None


def _order(task: Any, hessian: torch.Tensor) -> torch.Tensor | None:
    """With desc_act a group is consecutive columns of this order; dead columns count as 1 there."""
    if not task.qcfg.desc_act or task.qcfg.static_groups:
        return None
    diagonal = hessian.diagonal()
    return torch.argsort(torch.where(diagonal == 0, 1.0, diagonal), descending=True)


def _beta(magr: MagRConfig, config: Any) -> float:
    """The factor on the step; the toolkit's `mse` search chooses the step by itself."""
    if config.mse and magr.beta is None:
        return 1.0
    return magr.beta_for(config.bits, config.group_size)
