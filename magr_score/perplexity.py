"""Perplexity of model folders, by GPTQ's protocol, without magr_gptq.

    python -I -m magr_score.perplexity MODEL_FOLDER... TEXT.txt --engine gptqmodel

It imports the vanilla toolkit only, and fails if magr_gptq got imported.
The text is tokenized whole and cut into windows without overlap; the result is the exponent of
the mean negative log-likelihood of every token that follows another in its window. One JSON
line a model goes to stdout, everything that a toolkit prints to stderr.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

# GPTQModel compiles its kernel, for longer than most scores take; torch reads this as it is imported
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import torch
from torch.nn.functional import cross_entropy

TOKENS_AT_ONCE = 4096


def load_gptqmodel(folder: str, device: str) -> Any:
    """A GPTQ checkpoint, through GPTQModel."""
    from gptqmodel import BACKEND, GPTQModel

    if device == "cpu":
        model = GPTQModel.load(folder, backend=BACKEND.TORCH, device="cpu", dtype=torch.float16)
        # GPTQModel refuses to load float32; its kernel computes in the dtype of its input
        return model.model.float()
    return GPTQModel.load(folder, device=device, dtype=torch.float16).model


def load_autogptq(folder: str, device: str) -> Any:
    """A GPTQ checkpoint, through AutoGPTQ."""
    from auto_gptq import AutoGPTQForCausalLM

    if device == "cpu":
        model = AutoGPTQForCausalLM.from_quantized(
            folder, device="cpu", torch_dtype=torch.float32, disable_exllama=True, disable_exllamav2=True
        )
        return model.model.float()
    return AutoGPTQForCausalLM.from_quantized(folder, device=device, torch_dtype=torch.float16).model


def load_transformers(folder: str, device: str) -> Any:
    """Any model that transformers loads, computing in float32; a quantized one as its config says."""
    from transformers import AutoModelForCausalLM

    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(folder, torch_dtype="auto")
    # transformers refuses to cast a quantized model, whose kernels compute in the dtype of their input
    return torch.nn.Module.float(model).to(device)


ENGINES = {
    "gptqmodel": (load_gptqmodel, "gptqmodel"),
    "auto-gptq": (load_autogptq, "auto-gptq"),
    "transformers": (load_transformers, "transformers"),
}


def model_limit(config: Any) -> int:
    """The longest context that the model's config allows."""
    for name in ("max_position_embeddings", "n_positions"):
        if getattr(config, name, None):
            return int(getattr(config, name))
    return sys.maxsize


def cut_windows(tokens: list[int], length: int, limit: int | None) -> torch.Tensor:
    """The windows [n, length] of the tokens, without overlap; `limit` of them, spread evenly."""
    count = len(tokens) // length
    if count == 0:
        raise SystemExit(f"the text has {len(tokens):,} tokens, too few for one window of {length:,}")
    windows = torch.tensor(tokens[: count * length]).view(count, length)
    if limit is None or limit >= count:
        return windows
    return windows[torch.arange(limit) * count // limit]


@torch.no_grad()
def perplexity(model: Any, windows: torch.Tensor, device: str) -> float:
    """exp of the mean negative log-likelihood of every token after the first of its window."""
    total = 0.0
    for rows in torch.split(windows.to(device), max(1, TOKENS_AT_ONCE // windows.shape[1])):
        logits = model(input_ids=rows, use_cache=False).logits[:, :-1].float()
        total += float(cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="sum"))
    return math.exp(total / (windows.shape[0] * (windows.shape[1] - 1)))


def score(folder: str, args: argparse.Namespace) -> dict[str, Any]:
    """Load, tokenize and measure one model."""
    from transformers import AutoConfig, AutoTokenizer

    start = time.perf_counter()
    text = args.text.read_text(encoding="utf-8")
    seqlen = min(args.seqlen, model_limit(AutoConfig.from_pretrained(folder)))
    tokens = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    windows = cut_windows(tokens, seqlen, args.limit)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    load, distribution = ENGINES[args.engine]
    model = load(folder, device + ":0" if device == "cuda" else device)
    result = perplexity(model.eval(), windows, device)
    return {
        "perplexity": result,
        "windows": len(windows),
        "seqlen": seqlen,
        "tokens": windows.numel(),
        "seconds": round(time.perf_counter() - start, 2),
        "engine": args.engine,
        "device": device,
        "versions": {name: version(name) for name in sorted({distribution, "transformers", "torch"})},
    }


def parse_arguments() -> argparse.Namespace:
    """The command line; wrong input ends it with one line that says what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="model", help="folder with a model and its tokenizer")
    parser.add_argument("text", type=Path, help="UTF-8 text file")
    parser.add_argument("--engine", choices=ENGINES, required=True)
    parser.add_argument("--seqlen", type=int, default=2048, help="at most the model's own limit")
    parser.add_argument("--limit", type=int, help="score only so many windows, spread evenly over the text")
    args = parser.parse_args()
    for folder in args.models:
        if not Path(folder, "config.json").is_file():
            parser.error(f"{folder} is no model folder: it has no config.json")
    if not args.text.is_file():
        parser.error(f"there is no file {args.text}")
    if args.seqlen < 2 or (args.limit is not None and args.limit < 1):
        parser.error("--seqlen must be at least 2 and --limit at least 1")
    return args


def main() -> None:
    """Score, and print one JSON line a model on the real stdout."""
    args = parse_arguments()
    # toolkits print banners; stdout is kept for the result
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for folder in args.models:
        result = score(folder, args)
        assert "magr_gptq" not in sys.modules, "magr_gptq was imported: this score proves nothing"
        print(json.dumps(result), file=answer, flush=True)


if __name__ == "__main__":
    main()
