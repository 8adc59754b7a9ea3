"""GPTQModel drops calibration rows of ten tokens or fewer: how many is told at the run's end.

What is touched:

- `BaseQModel.prepare_dataset`: gets the rows, and gives back the batches that are left of them. A subclass
  that has its own, for images, and does not call this one is not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sized
from typing import Any

from gptqmodel.models.base import BaseQModel

from magr_gptq.toolkits.patching import Patches


def apply(patches: Patches) -> None:
    """Count the rows that are dropped."""
    patches.wrap(BaseQModel, "prepare_dataset", _prepare_dataset)


def _prepare_dataset(original: Callable[..., Any]) -> Callable[..., Any]:
    def prepare_dataset(
        self: Any, calibration_dataset: Any, calibration_dataset_concat_size: int | None = None, **kwargs: Any
    ) -> Any:
        """The toolkit's own batches; the rows that are not among them are counted."""
        batches = original(self, calibration_dataset, calibration_dataset_concat_size, **kwargs)
        report = getattr(self.quantize_config, "magr_report", None)
        # rows that are joined to longer ones can't be told from dropped ones
        if (
            report is not None
            and isinstance(calibration_dataset, Sized)
            and not calibration_dataset_concat_size
        ):
            left = sum(len(batch["input_ids"]) for batch in batches)
            report.dropped = max(0, len(calibration_dataset) - left)
        return batches

    return prepare_dataset
