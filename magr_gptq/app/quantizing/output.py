"""An output folder that appears only when it is complete."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from magr_gptq.errors import InputError

MARK = ".magr-unfinished-"


class PublishError(RuntimeError):
    """The work is done and kept, but not where it was wanted."""


@contextmanager
def output_folder(out: Path) -> Iterator[Path]:
    """A hidden folder next to `out` to write to; `out` itself once the block has succeeded.

    Where the block fails, nothing is left. A killed process leaves the hidden folder: `leftovers`.

    Raises:
        InputError: `out` is in use or can't be written, before the block starts.
        PublishError: `out` came into use meanwhile; the hidden folder is kept.
    """
    check_output(out)
    unfinished = out.with_name(f".{out.name}{MARK}{secrets.token_hex(4)}")
    try:
        unfinished.mkdir()
    except OSError as error:
        raise InputError(f"the folder {out.parent} cannot be written to: {error.strerror}") from error
    try:
        yield unfinished
        _flush(unfinished)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    try:
        if out.is_dir():
            out.rmdir()
        unfinished.rename(out)
    except OSError as error:
        raise PublishError(
            f"the finished checkpoint is in {unfinished}, as {out} could not take it: {error.strerror}; "
            "move it yourself"
        ) from error


def check_output(out: Path) -> None:
    """InputError where `out` is not a new or empty folder in an existing one."""
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"the output folder {out} is not empty; name another --out, or empty it first")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file, not a folder; name another --out")
    if not out.parent.is_dir():
        raise InputError(f"there is no folder {out.parent} to put the output into; make it, or name another")


def leftovers(out: Path) -> list[Path]:
    """The hidden folders of runs for `out` that were killed, or that are still at work."""
    return sorted(out.parent.glob(f".{out.name}{MARK}*"))


def _flush(folder: Path) -> None:
    """To the disk: a power cut after the renaming would leave empty files."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("r+b") as opened:
                os.fsync(opened.fileno())
