"""`enable` and `disable`: which toolkits know the switch `magr` right now."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from magr_gptq.toolkits.patching import Patches, SeamError
from magr_gptq.toolkits.report import NothingReducedError

__all__ = ["NothingReducedError", "SeamError", "disable", "enable", "enabled", "installed"]


@dataclass(frozen=True)
class Toolkit:
    """A toolkit that can be adapted.

    module: present where it is installed. distribution: its name for pip.
    adapter: the file that adapts it.      verified: releases that the tests ran against.
    requires: the toolkit that rounds for it, adapted with it; None where it rounds by itself.
    """

    module: str
    distribution: str
    adapter: str
    verified: tuple[str, ...]
    requires: str | None = None

    @property
    def version(self) -> str:
        """The installed release."""
        return importlib.metadata.version(self.distribution)


TOOLKITS = {
    "gptqmodel": Toolkit(
        "gptqmodel", "gptqmodel", "magr_gptq.toolkits.gptqmodel.adapter", ("7.6.0", "7.7.0")
    ),
    "auto-gptq": Toolkit("auto_gptq", "auto-gptq", "magr_gptq.toolkits.autogptq.adapter", ("0.7.1",)),
    # `optimum` alone is a namespace that other distributions share
    "optimum": Toolkit(
        "optimum.gptq", "optimum", "magr_gptq.toolkits.optimum.adapter", ("2.3.0",), requires="gptqmodel"
    ),
    "llm-compressor": Toolkit(
        "llmcompressor", "llmcompressor", "magr_gptq.toolkits.llmcompressor.modifier", ("0.14.0", "0.14.0.1")
    ),
}

_enabled: dict[str, Patches] = {}
_lock = threading.RLock()


def installed() -> tuple[str, ...]:
    """The names of the toolkits that are installed here with what they require; imports none of them."""
    return tuple(
        name
        for name, toolkit in TOOLKITS.items()
        if _is_present(toolkit) and (toolkit.requires is None or _is_present(TOOLKITS[toolkit.requires]))
    )


def enable(*toolkits: str) -> tuple[str, ...]:
    """Teach the named toolkits, or all that are installed, the switch `magr`. Idempotent.

    A toolkit that another one requires is adapted with it.

    Returns:
        The symbols that are now changed, as dotted paths.

    Raises:
        ValueError: an unknown name.
        ModuleNotFoundError: a toolkit is not installed, or none is.
        SeamError: a toolkit lacks a symbol, or the symbol has another signature; nothing is changed then.
    """
    names = _with_required(_checked(toolkits) or installed())
    if not names:
        raise ModuleNotFoundError(
            "no supported toolkit is installed; pip install 'magr-gptq[gptqmodel]' or 'magr-gptq[autogptq]'"
        )
    with _lock:
        added: list[str] = []
        try:
            for name in names:
                if name not in _enabled:
                    _enabled[name] = _adapt(name)
                    added.append(name)
        except BaseException:
            if added:
                disable(*added)
            raise
        return tuple(symbol for name in names for symbol in _enabled[name].touched)


def disable(*toolkits: str) -> None:
    """Put back what `enable` changed in the named toolkits, or in all: the very same objects.

    Toolkits that require a named one are put back with it; what a named one requires stays enabled.
    """
    with _lock:
        named = _checked(toolkits) or tuple(_enabled)
        for name in reversed(tuple(_enabled)):
            if name in named or TOOLKITS[name].requires in named:
                _enabled.pop(name).undo()


@contextmanager
def enabled(*toolkits: str) -> Iterator[tuple[str, ...]]:
    """`enable` for the length of a with block; toolkits that were enabled before stay so."""
    before = set(_enabled)
    touched = enable(*toolkits)
    try:
        yield touched
    finally:
        added = tuple(set(_enabled) - before)
        if added:
            disable(*added)


def _checked(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name not in TOOLKITS:
            raise ValueError(f"unknown toolkit {name!r}; known are {', '.join(TOOLKITS)}")
    return names


def _is_present(toolkit: Toolkit) -> bool:
    try:
        return importlib.util.find_spec(toolkit.module) is not None
    except ModuleNotFoundError:
        return False  # the package around the module is missing


def _with_required(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names without repeats, each after the one that it requires."""
    pairs = [(TOOLKITS[name].requires, name) for name in names]
    return tuple(dict.fromkeys(name for pair in pairs for name in pair if name is not None))


def _adapt(name: str) -> Patches:
    toolkit = TOOLKITS[name]
    if not _is_present(toolkit):
        raise ModuleNotFoundError(f"{name} is not installed; pip install {toolkit.distribution}")
    if toolkit.version not in toolkit.verified:
        warnings.warn(
            f"magr_gptq was tested with {name} {', '.join(toolkit.verified)}, not {toolkit.version}",
            stacklevel=4,
        )
    patches = Patches(f"{name} {toolkit.version}")
    try:
        importlib.import_module(toolkit.adapter).apply(patches)
    except BaseException:
        patches.undo()
        raise
    return patches
