"""Running a comparison: every cell without results goes to a free device, and is saved when it is done."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from magr_gptq.app.comparing.cells import Cell, Record, Store
from magr_gptq.app.comparing.plan import Plan

STOP = "stop"
LANE = ("-m", "magr_gptq.app.comparing.lane")


class Listener(Protocol):
    """Who watches a run; called from several threads."""

    def started(self, lane: int, cell: Cell) -> None:
        """A lane begins to measure a cell."""

    def progress(self, lane: int, event: dict[str, Any]) -> None:
        """A stage with `text`, or `done` of `total` layers."""

    def finished(self, lane: int, cell: Cell, record: Record) -> None:
        """A cell's record is saved; it has `error` where the cell failed."""


@dataclass(frozen=True)
class Run:
    """What a run needs to know; `scratch` takes the checkpoints, `logs` what toolkits print."""

    plan: Plan
    store: Store
    scratch: Path
    logs: Path


class Lane:
    """A process that measures cells on one device; it is started again where it ended.

    device: the value of CUDA_VISIBLE_DEVICES; None leaves the environment as it is.
    """

    def __init__(self, run: Run, number: int, device: str | None) -> None:
        self._run, self.number = run, number
        self._log = run.logs / f"lane-{number}.log"
        self._environment = {**os.environ} | ({} if device is None else {"CUDA_VISIBLE_DEVICES": device})
        self._process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        with self._log.open("a") as sink:
            return subprocess.Popen(
                [sys.executable, *LANE, str(self._run.scratch), str(self._log)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sink, env=self._environment,
                text=True, encoding="utf-8", start_new_session=True,
            )  # fmt: skip

    def close(self) -> None:
        """End an idle lane."""
        assert self._process.stdin is not None
        # a lane that is gone, or was killed, needs no word
        with suppress(BrokenPipeError, ValueError):
            print(STOP, file=self._process.stdin, flush=True)
        self._process.wait()

    def kill(self) -> None:
        """End the lane and all that it started, in the middle of whatever it does."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()

    def measure(self, cell: Cell, listener: Listener) -> Record:
        """The cell's results, or its error."""
        if self._process.poll() is not None:
            self._process = self._start()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"cell": asdict(cell), "plan": self._run.plan.to_dict()}
        with suppress(BrokenPipeError):
            print(json.dumps(request), file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            event = json.loads(line)
            if event.get("event") == "done":
                results: Record = event["results"]
                return results
            if event.get("event") == "failed":
                return {"error": event["message"]}
            listener.progress(self.number, event)
        status = self._process.wait()
        return {"error": f"the process ended with status {status} (-9 often means that memory ran out); "
                         f"what it printed is in {self._log}"}  # fmt: skip


def run_cells(run: Run, cells: Sequence[Cell], devices: Sequence[str | None], listener: Listener) -> None:
    """Measure the cells, as many at a time as there are devices; saved one by one."""
    for folder in (run.scratch, run.logs):
        folder.mkdir(parents=True, exist_ok=True)
    waiting: queue.SimpleQueue[Cell] = queue.SimpleQueue()
    for cell in cells:
        waiting.put(cell)
    stopped = threading.Event()
    lanes = [Lane(run, number, device) for number, device in enumerate(devices[: len(cells)])]
    with ThreadPoolExecutor(max(1, len(lanes))) as pool:
        try:
            for future in as_completed(
                [pool.submit(_work, run, lane, waiting, stopped, listener) for lane in lanes]
            ):
                future.result()
        finally:
            stopped.set()
            for lane in lanes:
                lane.kill()


def _work(
    run: Run, lane: Lane, waiting: queue.SimpleQueue[Cell], stopped: threading.Event, listener: Listener
) -> None:
    """Keep one lane busy until no cell waits."""
    while not stopped.is_set():
        try:
            cell = waiting.get_nowait()
        except queue.Empty:
            lane.close()
            return
        listener.started(lane.number, cell)
        results = lane.measure(cell, listener)
        # a lane that was killed has no results worth keeping
        if not stopped.is_set():
            listener.finished(lane.number, cell, run.store.save(cell, run.plan.settings(cell), results))
