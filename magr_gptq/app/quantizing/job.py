"""One quantization that was asked for, and what came of it; both travel as JSON between processes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from magr_score.windows import TOKENIZER


@dataclass(frozen=True)
class Job:
    """What to quantize, how, and where to save it.

    model: folder or hub id. out: folder, absent or empty. calibration: see `magr_gptq.app.text`.
    engine: of `magr_gptq.app.quantizing.engines`. rounding: "gptq" or "nearest".
    runtime: what it is made for, of `magr_gptq.app.quantizing.runtimes`.
    magr: the settings of `MagRConfig`; {} for its defaults, None for the plain method.
    cut: of `magr_score.windows.CUTS`, how the calibration windows begin.
    tune: fit scales, norms and biases afterwards, see `magr_gptq.app.tuning`.
    widths: of a plan, bits and group size by layer; `bits` and `group_size` are then those of most weights.
    head: the output layer has a width, too.
    options: further settings of the toolkit's own config.
    trust_remote_code: run the Python code that the model folder brings.
    allow_pickle: load weights from pickle files, which can run code, too.
    """

    model: str
    out: str
    calibration: str
    engine: str = "gptqmodel"
    runtime: str | None = None
    rounding: str = "gptq"
    bits: int = 4
    group_size: int = 128
    sym: bool = True
    desc_act: bool = False
    samples: int = 128
    seqlen: int = 2048
    seed: int = 0
    cut: str = TOKENIZER
    magr: dict[str, Any] | None = field(default_factory=dict)
    tune: bool = False
    widths: dict[str, tuple[int, int]] | None = None
    head: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    trust_remote_code: bool = False
    allow_pickle: bool = False

    def width_of(self, layer: str) -> tuple[int, int]:
        """Bits and group size of a layer by its full name."""
        bits, group_size = (self.widths or {}).get(layer, (self.bits, self.group_size))
        return bits, group_size

    @property
    def all_bits(self) -> list[int]:
        """Of any layer, the least first."""
        return sorted({bits for bits, _ in (self.widths or {}).values()}) or [self.bits]

    @property
    def group_sizes(self) -> set[int]:
        """All that some layer has."""
        return {group for _, group in (self.widths or {}).values()} or {self.group_size}

    @property
    def toolkit_magr(self) -> dict[str, Any] | None:
        """What the toolkit's own keyword `magr` takes."""
        if self.magr is None or self.rounding == "gptq":
            return self.magr
        return {**self.magr, "rounding": self.rounding}


@dataclass(frozen=True)
class Outcome:
    """A finished job.

    seconds: in the toolkit's quantize().   seqlen: tokens a window, after the model's limit.
    beginning: what every calibration window begins with, such as <bos>; empty for the text's own tokens.
    overlap: what to tell where the windows repeat much of the text.
    summary: MagR's line; None where it was off.   warning: see `RunReport.warning`.
    layers, totals: `RunReport.to_dict` and `RunReport.totals` of every layer that was quantized.
    tuned: what tuning brought, see `Tuned`; None where it was not asked for.
    loaded: what each loader made of the checkpoint, see `Loaded`; empty where none was tried.
    """

    seconds: float
    seqlen: int
    versions: dict[str, str]
    beginning: str = ""
    overlap: str | None = None
    summary: str | None = None
    warning: str | None = None
    totals: dict[str, Any] = field(default_factory=dict)
    layers: list[dict[str, Any]] = field(default_factory=list)
    tuned: dict[str, Any] | None = None
    loaded: list[dict[str, Any]] = field(default_factory=list)
