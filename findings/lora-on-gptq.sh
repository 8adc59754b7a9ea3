#!/usr/bin/env bash
# Which of peft's ways to start a LoRA work on a GPTQ model, and why the adapter can never be merged.
#
# Guess:  what needs the base weight (PiSSA, OLoRA, DoRA) dequantizes it, as for other quantized models; an adapter
#         trained on a GPTQ model can be merged, with some rounding.
# Seen:   the plain start works, 2 bits and desc_act included, and leaves the output bit for bit. PiSSA and OLoRA die
#         with an AttributeError that names an inner class, DoRA is refused by name, and merging is refused.
# Why:    someone who wants to win back a 2-bit model's loss by an adapter has the plain start alone, and serves the
#         adapter apart for good; the error of PiSSA does not say so.
# Ours:   docs name the start that works. The checkpoint of a reduced weight is an ordinary GPTQ one to peft.
. "$(dirname "$0")/lib.sh"
install $TOOLKITS
see <<'PY'
import torch
from finding import expect, llama, raised, rows, versions
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

versions("torch", "transformers", "gptqmodel", "peft")
llama("model")
config = QuantizeConfig(bits=2, group_size=32, desc_act=True, act_group_aware=False, offload_to_disk=False, device="cpu")
model = GPTQModel.load("model", config, backend=BACKEND.TORCH, dtype=torch.float16)
data = [{"input_ids": row.tolist(), "attention_mask": [1] * 64} for row in rows(16)]
model.quantize(data, batch_size=1, backend=BACKEND.TORCH)
model.save("quantized")


def base():
    return AutoModelForCausalLM.from_pretrained("quantized", device_map="cpu", dtype=torch.float16)


def adapted(model, **options):
    return get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "down_proj"], **options))


model, tokens = base(), rows(4)
before = model(tokens).logits
with_adapter = adapted(model)
same = bool(torch.equal(with_adapter(tokens).logits, before))
expect("plain start: the output is as it was", same, same)
error = raised(with_adapter.merge_and_unload)
expect("merging", error, error.startswith("ValueError"))
for start in ("pissa", "olora"):
    error = raised(adapted, base(), init_lora_weights=start)
    expect(start, error, error.startswith("AttributeError"))
error = raised(adapted, base(), use_dora=True)
expect("DoRA", error, error.startswith("ValueError"))
PY
