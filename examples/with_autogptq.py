"""AutoGPTQ: `BaseQuantizeConfig(..., magr=True)`.

    python examples/with_autogptq.py OUT

Needs Python 3.11 or older and `pip install 'magr-gptq[autogptq]'`, in an environment of its own.
"""

import sys

from auto_gptq import AutoGPTQForCausalLM, BaseQuantizeConfig
from demo import MODEL, print_score, token_rows
from transformers import AutoTokenizer

import magr_gptq


def main(out: str) -> None:
    """Quantize the demo's Llama to 3 bits, save it, and score what was saved."""
    magr_gptq.enable("auto-gptq")
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    config = BaseQuantizeConfig(bits=3, group_size=128, desc_act=False, magr=True)
    model = AutoGPTQForCausalLM.from_pretrained(MODEL, config)
    model.quantize(token_rows(tokenizer), batch_size=8)
    model.save_quantized(out)
    tokenizer.save_pretrained(out)
    print(config.magr_report.summary())
    print_score(out, "auto-gptq")


if __name__ == "__main__":
    main(sys.argv[1])
