"""What the examples share: the small Llama in this repository, some of its text, and a score."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# GPTQModel plans no worker for loading on two cores or fewer, and then fails for want of one
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
# a compiled kernel takes longer to build than this model takes to quantize
os.environ.setdefault("GPTQMODEL_DISABLE_PACK_EXT", "1")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

DEMO = Path(__file__).parents[1] / "magr_gptq" / "app" / "demo"
MODEL = str(DEMO / "model")
EVALUATION = str(DEMO / "text" / "evaluation.txt")


def texts(count: int = 32, characters: int = 1000) -> list[str]:
    """Calibration texts, from places spread evenly over the demo's calibration text."""
    whole = (DEMO / "text" / "calibration.txt").read_text(encoding="utf-8")
    apart = len(whole) // count
    return [whole[start : start + characters] for start in range(0, apart * count, apart)]


def token_rows(tokenizer, count: int = 32) -> list[dict[str, list[int]]]:
    """The same as token ids, at most 256 a text, for the toolkits that want them."""
    rows = [tokenizer(text, truncation=True, max_length=256)["input_ids"] for text in texts(count)]
    return [{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows]


def print_score(folder: str, loader: str) -> None:
    """Perplexity of a saved checkpoint, by a fresh process that never imports magr_gptq."""
    command = [sys.executable, "-I", "-m", "magr_score", "perplexity", folder, EVALUATION]
    subprocess.run([*command, "--engine", loader, "--seqlen", "256", "--limit", "32"], check=True)
