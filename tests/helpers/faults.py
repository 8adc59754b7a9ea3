"""A fault in any one call that the package makes for a layer, raised from outside of it.

The interpreter tells a profiler of every call. An error that the profiler raises arrives
where the call is made.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import magr_gptq

PACKAGE = str(Path(magr_gptq.__file__).parent)
# folders of what has numbers or memory to fail by
CALLED = tuple(f"/site-packages/{name}/" for name in ("torch", "gptqmodel", "auto_gptq", "llmcompressor"))


class Site(NamedTuple):
    """A line of the package, and what it calls there."""

    file: str
    line: int
    function: str
    callee: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.function} calls {self.callee}"


@dataclass
class Calls:
    """What is called for which layer; a fault in the one call of each layer that is armed.

    armed: by the layer's name. seen: every layer's calls. fired: the layers whose fault has been raised.
    """

    armed: Mapping[str, Site] = field(default_factory=dict)
    fault: type[Exception] = RuntimeError
    seen: dict[str, set[Site]] = field(default_factory=dict)
    fired: set[str] = field(default_factory=set)

    @contextmanager
    def of(self, layer: str) -> Iterator[None]:
        """Watch this thread, which works on a layer."""
        if sys.getprofile() is not None or (self.armed and layer not in self.armed):
            yield  # the toolkit has called itself, or nothing is to be found out
            return
        found, thread = self.seen.setdefault(layer, set()), threading.current_thread()

        def look(frame: FrameType, event: str, argument: Any) -> None:
            site = _site(frame, event, argument)
            if site is None or threading.current_thread() is not thread:
                return
            found.add(site)
            if site == self.armed.get(layer) and layer not in self.fired:
                self.fired.add(layer)
                raise self.fault(f"a fault in {site}")

        sys.setprofile(look)
        try:
            yield
        finally:
            sys.setprofile(None)


def _site(frame: FrameType, event: str, argument: Any) -> Site | None:
    """Where the package calls what is not its own; Python's own functions know no numbers, and get none."""
    if event == "c_call":
        caller, callee, known = frame, argument.__qualname__, _of_torch(argument)
    elif event == "call" and frame.f_back is not None:
        caller, callee = frame.f_back, frame.f_code.co_name
        known = any(part in frame.f_code.co_filename for part in CALLED)
    else:
        return None
    if callee == "__getattr__":
        return None  # a look at a module's weight
    path = caller.f_code.co_filename
    if not (known and path.startswith(PACKAGE)):
        return None
    return Site(path[len(PACKAGE) + 1 :], caller.f_lineno, caller.f_code.co_name, callee)


def _of_torch(function: Any) -> bool:
    owner = getattr(function, "__objclass__", None) or type(getattr(function, "__self__", None))
    return owner.__module__.startswith("torch") or str(function.__module__).startswith("torch")
