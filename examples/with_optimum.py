"""optimum, which quantizes through GPTQModel: `GPTQQuantizer(..., magr=True)`.

    python examples/with_optimum.py OUT

Needs `pip install 'magr-gptq[optimum]'`. The model is saved by its own `save_pretrained`: for symmetric grids
`GPTQQuantizer.save` of optimum 2.3 writes a config.json that does not fit the weights, with or without MagR.
"""

import sys

from demo import MODEL, print_score, texts
from optimum.gptq import GPTQQuantizer
from transformers import AutoModelForCausalLM, AutoTokenizer

import magr_gptq


def main(out: str) -> None:
    """Quantize the demo's Llama to 3 bits, save it, and score what was saved."""
    magr_gptq.enable("optimum")
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    quantizer = GPTQQuantizer(bits=3, group_size=128, dataset=texts(), magr=True)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype="float16")
    model = quantizer.quantize_model(model, tokenizer)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    print(model.quantize_config.magr_report.summary())
    print_score(out, "transformers")


if __name__ == "__main__":
    main(sys.argv[1])
