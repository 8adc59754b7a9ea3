"""Calling the commands in this process, with one quantizing process for many calls."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from typer.testing import CliRunner

from magr_gptq.app.cli.app import app
from magr_gptq.app.quantizing.worker import Worker
from magr_gptq.toolkits import installed

PROSE = "It is a truth universally acknowledged, that a single man must be in want of a wife. " * 30


def call(*arguments: object) -> tuple[int, str]:
    """Exit code and everything printed."""
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def call_alone(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, as users run it, where no toolkit has patched transformers."""
    code = "from magr_gptq.app.cli.app import app; app()"
    given = [str(argument) for argument in arguments]
    return subprocess.run([sys.executable, "-c", code, *given], capture_output=True, text=True, check=False)


def quantize(model: object, *more: object, out: str = "out", text: str = "prose.txt") -> tuple[int, str]:
    """The command with the toolkit of this environment."""
    engine = installed()[0]
    given = ("--engine", engine, "--calibration", text, "--out", out, "--no-verify")
    return call("quantize", model, *given, *more)


def shared(worker: Worker) -> Callable[[Path], AbstractContextManager[Worker]]:
    """In place of the class `Worker`: always the same one, which goes on living."""

    @contextmanager
    def enter(log: Path) -> Iterator[Worker]:
        yield worker

    return enter


def hear_interrupts() -> None:
    """For a child process: shells start background jobs with Ctrl-C ignored, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
