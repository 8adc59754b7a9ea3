"""One rank of llm-compressor with MagR in trouble: torchrun ... torchrun_trouble.py MODEL OUT TROUBLE.

"killed": the second rank is killed in the second block, and all of its host. "no rows": both bring the
same single row, which llm-compressor shares out, so that the first is left with none.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from llmcompressor_runs import quantize, scheme
from tiny import calibration_rows
from torch import distributed as dist

from magr_gptq.toolkits.llmcompressor.modifier import MagRGPTQModifier


class Killed(MagRGPTQModifier):
    """Its host is gone when the second block is to be compressed; when that was is written down."""

    def compress_module_list(self, module_list) -> None:
        if dist.get_rank() == 1 and any(".layers.1." in self._module_names[module] for module in module_list):
            out.with_name("killed-at").write_text(str(time.time()))
            os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        super().compress_module_list(module_list)


if __name__ == "__main__":
    dist.init_process_group("gloo")
    model, out, trouble = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    rows = calibration_rows()
    own = rows[4:] if dist.get_rank() == 1 else rows[:4]
    modifier = (Killed if trouble == "killed" else MagRGPTQModifier)(
        config_groups=scheme(4, 32, False), ignore=["lm_head"]
    )
    quantize([modifier], model, out, rows[:1] if trouble == "no rows" else own)
