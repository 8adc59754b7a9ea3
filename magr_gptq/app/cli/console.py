"""What every command prints with: the console, its progress bar, and errors without a traceback."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import typer
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
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


def progress_bars() -> Progress:
    """Bars with a spinner, what is going on, how many of how many, and the time."""
    return Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TimeElapsedColumn(), console=console,
    )  # fmt: skip


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
