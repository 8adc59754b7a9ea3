"""transformers, which quantizes through optimum and GPTQModel: `GPTQConfig(..., magr=True)`.

    python examples/with_transformers.py OUT

Needs `pip install 'magr-gptq[optimum]'`.
"""

import sys

from demo import MODEL, print_score, texts
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTQConfig

import magr_gptq


def main(out: str) -> None:
    """Quantize the demo's Llama to 3 bits, save it, and score what was saved."""
    magr_gptq.enable("optimum")
    config = GPTQConfig(bits=3, group_size=128, dataset=texts(), tokenizer=MODEL, magr=True)
    model = AutoModelForCausalLM.from_pretrained(MODEL, quantization_config=config, dtype="float16")
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(out)
    print(model.quantize_config.magr_report.summary())
    print_score(out, "transformers")


if __name__ == "__main__":
    main(sys.argv[1])
