"""llm-compressor: `MagRGPTQModifier`, which takes all of GPTQModifier's arguments.

    python examples/with_llmcompressor.py OUT

Needs `pip install 'magr-gptq[llmcompressor]'`. What is saved is an ordinary compressed-tensors checkpoint.
"""

import sys

from datasets import Dataset
from demo import MODEL, print_score, token_rows
from llmcompressor import oneshot
from transformers import AutoTokenizer

from magr_gptq.toolkits.llmcompressor import MagRGPTQModifier


def main(out: str) -> None:
    """Quantize the demo's Llama to 4 bits, save it, and score what was saved."""
    rows = Dataset.from_list(token_rows(AutoTokenizer.from_pretrained(MODEL)))
    modifier = MagRGPTQModifier(scheme="W4A16", ignore=["lm_head"], magr=True)
    oneshot(
        model=MODEL, dataset=rows, recipe=[modifier], output_dir=out,
        num_calibration_samples=len(rows), max_seq_length=256,
    )  # fmt: skip
    print(modifier.magr_report.summary())
    print_score(out, "transformers")


if __name__ == "__main__":
    main(sys.argv[1])
