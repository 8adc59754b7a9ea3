"""GPTQModel's config has a field `magr`, checked when the config is made.

What is touched:

- `quantization.config.GPTQConfig`: gains the field. `QuantizeConfig(...)` is a factory that drops unknown
  keys, so nothing less than a real field of the class it builds would arrive.
- `GPTQConfig._update_meta_payload`: writes the setting under `meta`, where unmodified loaders keep
  what they don't know; the constructor reads it back from there.
- `config._resolve_quantize_config_class`: the one place where the factory picks a method; refuses
  `magr` for every method but GPTQ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gptqmodel.quantization import config as config_module

from magr_gptq.config import MagRConfig
from magr_gptq.toolkits.patching import Patches
from magr_gptq.toolkits.report import RunReport


def apply(patches: Patches) -> None:
    """Give the config its field."""
    patches.add_magr_field(config_module.GPTQConfig, _init)
    patches.wrap(config_module.GPTQConfig, "_update_meta_payload", _update_meta, ("self", "meta_payload"))
    patches.wrap(config_module, "_resolve_quantize_config_class", _resolve_class, ("payload",))


def _init(original: Callable[..., None]) -> Callable[..., None]:
    def init(self: Any, *args: Any, magr: Any = None, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        stored = self.meta.get("magr")
        self.meta = {key: value for key, value in self.meta.items() if key != "magr"}
        self.magr = _parse(stored if magr is None else magr, self)
        self.magr_report = RunReport()
        for override in overrides(self):
            override["magr"] = as_written(override["magr"], self)
        if stored is None:  # a checkpoint that is loaded is done
            check_static_groups(self)

    return init


def as_written(setting: Any, config: Any) -> dict[str, Any] | bool:
    """A checked setting of `magr` as config files have it."""
    magr = _parse(setting, config)
    return magr.to_dict() if magr else False


def _parse(setting: Any, config: Any) -> MagRConfig | None:
    """A setting of `magr` that makes sense beside the toolkit's other levers.

    Checked before a layer comes up: an exception in one of the toolkit's threads ends the process.
    """
    magr = MagRConfig.parse(setting)
    method = next((name for name in ("gptaq", "foem") if getattr(config, name, None)), None)
    if magr and method and (magr.refine or magr.search):
        raise ValueError(
            f"magr: refine={magr.refine!r} and search={magr.search!r} lead back to the original weight, "
            f"and {method} corrects for errors of earlier layers; leave out refine and search, or {method}"
        )
    return magr


def check_static_groups(config: Any) -> None:
    """ValueError where the toolkit would give reordered columns the scales of other groups.

    It does so with `static_groups` and `act_group_aware`, and nothing shows it. MagR's order of columns makes
    the toolkit's the identity, but not where a column is dead, nor in layers that MagR leaves aside.
    """
    for override in ({}, *(o for o in (config.dynamic or {}).values() if isinstance(o, dict))):
        names = ("magr", "static_groups", "act_group_aware", "desc_act")
        magr, static, aware, ordered = (override.get(name, getattr(config, name, None)) for name in names)
        if magr and static and aware and not ordered:
            raise ValueError(
                "static_groups=True with act_group_aware=True, which is GPTQModel's default, takes the "
                "scales of other groups for reordered columns; set act_group_aware=False, as MagR orders "
                "columns itself"
            )


def overrides(config: Any) -> list[dict[str, Any]]:
    """The per-module `dynamic` overrides that set `magr`."""
    return [o for o in (config.dynamic or {}).values() if isinstance(o, dict) and "magr" in o]


def unheard(config: Any, names: Sequence[str]) -> list[str]:
    """What to tell of `dynamic` patterns that reach not one of the layers with these names."""
    found = []
    for pattern, override in (config.dynamic or {}).items():
        asks = _asks(pattern, override)
        # the toolkit answers False where a pattern leaves a layer out, None where it does not match
        matched = [name for name in names if config_module.dynamic_get({pattern: override}, name) is not None]
        if asks and not matched:
            found.append(
                f"the dynamic pattern {pattern!r}, which {asks}, matches no layer; patterns are matched "
                "from the start of a layer's full name"
            )
        elif asks and not pattern.startswith("-:") and all(config.dynamic_get(n) is False for n in matched):
            found.append(
                f"the dynamic pattern {pattern!r} {asks} for {len(matched)} layers, and a '-:' pattern "
                "leaves them all out, as it does wherever it stands"
            )
    return found


def _asks(pattern: str, override: Any) -> str:
    """What a `dynamic` pattern does with layers, in words; nothing where it has no settings."""
    if pattern.startswith("-:"):
        return "leaves layers out"
    return f"sets {', '.join(sorted(override))}" if isinstance(override, dict) and override else ""


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
