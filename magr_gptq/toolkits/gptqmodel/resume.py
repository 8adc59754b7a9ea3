"""GPTQModel can stop a run and go on in another process: the report and the unquantized chain go along.

Without this, a resumed run would know only the layers that came after, and one that was stopped after its
last layer would raise NothingReducedError; and the original weights of the blocks that are done are gone, so
that what they made of the calibration text must be kept. What is touched:

- `QuantizationCheckpointAdapter.capture` and `.restore`: give and take everything that a checkpoint holds.
  The setting of `magr` is there already, as a field of the config: the toolkit refuses to go on with another.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from gptqmodel.looper.checkpoint_store import CheckpointError
from gptqmodel.looper.gptq_checkpoint import QuantizationCheckpointAdapter

from magr_gptq.toolkits.gptqmodel.chain import chains_of
from magr_gptq.toolkits.patching import Patches
from magr_gptq.toolkits.report import LayerReport


def apply(patches: Patches) -> None:
    """Keep the report of `magr` in the toolkit's checkpoints."""
    patches.wrap(QuantizationCheckpointAdapter, "capture", _capture, ("self",))
    patches.wrap(QuantizationCheckpointAdapter, "restore", _restore, ("self", "state", "artifacts"))


def _capture(original: Callable[..., Any]) -> Callable[..., Any]:
    def capture(self: Any) -> Any:
        state, artifacts = original(self)
        report = getattr(self.model.quantize_config, "magr_report", None)
        if report is not None and report.layers:
            # as text: the toolkit's own encoding refuses NaN
            state["magr_report"] = json.dumps([asdict(layer) for layer in report.layers])
            for followed in chains_of(self.processors):
                # the toolkit's own encoding takes text alone as keys
                states = {str(n): kept for n, kept in followed.states.items()}
                state["magr_undamaged"] = None if followed.lost else states
        return state, artifacts

    return capture


def _restore(original: Callable[..., Any]) -> Callable[..., Any]:
    def restore(self: Any, state: Any, artifacts: Any) -> None:
        original(self, state, artifacts)
        for layer in json.loads(state.get("magr_report", "[]")):
            self.model.quantize_config.magr_report.add(LayerReport(**layer))
        for followed in chains_of(self.processors):
            if "magr_undamaged" not in state:
                raise CheckpointError(
                    "the checkpoint lacks the unquantized model's hidden states: an earlier magr_gptq wrote "
                    "it; start the run again, or go on with magr={'target': 'layer'}"
                )
            states = state["magr_undamaged"]
            followed.lost = states is None
            followed.states = {int(number): kept for number, kept in (states or {}).items()}

    return restore
