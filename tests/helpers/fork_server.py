"""Forks processes that measure; what takes long to import was imported once, and nothing of magr_gptq.

    python -I fork_server.py SOCKET

Every message on the socket is a request, {"run": a script or the name of a module, "arguments": its own,
"cwd": a folder}, with two file descriptors, for stdout and stderr. The exit status is the answer.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import socket
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

# what toolkits import before their own, none of which starts a thread; not all are in every environment
SHARED = ("torch", "torch._dynamo", "transformers", "transformers.modeling_utils", "sklearn.metrics",
          "scipy.stats", "datasets", "accelerate")  # fmt: skip
LARGEST = 2**16


def serve(requests: socket.socket) -> None:
    """Answer one request after another, until the caller is gone."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, LARGEST, 2)
        if not message:
            return
        child = os.fork()
        if child == 0:
            _run(json.loads(message), *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        requests.send(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())


def _run(request: dict[str, Any], output: int, errors: int) -> NoReturn:
    """In place of the rest of this process."""
    status = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(errors, 2)
        os.chdir(request["cwd"])
        sys.argv = [request["run"], *request["arguments"]]
        _run_as_main(request["run"])
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    # as the interpreter tells of it
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _run_as_main(name: str) -> None:
    if name.endswith(".py"):
        sys.path.insert(0, str(Path(name).parent))
        runpy.run_path(name, run_name="__main__")
    else:
        runpy.run_module(name, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    for name in SHARED:
        with suppress(ImportError):
            importlib.import_module(name)
    serve(socket.socket(fileno=int(sys.argv[1])))
