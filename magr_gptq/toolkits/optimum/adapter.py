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
- its methods are followed for the unquantized chain; see `chain`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from gptqmodel.quantization.gptq import GPTQ
from optimum.gptq.quantizer import GPTQQuantizer
from transformers.utils.quantization_config import AwqConfig, GPTQConfig

from magr_gptq.config import MagRConfig
from magr_gptq.toolkits.optimum import chain
from magr_gptq.toolkits.patching import Patches, SeamError, applied
from magr_gptq.toolkits.report import RunReport, reported_run

# the names of the model's modules, by id, while it is quantized
_names: ContextVar[dict[int, str] | None] = ContextVar("magr_names", default=None)


def apply(patches: Patches) -> None:
    """Teach optimum, and with it transformers, the switch `magr`."""
    for settings_class in (GPTQConfig, GPTQQuantizer):
        patches.wrap(settings_class, "__init__", _init)
        patches.set(settings_class, "magr", property(_setting))
    patches.wrap(GPTQQuantizer, "quantize_model", _quantize_model, ("self", "model", "tokenizer"))
    patches.wrap(GPTQ, "fasterquant", _quantize_layer)
    chain.apply(patches)


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
        token = _names.set({id(module): name for name, module in model.named_modules()})
        try:
            with reported_run(config) as report, chain.followed(self, model):
                quantized = original(self, model, tokenizer)
        finally:
            _names.reset(token)
        # optimum's stand-in for the config that GPTQModel leaves there
        quantized.quantize_config.magr_report = report
        return quantized

    return quantize_model


def _quantize_layer(original: Callable[..., Any]) -> Callable[..., Any]:
    def fasterquant(self: Any, *args: Any, **kwargs: Any) -> Any:
        names = _names.get()
        if names is not None:
            self.name = names[id(self.module)]
        return original(self, *args, **kwargs)

    return fasterquant


@contextmanager
def run_with_magr(quantizer: Any, model: Any) -> Iterator[RunReport]:
    """A run under a report, beside the unquantized chain.

    What an optimum with a field `magr` of its own opens around its `quantize_model`.
    """
    with (
        reported_run(quantizer.quantizeConfig) as report,
        applied("optimum", chain.apply),
        chain.followed(quantizer, model),
    ):
        yield report
