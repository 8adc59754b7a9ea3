"""GPTQModel can stop a run and go on in another process: the report of the layers goes along.

Without this, a resumed run would know only the layers that came after, and one that was stopped after its
last layer would raise NothingReducedError. What is touched:

- `QuantizationCheckpointAdapter.capture` and `.restore`: give and take everything that a checkpoint holds.
  The setting of `magr` is there already, as a field of the config: the toolkit refuses to go on with another.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from gptqmodel.looper.gptq_checkpoint import QuantizationCheckpointAdapter

from magr_gptq.toolkits.patching import Patches
from magr_gptq.toolkits.report import LayerReport


def apply(patches: Patches) -> None:
    """Keep the report of `magr` in the toolkit's checkpoints."""
    patches.wrap(QuantizationCheckpointAdapter, "capture", _capture, ("self",))
    patches.wrap(QuantizationCheckpointAdapter, "restore", _restore, ("self", "state", "artifacts"))


@contextmanager
def report_kept() -> Iterator[None]:
    """The same for the length of a run, for a GPTQModel that has the field `magr` of its own."""
    patches = Patches("gptqmodel")
    try:
        apply(patches)
        yield
    finally:
        patches.undo()


def _capture(original: Callable[..., Any]) -> Callable[..., Any]:
    def capture(self: Any) -> Any:
        state, artifacts = original(self)
        report = getattr(self.model.quantize_config, "magr_report", None)
        if report is not None and report.layers:
            # as text: the toolkit's own encoding refuses NaN
            state["magr_report"] = json.dumps([asdict(layer) for layer in report.layers])
        return state, artifacts

    return capture


def _restore(original: Callable[..., Any]) -> Callable[..., Any]:
    def restore(self: Any, state: Any, artifacts: Any) -> None:
        original(self, state, artifacts)
        for layer in json.loads(state.get("magr_report", "[]")):
            self.model.quantize_config.magr_report.add(LayerReport(**layer))

    return restore
