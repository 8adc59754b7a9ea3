"""The checkpoints that consumers read: made once from the demo's model, with what their weights predict.

Each lies in a folder NAME of the cache, such as plain-w4 and default-w4. `predictions.npz` there has the
tokens [rows, positions] and the logits [rows, positions, vocabulary] of a float32 model that has the weights
that `magr_score.packed` reads from the files by the formats' definitions.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from magr_gptq.app.quantizing.job import Job
from magr_gptq.app.quantizing.worker import Worker
from magr_score import packed
from tools.runtimes.environments import ROOT

DEMO = ROOT / "magr_gptq" / "app" / "demo"
CACHE = ROOT / "runs" / "runtimes"
PREDICTIONS = "predictions.npz"
SAMPLES, SEQLEN, SEED = 16, 256, 0
ROWS, POSITIONS = 4, 64
METHODS: dict[str, dict[str, Any] | None] = {"plain": None, "default": {}}

_COMPRESSED = {"engine": "llm-compressor"}
KINDS: dict[str, dict[str, Any]] = {
    "w4": {"bits": 4},
    "w4-asymmetric": {"bits": 4, "sym": False},
    "w4-desc-act": {"bits": 4, "desc_act": True},
    "w4-channel": {"bits": 4, "group_size": -1},
    "w3": {"bits": 3},
    "w2": {"bits": 2, "group_size": 64},
    "w8": {"bits": 8},
    "ct-w4": {"bits": 4, **_COMPRESSED},
    "ct-w4-asymmetric": {"bits": 4, "sym": False, **_COMPRESSED},
    "ct-w3": {"bits": 3, **_COMPRESSED},
    "ct-w2": {"bits": 2, "group_size": 64, **_COMPRESSED},
    "ct-w8": {"bits": 8, **_COMPRESSED},
}


def make_all(say: Callable[[str], None]) -> None:
    """Make what is missing, in the order of `KINDS`."""
    CACHE.mkdir(parents=True, exist_ok=True)
    missing = [
        (method, kind)
        for kind in KINDS
        for method in METHODS
        if not (CACHE / f"{method}-{kind}" / PREDICTIONS).is_file()
    ]
    if not missing:
        return
    model = _untied_model()
    with Worker(CACHE / "quantize.log") as worker:
        for method, kind in missing:
            say(f"making {method}-{kind}")
            _make(worker, model, method, kind)


def _untied_model() -> Path:
    """The demo's model with a head of its own: AutoGPTQ 0.7.1 leaves tied ones at zero."""
    folder = CACHE / "model"
    if not folder.is_dir():
        model: Any = AutoModelForCausalLM.from_pretrained(DEMO / "model", dtype=torch.float16)
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        AutoTokenizer.from_pretrained(DEMO / "model").save_pretrained(folder)
        model.save_pretrained(folder)
    return folder


def _make(worker: Worker, model: Path, method: str, kind: str) -> None:
    out = CACHE / f"{method}-{kind}"
    shutil.rmtree(out, ignore_errors=True)
    job = Job(
        model=str(model), out=str(out), calibration=str(DEMO / "text" / "calibration.txt"), samples=SAMPLES,
        seqlen=SEQLEN, seed=SEED, magr=METHODS[method], **KINDS[kind],
    )  # fmt: skip
    worker.quantize(job, lambda _: None)
    tokens = read_tokens(model)
    np.savez_compressed(out / PREDICTIONS, tokens=tokens.numpy(), logits=predictions(out, tokens))


def read_tokens(model: Path) -> torch.Tensor:
    """Token ids [rows, positions] of the demo's evaluation text."""
    text = (DEMO / "text" / "evaluation.txt").read_text(encoding="utf-8")
    tokens = AutoTokenizer.from_pretrained(model)(text[:20_000], verbose=False)["input_ids"]
    return torch.tensor(tokens[: ROWS * POSITIONS]).view(ROWS, POSITIONS)


@torch.no_grad()
def predictions(folder: Path, tokens: torch.Tensor) -> np.ndarray:
    """Float32 logits of the model's class with the weights that the files hold."""
    config = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    with torch.device("meta"):
        kind: Any = type(AutoModelForCausalLM.from_config(config))
    # ties a head that the files don't have, as for any checkpoint
    model = kind.from_pretrained(
        None, config=config, state_dict=packed.tensors(str(folder)), dtype=torch.float32
    )
    logits: np.ndarray = model.eval()(input_ids=tokens, use_cache=False).logits.numpy()
    return logits


def digest(folder: Path) -> str:
    """Of the weights' files: results are of these."""
    found = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        found.update(file.read_bytes())
    return found.hexdigest()[:16]


if __name__ == "__main__":
    make_all(lambda line: print(line, flush=True))
