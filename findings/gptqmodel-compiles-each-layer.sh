#!/usr/bin/env bash
# On a CPU the second forward pass compiles a function for every layer: it tests where in memory the layer lies.
#
# Guess:  GPTQModel compiles what restores weights once for each shape of a layer, in the first pass, and later passes
#         are fast. Where nothing can be compiled, it runs uncompiled.
# Seen:   the first pass is so. It keeps each layer's zero points, and the address of their tensor. The second pass
#         compares that address, and torch.compile makes it a constant: one compilation a layer, a tenth of a second
#         each. At 128 of them torch warns of config.recompile_limit, and goes on without. The second pass takes 50 to
#         150 times as long as the third, which in thin layers is no faster than an uncompiled one. The logits have the
#         same bits. At 3 bits, where no address is kept, it does not happen. Without a C++ compiler the first pass
#         ends in an error.
# Why:    it is the kernel that GPTQModel and transformers take on a CPU at 2, 3 and 8 bits, and at 4 with
#         backend="torch". A short test of a checkpoint is mostly compilation, and small containers have no compiler.
#         TORCHDYNAMO_DISABLE=1 cures both. GPTQ_TORCH_CACHE_WEIGHTS=1 cures the first, and keeps 16-bit weights.
# Ours:   our commands set TORCHDYNAMO_DISABLE=1 where they quantize without a GPU, and wherever they measure.
. "$(dirname "$0")/lib.sh"
install $TOOLKITS
cat >tiny.py <<'PY'
"""Checkpoints of 7 layers a block, passes with and without torch's compiler."""

import time

import torch
from finding import llama, rows
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
from torch._dynamo.utils import counters

tokens = rows(1)


def quantize(bits, blocks):
    llama("model", hidden=64, layers=blocks)
    config = QuantizeConfig(bits=bits, group_size=32, offload_to_disk=False, device="cpu")
    model = GPTQModel.load("model", config, backend=BACKEND.TORCH, dtype=torch.float16)
    data = [{"input_ids": row.tolist(), "attention_mask": [1] * 64} for row in rows(8)]
    model.quantize(data, batch_size=8, backend=BACKEND.TORCH)
    model.save(f"{bits}-bits-{blocks}")


def load(bits, blocks):
    """The model as GPTQModel loads it by itself."""
    return GPTQModel.load(f"{bits}-bits-{blocks}", device="cpu", dtype=torch.float16).model


def kernels(model):
    """The kernel's name for every quantized layer."""
    return [type(module).__name__ for module in model.modules() if hasattr(module, "qweight")]


@torch.no_grad()
def forward(model):
    """Logits, seconds, and how many functions torch compiled meanwhile."""
    before, start = counters["frames"]["ok"], time.perf_counter()
    logits = model(tokens).logits
    return logits, time.perf_counter() - start, counters["frames"]["ok"] - before
PY
see <<'PY'
import tiny

tiny.quantize(2, 21)
for bits in (2, 3, 4, 8):
    tiny.quantize(bits, 1)
PY
# torch's compiler, which lib.sh leaves out, with its files in this folder
unset TORCHDYNAMO_DISABLE
export TORCHINDUCTOR_CACHE_DIR=$WORK/compiled TORCHINDUCTOR_COMPILE_THREADS=1
see <<'PY'
import os

import torch
from finding import expect, versions
from tiny import counters, forward, kernels, load
from transformers import AutoModelForCausalLM

versions("torch", "transformers", "gptqmodel")
for bits in (2, 3, 4, 8):
    other = AutoModelForCausalLM.from_pretrained(f"{bits}-bits-1", device_map="cpu", dtype=torch.float16)
    names = sorted({*kernels(load(bits, 1)), *kernels(other)})
    expected = ["TorchAtenLinear" if bits == 4 else "TorchLinear"]
    expect(f"{bits} bits, the kernel that GPTQModel and transformers take", names, names == expected)
model = load(2, 21)
(first, _, once), (second, slow, again), (third, fast, later) = forward(model), forward(model), forward(model)
expect(f"{len(kernels(model))} layers of three shapes, functions compiled in the first pass", once, once == 3)
expect("in the second pass", again, again >= 128)
expect("in the third pass", later, later == 0)
limits = sum(number for why, number in counters["unimplemented"].items() if "recompile limit" in why)
expect("functions that reached the limit of compilations", limits, limits == 1)
expect("seconds of the second pass", slow, slow > 10 * fast)
expect("seconds of the third", fast, slow > 10 * fast)
with torch.compiler.set_stance("force_eager"):
    plain, seconds, _ = forward(load(2, 21))
expect("seconds of a first pass without the compiler", seconds, slow > 10 * seconds)
same = all(torch.equal(logits, plain) for logits in (first, second, third))
expect("the logits of all are the same bits", same, same)

torch._dynamo.reset()
model = load(3, 1)
seen = [forward(model)[2] for _ in range(2)]
expect("3 bits, one block, functions compiled in two passes", seen, seen[0] > 0 and seen[1] == 0)
torch._dynamo.reset()
os.environ["GPTQ_TORCH_CACHE_WEIGHTS"] = "1"
model = load(2, 1)
seen = [forward(model)[2] for _ in range(2)]
expect("2 bits, one block, GPTQ_TORCH_CACHE_WEIGHTS=1", seen, seen[0] > 0 and seen[1] == 0)
os.environ["GPTQ_TORCH_CACHE_WEIGHTS"] = "0"
torch._dynamo.reset()
model = load(2, 1)
seen = [forward(model)[2] for _ in range(2)]
expect("and without it", seen, seen[1] >= 7)
PY
export CXX=no-such-compiler TORCHINDUCTOR_CACHE_DIR=$WORK/none
see <<'PY'
from finding import expect, raised
from tiny import forward, load

for bits in (2, 3):
    error = raised(forward, load(bits, 1))
    expect(f"no C++ compiler, {bits} bits", error, error.startswith("InductorError: InvalidCxxCompiler"))
PY
TORCHDYNAMO_DISABLE=1 see <<'PY'
from finding import expect, raised
from tiny import forward, load

error = raised(forward, load(2, 1))
expect("no C++ compiler, TORCHDYNAMO_DISABLE=1, errors", error or "none", not error)
PY
