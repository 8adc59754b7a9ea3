"""What every reader does: it is given checkpoints and an option, and answers one JSON line each.

    python NAME.py OPTION FOLDER...     {"checkpoint": ..., "divergence": ...}, or "error"

It runs in its consumer's environment, where nothing of this project is installed but numpy is. Answers go to
the file descriptor of the variable ANSWERS, or else to stdout.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

Logits = Callable[[str, np.ndarray, str], np.ndarray]


def answer(logits: Logits, *packages: str) -> None:
    """Answer for every checkpoint of the command line.

    Args:
        logits: from a folder, token ids [rows, positions] and the option to logits, or log-probabilities,
            [rows, positions, vocabulary]. packages: whose versions are told.
    """
    descriptor = int(os.environ.get("ANSWERS", "1"))
    os.set_inheritable(descriptor, False)
    answers = os.fdopen(descriptor, "w", encoding="utf-8")
    versions = {name: version(name) for name in packages}
    for folder in sys.argv[2:]:
        found = {"checkpoint": Path(folder).name, "versions": versions, **_measured(logits, folder)}
        print(json.dumps(found), file=answers, flush=True)
    # consumers leave threads and processes behind that would keep this one
    os._exit(0)


def _measured(logits: Logits, folder: str) -> dict:
    known = np.load(Path(folder, "predictions.npz"))
    try:
        seen = logits(folder, known["tokens"], sys.argv[1])
        return {"divergence": divergence(known["logits"], seen)}
    # whatever a consumer raises is its answer
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        said = str(error).strip().splitlines() or [""]
        return {"error": f"{type(error).__name__}: {said[0]}"[:300]}


def divergence(wanted: np.ndarray, seen: np.ndarray) -> float:
    """Mean KL(p ‖ q) in nats over positions, p and q the softmax of both, in float64; 1e6 where infinite."""
    if seen.shape != wanted.shape:
        raise ValueError(f"predictions are {seen.shape}, not {wanted.shape}")
    p, q = _log_softmax(wanted), _log_softmax(seen)
    found = float((np.exp(p) * (p - q)).sum(-1).mean())
    # JSON has no infinity
    return found if np.isfinite(found) else 1e6


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))
