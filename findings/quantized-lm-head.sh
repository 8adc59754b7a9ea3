#!/usr/bin/env bash
# GPTQModel quantizes an lm_head and transformers loads the checkpoint with a random one.
#
# Guess:  config.json says lm_head: true, so every reader of the format knows, or refuses; a tied head is untied.
# Seen:   GPTQModel itself reads it rightly. transformers builds an ordinary Linear, finds no weight for it, and goes on
#         with a random one: the output has nothing to do with the model. A head tied to the embeddings is refused by
#         GPTQModel, with a NotImplementedError, after the model was loaded and before work is done.
# Why:    small models, where the head is a third of the weights, are those whose head one wants to quantize, and they
#         are tied; where they are not, the reader that most people have gives noise.
# Ours:   `quantize` leaves the head alone. With `--head` it is quantized for GPTQModel; a tied head, and other runtimes,
#         are refused before work.
. "$(dirname "$0")/lib.sh"
install $TOOLKITS
see <<'PY'
import torch
from finding import distance, expect, llama, raised, rows, versions
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
from transformers import AutoModelForCausalLM

versions("torch", "transformers", "gptqmodel")
tokens = rows(4)
data = [{"input_ids": row.tolist(), "attention_mask": [1] * 64} for row in rows(16)]


def quantize(name):
    config = QuantizeConfig(bits=4, group_size=32, lm_head=True, offload_to_disk=False, device="cpu")
    model = GPTQModel.load(name, config, backend=BACKEND.TORCH, dtype=torch.float16)
    model.quantize(data, batch_size=1, backend=BACKEND.TORCH)
    model.save("quantized")


llama("untied")
full = AutoModelForCausalLM.from_pretrained("untied", dtype=torch.float16)(tokens).logits.float()
quantize("untied")
model = GPTQModel.load("quantized", backend=BACKEND.TORCH, device="cpu", dtype=torch.float16).model
error = distance(model(tokens).logits.float(), full)
expect("read by GPTQModel: error of the logits", error, error < 0.2)
model = AutoModelForCausalLM.from_pretrained("quantized", device_map="cpu", dtype=torch.float16)
error = distance(model(tokens).logits.float(), full)
expect(f"read by transformers as {type(model.lm_head).__name__}: error of the logits", error, error > 1)
llama("tied", tie_word_embeddings=True)
error = raised(quantize, "tied")
expect("a tied head", error, error.startswith("NotImplementedError"))
PY
