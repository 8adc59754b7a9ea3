"""One rank of llm-compressor with MagR: torchrun ... torchrun_llmcompressor.py MODEL OUT RUN...

Saves a checkpoint for each of these of its `RUNS`, and for each rank what it reduced by itself and what its
report says at the end.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from llmcompressor.modifiers.gptq import helpers
from llmcompressor_runs import quantize, scheme
from tiny import calibration_rows
from torch import distributed as dist

from magr_gptq.toolkits.llmcompressor.modifier import MagRGPTQModifier

SCHEME = scheme(4, 32, False)
# sums of Hessians in double precision come out the same in any order; ranks have other halves of documents
OWN = {"magr": {"target": "layer"}}
RUNS = {
    "double": {"config_groups": SCHEME, "ignore": ["lm_head"], **OWN},
    "single": {"config_groups": SCHEME, "ignore": ["lm_head"], **OWN},
    "both chains": {"config_groups": SCHEME, "ignore": ["lm_head"]},
    # the second rank owns nothing
    "one layer": {"config_groups": scheme(4, 32, False, targets="re:.*layers.1.*o_proj$")},
}
PRECISION = {name: torch.float64 if name == "double" else torch.float32 for name in RUNS}

# of few documents other halves tell other shares
DOCUMENTS = {name: 32 if name == "both chains" else 8 for name in RUNS}


class Watched(MagRGPTQModifier):
    """Remembers what its own rank was given and did; the second rank is slow."""

    def compress_module_list(self, module_list) -> None:
        time.sleep(0.3 * int(os.environ.get("RANK", "0")))
        given.extend(self._module_names[module] for module in module_list)
        super().compress_module_list(module_list)

    def on_finalize(self, state, **kwargs) -> bool:
        reduced.extend(layer.name for layer in self.magr_report.reduced)
        return super().on_finalize(state, **kwargs)


def main(model: str, out: Path, names: Iterable[str], rank: int, ranks: int) -> None:
    torch.set_num_threads(1)  # as torchrun has it for its ranks: more threads sum in another order
    for name in names:
        given.clear()
        reduced.clear()
        rows = calibration_rows(DOCUMENTS[name])
        # 0.14 would let every rank see the first rows only, if it had to share them out
        own = rows[rank * len(rows) // ranks : (rank + 1) * len(rows) // ranks]
        helpers.GPTQ_PRECISION = PRECISION[name]
        modifier = Watched(**RUNS[name])
        quantize([modifier], model, out / name, own)
        report = [layer.name for layer in modifier.magr_report.layers]
        shares = {layer.name: [layer.shrinkage, layer.correction] for layer in modifier.magr_report.layers}
        record = {"given": given, "reduced": reduced, "report": report, "shares": shares}
        (out / f"{name}-{rank}.json").write_text(json.dumps(record))


given: list[str] = []
reduced: list[str] = []

if __name__ == "__main__":
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:], rank, ranks)
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
