"""How far the predictions of quantized models on a text are from the original's.

    python -m eval.studies.domains.fidelity MODEL CHECKPOINT... --text TEXT --limit 64

Perplexity tells less than that where the original is itself wrong on the text: an error may then be a gain.
GPTQ checkpoints are loaded by GPTQModel as it is.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from transformers import AutoTokenizer

from eval.lib.fidelity import CONTEXT, Text
from magr_gptq.app.text import load_text
from magr_score.loaders import load_gptqmodel, load_transformers
from magr_score.windows import cut_windows


def main() -> None:
    """Print a line for each checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path, help="what the checkpoints were quantized from")
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--text", required=True)
    parser.add_argument("--limit", type=int, default=256, help="windows of 256 tokens")
    args = parser.parse_args()
    tokens = AutoTokenizer.from_pretrained(args.model)(load_text(args.text))["input_ids"]
    original = load_transformers(str(args.model), "cpu")
    text = Text.of(original, cut_windows(tokens, CONTEXT, args.limit))
    for folder in args.checkpoints:
        model = load_gptqmodel(str(folder), "cpu")
        print(f"{folder}: perplexity {text.perplexity(model):.2f}, divergence {text.divergence(model):.4f}")


if __name__ == "__main__":
    main()
