"""The answering side of a process: events go to stdout, one JSON line each, and everything else to stderr.

A request ends with one of two events:

    {"event": "done", "result": {...}}
    {"event": "error", "message": "...", "input": true where the person who asked can mend it}
"""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable, Mapping
from typing import Any, TextIO

Tell = Callable[..., None]


def keep_stdout() -> TextIO:
    """The real stdout, for answers alone; whatever toolkits print goes to stderr from now on."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def teller(answers: TextIO) -> Tell:
    """What writes one event: its kind, and its values by name."""

    def tell(event: str, **values: Any) -> None:
        print(json.dumps({"event": event, **values}), file=answers, flush=True)

    return tell


def respond(tell: Tell, handle: Callable[[], Mapping[str, Any]], refusal: type[Exception]) -> None:
    """Tell `done` with what the call returns, or `error`; `refusal` is raised for what was given."""
    try:
        result = handle()
    except refusal as error:
        tell("error", message=str(error), input=True)
    # whatever else a toolkit raises is told, too, and its traceback is in the log
    except Exception as error:
        traceback.print_exc()
        tell("error", message=f"{type(error).__name__}: {error}", input=False)
    else:
        tell("done", result=result)
