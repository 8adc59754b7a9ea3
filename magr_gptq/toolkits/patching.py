"""Reversible changes to a toolkit's attributes: each is checked, remembered and undone in reverse."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

_MISSING = object()


class SeamError(RuntimeError):
    """A toolkit lacks a symbol that an adapter hooks into, or the symbol has another signature."""


class Patches:
    """The changes made to one toolkit, so that `undo` puts back the very same objects."""

    def __init__(self, toolkit: str) -> None:
        self.toolkit = toolkit
        self.touched: list[str] = []
        self._saved: list[tuple[Any, str, Any]] = []

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Bind `owner.name` to value until `undo`; the attribute need not exist yet."""
        self._saved.append((owner, name, vars(owner).get(name, _MISSING)))
        setattr(owner, name, value)
        self.touched.append(f"{_path(owner)}.{name}")

    def replace(self, owner: Any, name: str, value: Any) -> None:
        """`set`, for an attribute that the toolkit must have.

        Raises:
            SeamError: it is missing.
        """
        self._existing(owner, name)
        self.set(owner, name, value)

    def wrap(
        self,
        owner: Any,
        name: str,
        around: Callable[[Callable[..., Any]], Callable[..., Any]],
        parameters: tuple[str, ...] | None = None,
    ) -> None:
        """Replace the function `owner.name` by `around(original)`, which keeps it as `__wrapped__`.

        Raises:
            SeamError: the function is missing, or takes other parameters than those given.
        """
        original = self.require(owner, name, parameters)
        self.set(owner, name, functools.wraps(original)(around(original)))

    def require(self, owner: Any, name: str, parameters: tuple[str, ...] | None = None) -> Callable[..., Any]:
        """The function `owner.name`, which an adapter calls.

        Raises:
            SeamError: it is missing, or takes other parameters than those given.
        """
        function: Callable[..., Any] = self._existing(owner, name)
        actual = tuple(inspect.signature(function).parameters)
        if parameters is not None and actual != parameters:
            raise SeamError(
                f"{self.toolkit}: {_path(owner)}.{name} takes {actual}, not {parameters}; "
                "magr_gptq does not know this release"
            )
        return function

    def add_magr_field(
        self, config_class: Any, around_init: Callable[[Callable[..., Any]], Callable[..., Any]]
    ) -> None:
        """Make `magr` a field of the dataclass: `around_init` accepts it, `fields()` lists it."""
        known = vars(config_class).get("__dataclass_fields__")
        if known is None or "magr" in known:
            raise SeamError(
                f"{self.toolkit}: {_path(config_class)} is no dataclass without a field `magr`; "
                "is this a copy that supports magr by itself?"
            )
        self.set(config_class, "__dataclass_fields__", {**known, **_Field.__dataclass_fields__})
        self.set(config_class, "magr", None)
        self.wrap(config_class, "__init__", around_init)

    def _existing(self, owner: Any, name: str) -> Any:
        if name not in vars(owner):
            raise SeamError(
                f"{self.toolkit} has no {_path(owner)}.{name}; magr_gptq does not know this release"
            )
        return vars(owner)[name]

    def undo(self) -> None:
        """Put back every attribute, last change first."""
        while self._saved:
            owner, name, value = self._saved.pop()
            if value is _MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, value)
        self.touched.clear()


@contextmanager
def applied(toolkit: str, *changes: Callable[[Patches], None]) -> Iterator[None]:
    """These changes for the length of a run, for a toolkit that has the field `magr` of its own."""
    patches = Patches(toolkit)
    try:
        for change in changes:
            change(patches)
        yield
    finally:
        patches.undo()


@dataclass
class _Field:
    magr: Any = None


def _path(owner: Any) -> str:
    return owner.__name__ if inspect.ismodule(owner) else f"{owner.__module__}.{owner.__qualname__}"
