"""GPTQModel: `QuantizeConfig(..., magr=True)`.

    python examples/with_gptqmodel.py OUT

Needs `pip install 'magr-gptq[gptqmodel]'`.
"""

import sys

from demo import MODEL, print_score, texts
from gptqmodel import GPTQModel, QuantizeConfig

import magr_gptq


def main(out: str) -> None:
    """Quantize the demo's Llama to 3 bits, save it, and score what was saved."""
    magr_gptq.enable("gptqmodel")
    config = QuantizeConfig(bits=3, group_size=128, magr=True)
    model = GPTQModel.load(MODEL, config)
    model.quantize(texts(), batch_size=8)
    model.save(out)
    print(model.quantize_config.magr_report.summary())
    print_score(out, "gptqmodel")


if __name__ == "__main__":
    main(sys.argv[1])
