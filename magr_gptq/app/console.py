"""What every command prints with: the console, its progress bar, and errors without a traceback."""

from __future__ import annotations

import os
import signal
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from magr_gptq.app.processes import EngineError
from magr_gptq.app.quantizing.output import PublishError
from magr_gptq.errors import InputError

INPUT, FAILED, STRICT = 2, 1, 3

console = Console(highlight=False)
_errors = Console(stderr=True, highlight=False)


class Terminated(KeyboardInterrupt):
    """SIGTERM came; handled as Ctrl-C is, so that everything gets cleaned up."""


@contextmanager
def errors_shown() -> Iterator[None]:
    """Wrong input ends the command with exit code 2, a toolkit's failure with 1; both with a message.

    Ctrl-C and SIGTERM unwind the command, and end it with 130 and 143.
    """
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except InputError as error:
        raise _exit(error, INPUT) from error
    except (EngineError, PublishError) as error:
        raise _exit(error, FAILED) from error
    except KeyboardInterrupt as error:
        _errors.print("\nInterrupted.")
        number = signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT
        raise typer.Exit(128 + number) from error
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise Terminated


def _exit(error: Exception, code: int) -> typer.Exit:
    _errors.print(f"[bold red]Error:[/] {escape(str(error))}", soft_wrap=True)
    return typer.Exit(code)


def show_warning(text: str) -> None:
    """A frame that can't be missed, on stderr."""
    _errors.print(Panel(escape(text), title="Warning", border_style="bold red", style="bold"))


@contextmanager
def output_hidden() -> Iterator[None]:
    """Keep banners and harmless warnings of toolkits from the screen, those past sys.stdout, too."""
    console.file.flush()
    kept = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile() as sink, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            for descriptor, number in zip(kept, (1, 2), strict=True):
                os.dup2(descriptor, number)
                os.close(descriptor)


def progress_bars() -> Progress:
    """Bars with a spinner, what is going on, how many of how many, and the time."""
    return Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TimeElapsedColumn(), console=console,
    )  # fmt: skip


def show_line(bars: Progress, line: str) -> None:
    """Print a line where bars can't move, as in a file, so that a reader sees how far the work is."""
    if not bars.console.is_terminal and not bars.disable:
        bars.console.print(line, markup=False, soft_wrap=True)


def show_event(bars: Progress, bar: TaskID, name: str, event: dict[str, Any]) -> None:
    """Move the bar to where a worker says it is; name: what the work is on, or nothing."""
    prefix = f"{name}: " if name else ""
    (task,) = (task for task in bars.tasks if task.id == bar)
    if "text" in event:
        show_line(bars, prefix + event["text"])
        if task.total is not None:
            bars.reset(bar, total=None)
        bars.update(bar, description=escape(prefix + event["text"]))
        return
    done, total = event["done"], event["total"]
    # toolkits tell of a layer more than once
    if (task.completed, task.total) != (done, total):
        show_line(bars, f"{prefix}{done} of {total} layers quantized")
    bars.update(bar, description=escape(prefix + "quantizing layers"), completed=done, total=total)


def make_folder(path: Path) -> Path:
    """The absolute path of the folder, made if absent."""
    path = path.expanduser().absolute()
    if path.is_file():
        raise InputError(f"{path} is a file, not a folder; name another --out")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the output folder {path} cannot be made: {error.strerror}") from error
    return path
