"""Stands in for the process that measures: every result follows from the cell, nothing is quantized."""

from __future__ import annotations

import json
import os
import signal
import sys
import time

from comparisons import added, profile, scored

for line in sys.stdin:
    cell = json.loads(line)["cell"]
    print(json.dumps({"event": "stage", "text": "working"}), flush=True)
    time.sleep(float(os.environ.get("FAKE_SECONDS", "0")))
    if cell["bits"] == 8:
        answer = {"event": "error", "message": "out of [memory]", "input": True}
    elif cell["bits"] == 3 and "FAKE_CRASH" in os.environ:
        os.kill(os.getpid(), signal.SIGKILL)
    elif cell["method"] == "profile":
        answer = {"event": "done", "result": profile()}
    elif cell["method"] == "unquantized":
        answer = {"event": "done", "result": scored(20.0, divergence=0.0)}
    else:
        value = added(cell["method"], cell["bits"], cell["seed"])
        device = os.environ.get("CUDA_VISIBLE_DEVICES")
        answer = {"event": "done", "result": scored(20 + value, 4, divergence=value / 100, device=device)}
    print(json.dumps(answer), flush=True)
