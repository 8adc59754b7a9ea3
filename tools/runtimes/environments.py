"""A consumer's virtual environment: made from its pins, and kept until they change."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# of 2 cores and no GPU; a newer one would bring several GB of CUDA libraries
TORCH = "torch==2.13.0"
LIST = "installed.txt"


class UnavailableError(RuntimeError):
    """A consumer's packages can't be had here."""


def environment(name: str, pins: tuple[str, ...], without: tuple[str, ...] = ()) -> Path:
    """The Python of .venv/runtimes-NAME, with these pins; torch comes first, as builds of others import it.

    Args:
        without: packages that the pins bring along, and that are removed again.

    Raises:
        UnavailableError: pip could not install them; the message is pip's last.
    """
    folder = ROOT / ".venv" / f"runtimes-{name}"
    python, listed = folder / "bin" / "python", folder / LIST
    wanted = "\n".join([*pins, *(f"-{name}" for name in without)]) + "\n"
    if listed.is_file() and listed.read_text(encoding="utf-8") == wanted:
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    first = [pin for pin in pins if pin == TORCH]
    for packages in ([first] if first else []) + [list(pins)]:
        command = [str(python), "-m", "pip", "install", "--quiet", "--no-compile", *packages]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            shutil.rmtree(folder)
            # pip's warnings name folders of this machine
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            raise UnavailableError(errors[-1] if errors else f"pip ended with {done.returncode}")
    if without:
        subprocess.run([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", *without], check=True)
    listed.write_text(wanted, encoding="utf-8")
    return python
