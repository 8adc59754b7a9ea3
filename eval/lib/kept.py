"""Finished checkpoints that are kept until they have been scored, as what makes them takes long."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from shutil import rmtree
from typing import Any

NOTE = "made.json"


def made_once(
    folder: Path, asked: Mapping[str, Any], make: Callable[[Path], dict[str, Any]]
) -> dict[str, Any]:
    """What `make` returned when it filled this folder: now, or in an earlier run that asked for the same.

    Whoever has written the record removes the folder. All that is asked and made goes through JSON.
    """
    note = folder / NOTE
    if note.exists():
        found = json.loads(note.read_text())
        if found["asked"] == asked:
            print(f"{folder.name}: made by an earlier run", flush=True)
            return found["made"]
        rmtree(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # it gets its name when it is finished
    with tempfile.TemporaryDirectory(prefix="unfinished-", dir=folder.parent) as place:
        new = Path(place, folder.name)
        new.mkdir()
        made = make(new)
        (new / NOTE).write_text(json.dumps({"asked": asked, "made": made}, indent=1) + "\n")
        new.rename(folder)
    return made
