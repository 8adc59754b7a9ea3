"""Running a comparison: every cell without results goes to a free device, and is saved when it is done."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from magr_gptq.app.comparing.cells import Cell, Record, Store
from magr_gptq.app.comparing.plan import Plan
from magr_gptq.app.processes import Child, EngineError
from magr_gptq.errors import InputError

LANE = ("-m", "magr_gptq.app.comparing.lane")


class Observer(Protocol):
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
        self._changes = {} if device is None else {"CUDA_VISIBLE_DEVICES": device}
        self._child = self._start()

    def _start(self) -> Child:
        arguments = [*LANE, str(self._run.scratch), str(self._log)]
        return Child(arguments, self._log, self._changes, start_new_session=True)

    def close(self) -> None:
        """Let an idle lane end, and wait for that."""
        self._child.close()

    def abandon(self) -> None:
        """End the lane and all that it started, in the middle of whatever it does."""
        self._child.abandon()

    def measure(self, cell: Cell, observer: Observer) -> Record:
        """The cell's results, or its error."""
        if self._child.ended:
            self._child = self._start()
        request = {"cell": asdict(cell), "plan": self._run.plan.to_dict()}
        try:
            return self._child.ask(request, partial(observer.progress, self.number))
        except (InputError, EngineError) as error:
            return {"error": str(error)}


def run_cells(run: Run, cells: Sequence[Cell], devices: Sequence[str | None], observer: Observer) -> None:
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
                [pool.submit(_work, run, lane, waiting, stopped, observer) for lane in lanes]
            ):
                future.result()
        finally:
            stopped.set()
            for lane in lanes:
                lane.abandon()


def _work(
    run: Run, lane: Lane, waiting: queue.SimpleQueue[Cell], stopped: threading.Event, observer: Observer
) -> None:
    """Keep one lane busy until no cell waits."""
    while not stopped.is_set():
        try:
            cell = waiting.get_nowait()
        except queue.Empty:
            lane.close()
            return
        observer.started(lane.number, cell)
        results = lane.measure(cell, observer)
        # a lane that was killed has no results worth keeping
        if not stopped.is_set():
            observer.finished(lane.number, cell, run.store.save(cell, run.plan.settings(cell), results))
