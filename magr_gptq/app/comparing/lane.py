"""The process that measures one cell after another on one device.

It reads requests from stdin and answers with events on stdout, one JSON a line. It leads a process
group of its own; when stdin ends without the word to stop, whoever asked is gone, and the lane ends
itself with everything that it started.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from magr_gptq.app.comparing.cells import Cell, Record
from magr_gptq.app.comparing.measure import measure
from magr_gptq.app.comparing.plan import Plan
from magr_gptq.app.comparing.run import STOP
from magr_gptq.app.quantizing.worker import Worker


def main() -> None:
    """Answer every request with `done` or `failed`; the arguments: a folder for checkpoints, a log file."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    requests: queue.Queue[dict[str, Any] | None] = queue.Queue()
    threading.Thread(target=_read, args=(requests,), daemon=True).start()

    def tell(event: dict[str, Any]) -> None:
        print(json.dumps(event), file=answers, flush=True)

    folder, log = Path(sys.argv[1]), Path(sys.argv[2])
    while _serve(requests, folder, log, tell):
        pass


def _read(requests: queue.Queue[dict[str, Any] | None]) -> None:
    for line in sys.stdin:
        if line.strip() == STOP:
            requests.put(None)
            return
        requests.put(json.loads(line))
    os.killpg(0, signal.SIGKILL)


def _serve(
    requests: queue.Queue[dict[str, Any] | None],
    folder: Path,
    log: Path,
    tell: Callable[[dict[str, Any]], None],
) -> bool:
    """Work with one worker until one cell failed, for then the worker may be gone; whether to go on."""
    with Worker(log) as worker:
        while (request := requests.get()) is not None:
            try:
                cell, plan = Cell(**request["cell"]), Plan.from_dict(request["plan"])
                results: Record = measure(cell, plan, folder, worker, tell)
                tell({"event": "done", "results": results})
            # whatever went wrong belongs to this cell, and the others go on
            except Exception as error:
                traceback.print_exc()
                tell({"event": "failed", "message": str(error) or type(error).__name__})
                return True
    return False


if __name__ == "__main__":
    main()
