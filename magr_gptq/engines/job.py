"""One quantization that was asked for, and what came of it; both travel as JSON between processes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

ENGINES = ("gptqmodel", "auto-gptq")


@dataclass(frozen=True)
class Job:
    """What to quantize, how, and where to save it.

    model: folder or hub id. out: folder, absent or empty. calibration: see `magr_gptq.text`.
    magr: the settings of `MagRConfig`; {} for its defaults, None for plain GPTQ.
    """

    model: str
    out: str
    calibration: str
    engine: str = "gptqmodel"
    bits: int = 4
    group_size: int = 128
    sym: bool = True
    desc_act: bool = False
    samples: int = 128
    seqlen: int = 2048
    seed: int = 0
    magr: dict[str, Any] | None = field(default_factory=dict)

    def to_json(self) -> str:
        """One line that `from_json` reads back."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Job:
        """The job that `to_json` wrote."""
        return cls(**json.loads(line))


@dataclass(frozen=True)
class Outcome:
    """A finished job: seconds in the toolkit's quantize(), and MagR's line and layers if it was on."""

    seconds: float
    seqlen: int
    versions: dict[str, str]
    summary: str | None = None
    layers: list[dict[str, Any]] | None = None
