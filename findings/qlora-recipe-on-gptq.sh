#!/usr/bin/env bash
# The two usual lines of a QLoRA recipe on a GPTQ model: one does nothing, the other finds no layer.
#
# Guess:  prepare_model_for_kbit_training casts norms, head and embeddings to float32, as for bitsandbytes;
#         target_modules="all-linear" puts a LoRA on every quantized layer and leaves out the head.
# Seen:   everything stays in float16, so norms and logits are trained in it. "all-linear" raises: GPTQ's layers are no
#         Linear to peft, only the head is, and that is left out. The message says that no target_modules were passed.
#         The layers' names, written out, work.
# Why:    recipes for LoRA on a quantized model are written for bitsandbytes, and this is their first line. Float16
#         overflows in training where float32 norms were meant to prevent that.
# Ours:   docs say to pass the layers' names. To peft our checkpoints are ordinary GPTQ checkpoints.
. "$(dirname "$0")/lib.sh"
install $TOOLKITS
see <<'PY'
import torch
from finding import expect, llama, raised, rows, versions
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM

versions("torch", "transformers", "gptqmodel", "peft")
llama("model")
data = [{"input_ids": row.tolist(), "attention_mask": [1] * 64} for row in rows(16)]
config = QuantizeConfig(bits=4, group_size=32, act_group_aware=False, offload_to_disk=False, device="cpu")
model = GPTQModel.load("model", config, backend=BACKEND.TORCH, dtype=torch.float16)
model.quantize(data, batch_size=1, backend=BACKEND.TORCH)
model.save("quantized")
LAYERS = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]


def load(folder="quantized"):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16)


def reached(folder, targets):
    """The kinds of layers that get a LoRA."""
    config = LoraConfig(target_modules=targets, task_type="CAUSAL_LM")
    names = [name.split(".") for name, _ in get_peft_model(load(folder), config).named_modules()]
    return sorted({name[-2] for name in names if name[-1] == "lora_A"})


dtypes = {str(parameter.dtype) for parameter in prepare_model_for_kbit_training(load()).parameters()}
expect("prepare_model_for_kbit_training: dtypes of the parameters", dtypes, dtypes == {"torch.float16"})
found = reached("model", "all-linear")
expect('"all-linear" on the unquantized model: layers', found, found == sorted(LAYERS))
error = raised(reached, "quantized", "all-linear")
untold = error.startswith("NoMatchingPeftModuleError: No `target_modules` passed")
expect('"all-linear" on the GPTQ model', error, untold)
found = reached("quantized", LAYERS)
expect("the layers' names on the GPTQ model: layers", found, found == sorted(LAYERS))
PY
