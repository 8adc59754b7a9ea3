"""Processes without magr_gptq that are forked, since most of the time of a fresh one goes into imports."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from places import HELPERS

ONE_AT_A_TIME = threading.Lock()


@cache
def server() -> socket.socket:
    """The way to `fork_server`, which ends when this end is closed, and so when this process ends."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-I", str(HELPERS / "fork_server.py"), str(theirs.fileno())]
    subprocess.Popen(command, pass_fds=[theirs.fileno()])
    theirs.close()
    return ours


def start(run: str, arguments: Sequence[Any], cwd: Path, output: int, errors: int) -> None:
    """Have it run with these file descriptors; its exit status is the next that the server answers."""
    request = {"run": run, "arguments": [str(argument) for argument in arguments], "cwd": str(cwd.absolute())}
    socket.send_fds(server(), [json.dumps(request).encode()], [output, errors])


def status() -> int:
    """The exit status of what was started last."""
    return int(server().recv(64))


def run_forked(run: str, *arguments: Any, cwd: Path = Path()) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run([sys.executable, "-I", run, *arguments])`, of a script or a module's name."""
    with ONE_AT_A_TIME, tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        start(run, arguments, cwd, output.fileno(), errors.fileno())
        code = status()
        for file in (output, errors):
            file.seek(0)
        return subprocess.CompletedProcess([run, *arguments], code, output.read(), errors.read())
