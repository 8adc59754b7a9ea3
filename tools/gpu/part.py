"""What the parts of the kit share: arguments, a clock, and lines of results that outlive the part."""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eval.studies.solver.measure import seconds_of

REPEATS = 3


@dataclass(frozen=True)
class Part:
    """One part's process.

    out: a file of JSON lines. work: a folder that all parts of a run share. models: folders to quantize.
    dry: tiny sizes on the CPU. backend: which of GPTQModel's kernels, for the part that loads checkpoints.
    """

    out: Path
    work: Path
    models: list[Path]
    dry: bool
    backend: str

    @property
    def device(self) -> str:
        """Where tensors lie."""
        return "cpu" if self.dry else "cuda"

    def write(self, **line: Any) -> None:
        """Keep a result, whatever happens to the process afterwards."""
        text = json.dumps(line)
        print(text, flush=True)
        with self.out.open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    @contextmanager
    def case(self, **names: Any) -> Iterator[dict[str, Any]]:
        """A line that is written at the end with what was put into it, or with the error in its place."""
        found: dict[str, Any] = {}
        try:
            yield found
        # kernels, compilers and drivers raise anything, and the other cases go on
        except Exception as error:
            self.write(**names, failed=f"{type(error).__name__}: {error}"[:500])
        else:
            self.write(**names, **found)

    def seconds(self, function: Callable[[], Any]) -> float:
        """Median of three, after a call that loads and compiles."""
        function()
        repeats = 1 if self.dry else REPEATS
        return statistics.median(seconds_of(function, self.device) for _ in range(repeats))

    def peak(self, function: Callable[[], Any]) -> int:
        """Bytes that torch allocates at the peak of a call beyond what is there before."""
        if self.device == "cpu":
            with torch.autograd.profiler.profile(profile_memory=True) as profile:
                function()
            events = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
            sizes: Iterator[int] = (
                event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())
            )
            return max(itertools.accumulate(sizes))
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return int(torch.cuda.max_memory_allocated()) - before


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Whether cuBLAS may round the factors of float32 products to 10 bits."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = on
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def parse(doc: str | None) -> Part:
    """The part that `run` asks for."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--out", type=Path, required=True, help="JSON lines")
    parser.add_argument("--work", type=Path, required=True, help="a folder that the parts share")
    parser.add_argument("--models", type=Path, nargs="*", default=[])
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--backend", default="")
    return Part(**vars(parser.parse_args()))
