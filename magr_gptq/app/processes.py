"""Processes of our own that do the work: a request goes in, events come out, one JSON line each.

A child reads requests from stdin, or has a single one as its last argument. It answers on stdout; its
stderr, with all that toolkits print, is appended to a log. Besides the two events that end a request
(`magr_score.process`) a child may tell how far it is:

    {"event": "stage", "text": "loading the model"}
    {"event": "layers", "done": 3, "total": 12}
    {"event": "steps", "done": 3, "total": 64, "losses": [0.1]}

A child whose stdin ends in the middle of a request has lost its caller, and ends itself. One that leads a
process group ends the group, and with it everything that it started.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import Queue
from typing import Any

import torch

from magr_gptq.errors import InputError
from magr_score.process import Tell, keep_stdout, respond, teller

Listener = Callable[[dict[str, Any]], None]
Handler = Callable[[dict[str, Any], Tell], Mapping[str, Any]]

ENDINGS = ("done", "error")


class EngineError(RuntimeError):
    """A child failed; the message holds its last words and where the rest can be read."""


def toolkit_environment() -> dict[str, str]:
    """The caller's environment, with what GPTQModel needs where the caller didn't say otherwise."""
    wanted = {"LOGBAR_ANIMATION": "0", "PYTHONUNBUFFERED": "1"}
    if (os.cpu_count() or 1) <= 2:
        # with two cores or fewer GPTQModel plans no worker for loading, then fails for want of one
        wanted["GPTQMODEL_CPU_WORKERS"] = "2"
    if not torch.cuda.is_available():
        # kernels compile for half a minute; models small enough for a CPU never gain that back
        wanted |= {"GPTQMODEL_DISABLE_PACK_EXT": "1", "TORCHDYNAMO_DISABLE": "1"}
    return {**wanted, **os.environ}


class Child:
    """A Python process that answers requests; a context manager that ends it.

    arguments: after `python`. log: what the process prints is appended to this file.
    changes: to the environment. options: for `subprocess.Popen`.
    """

    def __init__(
        self, arguments: Sequence[str], log: Path, changes: Mapping[str, str] | None = None, **options: Any
    ) -> None:
        self.log = log
        with log.open("a") as sink:
            self._process = subprocess.Popen(
                [sys.executable, *arguments], env=toolkit_environment() | dict(changes or {}),
                **{"stdin": subprocess.PIPE, **options}, stdout=subprocess.PIPE, stderr=sink,
                text=True, encoding="utf-8",
            )  # fmt: skip

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.kill() if kind is not None else self.close()

    @property
    def ended(self) -> bool:
        """Whether the process is gone."""
        return self._process.poll() is not None

    def ask(self, request: Mapping[str, Any], listen: Listener) -> dict[str, Any]:
        """The result of a request; `listen` hears the events on the way.

        Raises:
            InputError: something that was given is at fault. EngineError: everything else.
        """
        assert self._process.stdin is not None
        start = self.log.stat().st_size
        # a process that is gone already is reported below
        with suppress(BrokenPipeError):
            print(json.dumps(request), file=self._process.stdin, flush=True)
        return self.answer(listen, start)

    def answer(self, listen: Listener, start: int = 0) -> dict[str, Any]:
        """As `ask`, where the request is on its way; start: where its part of the log begins."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event = json.loads(line)
            kind = event.pop("event")
            if kind == "done":
                result: dict[str, Any] = event["result"]
                return result
            if kind == "error":
                raise self._error(event)
            listen(event)
        status = self._process.wait()
        raise EngineError(
            f"the process ended with exit status {status} (-9 often means that memory ran out); "
            f"{last_words(self.log, start)}what it printed is in {self.log}"
        )

    def _error(self, event: dict[str, Any]) -> Exception:
        if event["input"]:
            return InputError(event["message"])
        return EngineError(f"{event['message']} (all that was printed is in {self.log})")

    def close(self) -> None:
        """Let an idle process end, or one in the middle of a request end itself, and wait for that."""
        self.abandon()
        assert self._process.stdout is not None
        self._process.stdout.read()
        self._process.wait()

    def kill(self) -> None:
        """End the process whatever it does."""
        self._process.kill()
        self.close()

    def abandon(self) -> None:
        """End its stdin: see the module on what it does then."""
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()


def ask_once(module: Sequence[str], request: Mapping[str, Any], log: Path) -> dict[str, Any]:
    """The answer of a process that is started for one request, its last argument, and reads nothing.

    Args:
        module: of the process and what precedes the request, such as ("-I", "-m", "magr_score", "examine").

    Raises:
        InputError: something that was given is at fault. EngineError: everything else.
    """
    start = log.stat().st_size if log.exists() else 0
    with Child([*module, json.dumps(request)], log, stdin=subprocess.DEVNULL) as child:
        return child.answer(lambda _: None, start)


def last_words(log: Path, start: int) -> str:
    """The last line of a log since a place in it, ready to stand before other words."""
    with log.open("rb") as file:
        file.seek(start)
        lines = file.read().decode(errors="replace").strip().splitlines()
    return f"its last words: {lines[-1].strip()}; " if lines else ""


def answer_once(handle: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
    """The child's side of `ask_once`."""
    respond(teller(keep_stdout()), partial(handle, json.loads(sys.argv[-1])), InputError)


def serve(handle: Handler) -> None:
    """The child's side of `Child.ask`: answer request after request until stdin ends."""
    tell = teller(keep_stdout())
    busy = threading.Event()

    def note(event: str, **values: Any) -> None:
        if event in ENDINGS:
            busy.clear()
        tell(event, **values)

    for line in _lines(busy):
        respond(note, partial(handle, json.loads(line), tell), InputError)


def _lines(busy: threading.Event) -> Iterator[str]:
    """The lines of stdin. Where it ends in the middle of a request, this process ends."""
    lines: Queue[str | None] = Queue()

    def read() -> None:
        for line in sys.stdin:
            busy.set()
            lines.put(line)
        lines.put(None)
        if busy.is_set():
            _end()

    threading.Thread(target=read, daemon=True).start()
    return iter(lines.get, None)


def _end() -> None:
    print("the calling process is gone", file=sys.stderr, flush=True)
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
