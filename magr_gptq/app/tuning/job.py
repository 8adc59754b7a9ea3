"""One tuning that was asked for, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from magr_score.windows import TOKENIZER


@dataclass(frozen=True)
class TuneJob:
    """What to tune, towards what, and on which text.

    checkpoint: folder with packed weights. original: folder or hub id of the unquantized model.
    out: folder for the result, which exists; the checkpoint's own to change it in place.
    state: file that a killed run goes on from, see `magr_gptq.app.tuning.state`.
    calibration: see `magr_gptq.app.text`. samples, seqlen, seed, cut: of the windows that `quantize`
    has drawn; others are tuned on, as far as the text has them, and as many.
    """

    checkpoint: str
    original: str
    out: str
    state: str
    calibration: str
    samples: int = 128
    seqlen: int = 2048
    seed: int = 0
    cut: str = TOKENIZER


@dataclass(frozen=True)
class Tuned:
    """A finished tuning.

    divergences: from the unquantized model on the held-out windows, in nats a token, of every evaluation, the
    start's first. kept: the index of the one whose numbers were saved.   steps: of the optimizer, all told;
    seconds: of this run alone.   numbers: how many scales, norms and biases were free.
    seqlen: tokens a window. windows: that were tuned on, of which unseen are others than the quantization's.
    held_out: windows.   beginning: what every window begins with.
    """

    divergences: list[float]
    kept: int
    steps: int
    seconds: float
    numbers: dict[str, int]
    seqlen: int
    windows: int
    unseen: int
    held_out: int
    beginning: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def before(self) -> float:
        """The divergence of the checkpoint as it was given."""
        return self.divergences[0]

    @property
    def after(self) -> float:
        """The divergence of what was saved."""
        return self.divergences[self.kept]

    @property
    def repeated(self) -> str | None:
        """What to tell where the text has too few windows that the quantization has not seen; else None."""
        if self.unseen == self.windows:
            return None
        return (
            f"{self.windows - self.unseen} of the {self.windows} windows are those that quantize draws with "
            "the same options, as the text has no others; a longer text brings more"
        )

    @property
    def says(self) -> str:
        """How much nearer the predictions are, in words."""
        free = ", ".join(f"{count:,} {kind}" for kind, count in self.numbers.items() if count)
        if self.kept == 0:
            return f"nothing improved on {self.held_out} held-out windows, so all is as it was ({free})"
        return (
            f"divergence from the unquantized model {self.before:.4f} → {self.after:.4f} nats a token on "
            f"{self.held_out} held-out windows ({free})"
        )
