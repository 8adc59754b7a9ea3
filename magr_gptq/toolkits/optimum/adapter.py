"""optimum 2.3 and transformers 5: `GPTQQuantizer(..., magr=True)` and `GPTQConfig(..., magr=True)`.

transformers hands its settings to optimum, and optimum rounds with GPTQModel's GPTQ, whose adapter
reduces the layers. Here the switch only travels there, in `meta`: both classes keep that dict, hand
it on, and save it in config.json and quantize_config.json, where unmodified loaders ignore it.

What is touched, why there, all undone by `Patches.undo`:

- `GPTQConfig.__init__`, `GPTQQuantizer.__init__`: put the keyword `magr`, which they would swallow,
  into `meta`; from there the `QuantizeConfig` that optimum builds takes it.
- `GPTQConfig.magr`, `GPTQQuantizer.magr`: new, the setting that `meta` holds.
- `GPTQQuantizer.quantize_model`: opens a report for each run, raises where no layer was reduced.
- `GPTQ.fasterquant`, which optimum alone calls: gives the layer its name, for the report.
- `GPTQ.__init__`, `GPTQ.add_batch`: tell of the layers and the inputs that optimum wants, for the unquantized
  chain. Without `cache_block_outputs` optimum runs all blocks again for each; then there is no chain.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from gptqmodel.quantization.gptq import GPTQ
from optimum.gptq.quantizer import GPTQQuantizer
from optimum.gptq.utils import get_block_name_with_pattern
from transformers.utils.quantization_config import AwqConfig, GPTQConfig

from magr_gptq.config import MagRConfig
from magr_gptq.toolkits.block_passes import BlockPasses
from magr_gptq.toolkits.patching import Patches, SeamError
from magr_gptq.toolkits.report import reported_run


@dataclass(frozen=True)
class _Run:
    """The quantization in progress: the names of the model's modules, by id, and its unquantized chain."""

    names: dict[int, str]
    passes: BlockPasses | None


_run: ContextVar[_Run | None] = ContextVar("magr_run", default=None)


def apply(patches: Patches) -> None:
    """Teach optimum, and with it transformers, the switch `magr`."""
    for settings_class in (GPTQConfig, GPTQQuantizer):
        patches.wrap(settings_class, "__init__", _init)
        patches.set(settings_class, "magr", property(_setting))
    patches.wrap(GPTQQuantizer, "quantize_model", _quantize_model, ("self", "model", "tokenizer"))
    patches.wrap(GPTQ, "__init__", _begin)
    patches.wrap(GPTQ, "add_batch", _add)
    patches.wrap(GPTQ, "fasterquant", _quantize_layer)


def _setting(settings: Any) -> MagRConfig | None:
    """The setting of MagR, kept under `meta`; None where it is off."""
    return MagRConfig.parse((settings.meta or {}).get("magr"))


def _init(original: Callable[..., None]) -> Callable[..., None]:
    signature = inspect.signature(original)
    if "magr" in signature.parameters:
        raise SeamError(
            f"{original.__qualname__} takes magr already; is this a copy that supports it by itself?"
        )

    def init(self: Any, *args: Any, magr: Any = None, **kwargs: Any) -> None:
        given = signature.bind(self, *args, **kwargs)
        meta = _with_magr(given.arguments.get("meta"), magr)
        if isinstance(self, AwqConfig) and meta and "magr" in meta:
            raise ValueError(
                f"magr={magr!r} applies to GPTQConfig; AwqConfig is another method, leave magr out"
            )
        given.arguments["meta"] = meta
        original(*given.args, **given.kwargs)

    shown: Any = init
    shown.__signature__ = _listing_magr(signature)
    return init


def _listing_magr(signature: inspect.Signature) -> inspect.Signature:
    """The signature with the keyword `magr` before its **kwargs, for `help` and for callers that look."""
    *parameters, others = signature.parameters.values()
    keyword = inspect.Parameter("magr", inspect.Parameter.KEYWORD_ONLY, default=None)
    return signature.replace(parameters=[*parameters, keyword, others])


def _with_magr(meta: dict[str, Any] | None, magr: Any) -> dict[str, Any] | None:
    """`meta` with what the keyword says, or what it held itself where the keyword is left out."""
    held = meta or {}
    setting = MagRConfig.parse(held.get("magr") if magr is None else magr)
    if setting is not None:
        return {**held, "magr": setting.to_dict()}
    return {key: value for key, value in held.items() if key != "magr"} if "magr" in held else meta


def _quantize_model(original: Callable[..., Any]) -> Callable[..., Any]:
    def quantize_model(self: Any, model: Any, tokenizer: Any = None) -> Any:
        """The original's run; with `magr` under a report, which gets the names of the model's modules."""
        config = self.quantizeConfig
        config.magr = self.magr
        if config.magr is None:
            return original(self, model, tokenizer)
        run = _Run({id(module): name for name, module in model.named_modules()}, _passes(self, model))
        token = _run.set(run)
        try:
            with reported_run(config) as report:
                quantized = original(self, model, tokenizer)
        finally:
            _run.reset(token)
            if run.passes:
                run.passes.finish()
        # optimum's stand-in for the config that GPTQModel leaves there
        quantized.quantize_config.magr_report = report
        return quantized

    return quantize_model


def _passes(quantizer: Any, model: Any) -> BlockPasses | None:
    if not (quantizer.magr.aims_at_model and quantizer.cache_block_outputs):
        return None
    name = quantizer.block_name_to_quantize or get_block_name_with_pattern(model)
    return BlockPasses(model.get_submodule(name))


def _begin(original: Callable[..., None]) -> Callable[..., None]:
    def init(self: Any, module: Any, *args: Any, **kwargs: Any) -> None:
        original(self, module, *args, **kwargs)
        if (run := _run.get()) is not None and run.passes is not None:
            run.passes.begin(module)

    return init


def _add(original: Callable[..., None]) -> Callable[..., None]:
    def add_batch(self: Any, inp: Any, *args: Any, **kwargs: Any) -> None:
        original(self, inp, *args, **kwargs)
        if (run := _run.get()) is not None and run.passes is not None:
            run.passes.add(self.module, inp)

    return add_batch


def _quantize_layer(original: Callable[..., Any]) -> Callable[..., Any]:
    def fasterquant(self: Any, *args: Any, **kwargs: Any) -> Any:
        if (run := _run.get()) is not None:
            self.name = run.names[id(self.module)]
            # where the layer is rounded, they are taken from there
            self.magr_pairs = run.passes.end(self.module) if run.passes else None
        return original(self, *args, **kwargs)

    return fasterquant
