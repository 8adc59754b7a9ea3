#!/usr/bin/env bash
# neural-compressor's GPTQ quantizes the layers that its config leaves out, with another layer's settings.
#
# Guess:  a layer whose own config says dtype="fp32" stays as it is, as with neural-compressor's rounding to nearest.
# Seen:   with down_proj left out in this way all seven layers of the block are quantized, down_proj with the settings
#         of the layer that comes first in the model (8 bits here, while all others have 4). With rounding to nearest
#         the same setting leaves down_proj alone.
# Why:    sensitive layers are the ones that people leave out, and mixed widths come out as others than were asked for.
# Ours:   the report has a line for every layer, with its bits; a pattern that reaches no layer is told of.
. "$(dirname "$0")/lib.sh"
install $PEERS
see <<'PY'
import torch
from finding import expect, llama, rows, versions
from neural_compressor.torch.quantization import GPTQConfig, RTNConfig, convert, prepare
from transformers import AutoModelForCausalLM

versions("torch", "neural-compressor-pt")
llama("model", dtype="float32")
tokens = rows(8)
LEFT_OUT = "model.layers.0.mlp.down_proj"


def bits_of(method):
    """Each layer's bits after a run that leaves down_proj out and gives q_proj 8 bits; None where it is unquantized."""
    config = method(bits=4, group_size=32)
    config.set_local(LEFT_OUT, method(dtype="fp32"))
    config.set_local("model.layers.0.self_attn.q_proj", method(bits=8, group_size=32))
    model = prepare(AutoModelForCausalLM.from_pretrained("model", dtype=torch.float32), config)
    for row in tokens:
        model(row[None])
    layers = dict(convert(model).named_modules())
    names = [name for name, module in layers.items() if name.endswith("_proj")]
    return {name.split(".")[-1]: getattr(layers[name], "bits", None) for name in names}


found = bits_of(GPTQConfig)
expect("GPTQ: bits of each layer", found, found["down_proj"] == 8 and found["up_proj"] == 4)
found = bits_of(RTNConfig)
expect("rounding to nearest: bits of each layer", found, found["down_proj"] is None and found["up_proj"] == 4)
PY
