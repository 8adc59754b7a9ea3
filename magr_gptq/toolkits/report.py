"""What MagR did to each layer of one quantization run."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from magr_gptq.reduction.kernels.fusing import failed_kernels, forget_failures
from magr_gptq.toolkits.layer_step import Done

log = logging.getLogger(__name__)


# more layers than this left as they were make a warning
LIMIT = 0.1


class NothingReducedError(RuntimeError):
    """`magr` was switched on, yet not one layer was reduced."""


@dataclass(frozen=True)
class LayerReport:
    """One layer: what became of its magnitudes and its loss, or why MagR stepped aside.

    beta: mean over rows of the factor on the step; None where groups chose theirs.
    largest_before, largest_after: mean over rows of the largest magnitude, before rounding.
    loss: tr((Ŵ − Q)H(Ŵ − Q)ᵀ)/tr(ŴHŴᵀ).   plain_loss: that of plain GPTQ, where rows could choose it.
    plain_share: the share of rows that did.
    unimproved: how many rows the solver left as they were: it found nothing better, or nothing finite.
    tokens: how many the Hessian of so many `columns` is made of.
    shrinkage: the share by which its pairs were shrunk.
    correction: the share, 0 to 1, of the correction towards the unquantized model's output that was taken;
        None where the layer's own output was the target.
    own_output: whether it was because the toolkit could not give the unquantized model's.
    subnormal: the share of scales that the checkpoint's dtype holds with fewer digits, or not at all.
    skipped: why MagR stepped aside, and `aside` the same in a word.
    fallback: why the toolkit rounded without GPTQ.
    """

    name: str
    bits: int
    group_size: int
    beta: float | None = None
    largest_before: float | None = None
    largest_after: float | None = None
    loss: float | None = None
    plain_loss: float | None = None
    plain_share: float | None = None
    unimproved: int = 0
    tokens: int | None = None
    columns: int | None = None
    shrinkage: float | None = None
    correction: float | None = None
    own_output: bool = False
    subnormal: float = 0.0
    skipped: str | None = None
    aside: str = "skipped"
    fallback: str | None = None

    @property
    def reason(self) -> str | None:
        """Why the layer was not reduced; None where it was, or where MagR was off."""
        return self.fallback or self.skipped

    @property
    def outcome(self) -> str:
        """What became of the layer, in two words at most."""
        if self.fallback:
            return "fallen back"
        if self.skipped:
            return self.aside
        return "plain" if self.largest_after is None else "reduced"

    @classmethod
    def of(cls, name: str, bits: int, group_size: int, done: Done) -> LayerReport:
        """The report of a layer that was reduced."""
        settled = done.settled
        had_plain = settled.plain_loss is not None
        return cls(
            name, bits, group_size, settled.beta,
            settled.largest_before, settled.largest_after, settled.loss, settled.plain_loss,
            plain_share=float((settled.picked == 0).float().mean()) if had_plain else None,
            unimproved=settled.unimproved, tokens=done.tokens, columns=settled.rounded.weight.shape[1],
            shrinkage=done.shrinkage, correction=done.correction, own_output=done.own_output,
            subnormal=done.subnormal,
        )  # fmt: skip


class RunReport:
    """All layers of one run; shared, not copied, by the per-layer copies of a config.

    dropped: how many calibration rows were too short for the toolkit.
    notes: what to tell of the run's settings.
    """

    def __init__(self, notes: Sequence[str] = ()) -> None:
        self.layers: list[LayerReport] = []
        self.dropped = 0
        self.notes = list(notes)
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> RunReport:
        return self

    def __getstate__(self) -> dict[str, Any]:
        # a lock can't be pickled, and configs are
        return {"layers": self.layers, "dropped": self.dropped, "notes": self.notes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]
        vars(self).update(state)

    def add(self, layer: LayerReport) -> None:
        """Record one layer; safe from any thread."""
        with self._lock:
            self.layers.append(layer)

    @property
    def reduced(self) -> list[LayerReport]:
        """The layers that MagR reduced."""
        return [layer for layer in self.layers if layer.reason is None]

    @property
    def skipped(self) -> list[LayerReport]:
        """The layers where it stepped aside, each with its reason."""
        return [layer for layer in self.layers if layer.reason is not None]

    def few_tokens(self) -> str | None:
        """Which layers had fewer calibration tokens than columns, with the numbers; None where none had."""
        few = [one for one in self.layers if one.tokens and one.columns and one.tokens < one.columns]
        if not few:
            return None
        least = min(few, key=lambda one: (one.tokens or 0) / (one.columns or 1))
        return (
            f"{len(few)} of {len(self.layers)} layers had fewer calibration tokens than columns, such as "
            f"{least.name} with {least.tokens:,} for {least.columns:,}"
        )

    def summary(self) -> str:
        """One line for a log: how many layers were reduced, and why the others were not."""
        reasons = sorted({layer.reason for layer in self.skipped if layer.reason})
        text = f"magr: {len(self.reduced)} of {len(self.layers)} layers reduced"
        unimproved = sum(layer.unimproved for layer in self.layers)
        if unimproved:
            text = f"{text}; {unimproved} rows keep their original weight, as the solver found none better"
        if few := self.few_tokens():
            text = f"{text}; {few}"
        own = sum(layer.own_output for layer in self.layers)
        if own:
            text = f"{text}; {own} came near their own output, as the unquantized model's was not to be had"
        return f"{text}; skipped: {'; '.join(reasons)}" if reasons else text

    def require_some(self) -> None:
        """Raise NothingReducedError where no layer was reduced."""
        if not self.reduced:
            raise NothingReducedError(
                f"{self.summary()}. Quantize with magr=False, give more calibration text, "
                "or check the per-module overrides"
            )

    def to_dict(self) -> list[dict[str, Any]]:
        """Every layer as a plain dict, ready for JSON."""
        return [{**asdict(layer), "outcome": layer.outcome} for layer in self.layers]

    def totals(self) -> dict[str, Any]:
        """How many layers had which outcome, and for which reason; ready for JSON.

        `few_tokens` is there where a layer had too few to tell of.
        """
        reasons = Counter((layer.outcome, layer.reason) for layer in self.skipped)
        return {
            "layers": len(self.layers),
            "dropped_rows": self.dropped,
            "outcomes": dict(Counter(layer.outcome for layer in self.layers)),
            "reasons": [
                {"outcome": outcome, "reason": reason, "layers": count}
                for (outcome, reason), count in reasons.most_common()
            ],
            **({"few_tokens": few} if (few := self.few_tokens()) else {}),
        }

    def warning(self) -> str | None:
        """The notes, and what to tell where many layers stayed, rows were dropped, or scales lose digits."""
        share = len(self.skipped) / max(1, len(self.layers))
        texts = list(self.notes)
        if share > LIMIT:
            reasons = (
                f"{row['layers']} {row['outcome']}: {row['reason']}" for row in self.totals()["reasons"]
            )
            texts.append(
                f"{len(self.skipped)} of {len(self.layers)} layers ({share:.0%}): {'; '.join(reasons)}"
            )
        if self.dropped:
            texts.append(
                f"{self.dropped} calibration rows were too short for the toolkit, which left them out; give "
                "longer rows, or more of them"
            )
        coarse = [layer.name for layer in self.layers if layer.subnormal]
        if coarse:
            texts.append(
                f"the scales of {len(coarse)} layers, such as {coarse[0]}, are too small for the dtype that "
                "the checkpoint stores them in, and lose digits there; leave such layers out"
            )
        failed = failed_kernels()
        if failed:
            errors = ", ".join(f"{name} ({error})" for name, error in failed.items())
            texts.append(f"Triton kernels failed, and plain torch did their work, which is slower: {errors}")
        return "; ".join(texts) or None


@contextmanager
def reported_run(config: Any, notes: Sequence[str] = ()) -> Iterator[RunReport]:
    """A run with `magr` on: opens `config.magr_report`; logs its summary and its warning where it succeeds.

    Args:
        notes: what to tell of the settings, before the work and after it.

    Raises:
        NothingReducedError: the run went through, and no layer was reduced.
    """
    report = config.magr_report = RunReport(notes)
    for note in notes:
        log.warning("magr: %s", note)
    forget_failures()
    yield report
    report.require_some()
    log.info(report.summary())
    if warning := report.warning():
        log.warning("magr, not as intended: %s", warning)
