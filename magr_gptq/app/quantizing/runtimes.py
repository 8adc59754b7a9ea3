"""What runs the result: one entry a runtime, and of each entry the checkpoints that it loads.

`docs/runtimes.md` has what was seen, and with which releases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from magr_gptq.app.quantizing.engines import ENGINES
from magr_gptq.errors import InputError
from magr_gptq.toolkits import installed

TESTED = "tested on CPUs"
RUN, READ = "run on a CPU in November 2026", "read in its sources, not run"
ALL = (2, 3, 4, 8)


@dataclass(frozen=True)
class Road:
    """An engine whose checkpoints a runtime loads, and which of them.

    asymmetric, desc_act: whether it loads those, too. powers: group sizes must be powers of two.
    mixed: the bits that layers of one checkpoint may have side by side; none where it reads one width alone.
    """

    engine: str
    bits: tuple[int, ...] = ALL
    asymmetric: bool = True
    desc_act: bool = True
    powers: bool = False
    mixed: tuple[int, ...] = ()

    def refusals(self, asked: Asked) -> list[str]:
        """What of it the runtime does not load, in the words of the options; nothing where it loads all."""
        size = asked.group_size
        wrong = {
            f"--engine {asked.engine}": asked.engine not in (None, self.engine),
            f"--bits {asked.bits}": asked.bits not in self.bits,
            "--no-sym": not asked.sym and not self.asymmetric,
            "--desc-act": asked.desc_act and not (self.desc_act and ENGINES[self.engine].desc_act),
            f"--group-size {size}": self.powers and (size < 1 or bool(size & (size - 1))),
        }
        return [words for words, holds in wrong.items() if holds]

    def __str__(self) -> str:
        limits = {
            "symmetric": not self.asymmetric,
            "without desc_act": not (self.desc_act and ENGINES[self.engine].desc_act),
            "groups of a power of two": self.powers,
        }
        given = ", ".join(words for words, holds in limits.items() if holds)
        return f"{', '.join(map(str, self.bits))} bits by {self.engine}" + (f" ({given})" if given else "")


@dataclass(frozen=True)
class Runtime:
    """What loads checkpoints.

    roads: to it, the usual one first. seen: how that is known. positive: it takes no negative scale.
    fuses: it runs q, k and v as one layer, and gate and up, so that they must have one width.
    head: it loads a quantized output layer.
    remedy: where there is no road, why, and what would do.
    """

    roads: tuple[Road, ...]
    seen: str = RUN
    positive: bool = False
    fuses: bool = False
    head: bool = False
    remedy: str = ""


@dataclass(frozen=True)
class Asked:
    """The options of `quantize` that a runtime may not load; engine: None where it may be chosen."""

    engine: str | None
    bits: int
    group_size: int
    sym: bool
    desc_act: bool


RUNTIMES = {
    "transformers": Runtime(
        (
            # it looks for one width in the config, and fails on 3 bits beside others
            Road("gptqmodel", mixed=(2, 4, 8)),
            Road("transformers"),
            Road("optimum"),
            Road("llm-compressor", mixed=ALL),
        ),
        seen=TESTED,
    ),
    "gptqmodel": Runtime(
        (Road("gptqmodel", mixed=ALL), Road("transformers"), Road("optimum")), seen=TESTED, head=True
    ),
    "auto-gptq": Runtime((Road("auto-gptq"),), seen=TESTED),
    "vllm": Runtime(
        # it has dropped GPTQ of 2 and 3 bits (vllm-project/vllm#38288)
        (
            Road("gptqmodel", (4, 8), asymmetric=False, desc_act=False, mixed=(4, 8)),
            Road("llm-compressor", mixed=ALL),
        ),
        seen=f"4 bits {RUN}; others need a GPU, {READ}",
        fuses=True,
    ),
    # Marlin with VLLM_MARLIN_INPUT_DTYPE=int8 reads scales as unsigned (vllm-project/vllm#48905)
    "vllm-int8": Runtime(
        (Road("gptqmodel", (4,), asymmetric=False, desc_act=False),), seen=READ, positive=True, fuses=True
    ),
    "sglang": Runtime(
        (Road("gptqmodel", asymmetric=False, desc_act=False, mixed=ALL),), seen=READ, fuses=True
    ),
    "onnxruntime": Runtime((Road("gptqmodel", (2, 4, 8), asymmetric=False, powers=True),)),
    # optimum-intel reads no g_idx, and applies zero points twice
    "openvino": Runtime((Road("gptqmodel", (4,), asymmetric=False, desc_act=False),)),
    "llama.cpp": Runtime((Road("gptqmodel", (2, 4, 8), asymmetric=False),)),
    "auto-round": Runtime(
        (), remedy="it refuses a config that has meta, which GPTQModel writes; try gptqmodel"
    ),
    "mlx-lm": Runtime((), remedy="it refuses g_idx, which every GPTQ file has; try transformers"),
}


def choose_road(name: str, asked: Asked) -> Road:
    """The road to the runtime that takes what was asked for; of several, one whose toolkit is installed.

    Raises:
        InputError: an unknown runtime, or one that does not load this, with what it does load.
    """
    runtime = _runtime(name)
    able = [road for road in runtime.roads if not road.refusals(asked)]
    if not able:
        # the road that lacks least says it best
        least = min((road.refusals(asked) for road in runtime.roads), key=len)
        raise InputError(
            f"--for {name}: it does not load {' with '.join(least)}; it loads "
            f"{'; '.join(map(str, runtime.roads))}"
        )
    return _installed(able)


def choose_mixed_road(name: str, asked: Asked) -> Road:
    """As `choose_road`, for layers of several widths, whatever bits are asked for."""
    roads = [road for road in _runtime(name).roads if len(road.mixed) > 1]
    able = [road for road in roads if not road.refusals(replace(asked, bits=road.mixed[0]))]
    if not able:
        does = "; ".join(f"{', '.join(map(str, road.mixed))} bits by {road.engine}" for road in roads)
        raise InputError(
            f"--for {name}: layers of several widths load there from {does or 'no engine'}; for one width, "
            "name --bits"
        )
    return _installed(able)


def _runtime(name: str) -> Runtime:
    runtime = RUNTIMES.get(name)
    if runtime is None:
        raise InputError(f"--for {name}: the runtimes are {', '.join(RUNTIMES)}")
    if not runtime.roads:
        raise InputError(f"--for {name}: {runtime.remedy}")
    return runtime


def _installed(roads: Sequence[Road]) -> Road:
    return next((road for road in roads if ENGINES[road.engine].toolkit in installed()), roads[0])
