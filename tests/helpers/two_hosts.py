"""Two hosts on this machine: two network namespaces that a pair of virtual cables joins, and nothing else."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from places import HELPERS

ADDRESSES = ("10.77.0.1", "10.77.0.2")
PORT = "29517"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def why_not() -> str | None:
    """Why there can't be two hosts here; None where there can."""
    if shutil.which("ip") is None:
        return "iproute2 is not installed, which has ip"
    name = f"magr-probe-{os.getpid()}"
    done = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if done.returncode:
        return f"ip netns is not permitted: {done.stderr.strip()}"
    _ip("netns", "delete", name)
    return None


@contextmanager
def two_hosts() -> Iterator[tuple[str, str]]:
    """Their names; the first and the second address is theirs."""
    names = (f"magr-a-{os.getpid()}", f"magr-b-{os.getpid()}")
    cables = (f"mga{os.getpid() % 10**8}", f"mgb{os.getpid() % 10**8}")
    for name in names:
        _ip("netns", "add", name)
    try:
        _ip("link", "add", cables[0], "type", "veth", "peer", "name", cables[1])
        for name, cable, address in zip(names, cables, ADDRESSES, strict=True):
            _ip("link", "set", cable, "netns", name)
            for device in ("lo", cable):
                _ip("-n", name, "link", "set", device, "up")
            _ip("-n", name, "address", "add", f"{address}/24", "dev", cable)
        yield names
    finally:
        for name in names:
            _end_all(name)
            _ip("netns", "delete", name)  # takes its cable along


def _end_all(host: str) -> None:
    """Workers outlive a torchrun that is killed."""
    listed = subprocess.run(["ip", "netns", "pids", host], check=True, capture_output=True, text=True)
    for process in map(int, listed.stdout.split()):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def start_torchrun(host: str, rank: int, script: Path, *arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """The only process of torchrun on this host, of two."""
    devices = subprocess.run(
        ["ip", "-n", host, "-o", "link", "show", "type", "veth"], check=True, capture_output=True, text=True
    )
    cable = devices.stdout.split(": ")[1].split("@")[0]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HELPERS), *sys.path]),
        "GLOO_SOCKET_IFNAME": cable,
    }
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    torchrun += ["--node-rank", str(rank), "--master-addr", ADDRESSES[0], "--master-port", PORT]
    return subprocess.Popen(
        ["ip", "netns", "exec", host, *torchrun, str(script), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=cwd, env=environment,
    )  # fmt: skip
