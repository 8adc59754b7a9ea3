#!/usr/bin/env bash
# onnxruntime-genai's 4-bit models for CPUs compute with 8-bit activations, unless told otherwise.
#
# Guess:  --precision int4 is about weights; activations stay in float32 on a CPU, and a model's error is that of
#         its weights.
# Seen:   the builder sets accuracy_level=4 for CPUs: inputs of every 4-bit product are rounded to int8, by which the
#         logits of this model move by 0.7 %. accuracy_level=1 leaves them in float32.
# Why:    two checkpoints whose weights differ by less look the same or change places; the loss is put down to
#         quantization of weights. It may be the 1.7 % that GPTQ files show there; that was not tried.
# Ours:   docs: convert with accuracy_level=1 to compare, and say which was used.
. "$(dirname "$0")/lib.sh"
install onnxruntime-genai==0.18.0 onnxruntime==1.32.0 onnx==1.23.2 onnx-ir==1.1.0 transformers==5.17.0
see <<'PY'
import subprocess
import sys

import numpy as np
import onnxruntime
import torch
from finding import distance, expect, llama, rows, versions

versions("onnxruntime-genai", "onnxruntime", "transformers")
llama("model", layers=2, dtype="float32")
tokens = rows(2, 32)


def logits(*options):
    """The logits of the 4-bit model that the builder makes with these options."""
    build = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", "model", "-o", "out", "-c", "cache"]
    extra = ["--extra_options", *options] if options else []
    subprocess.run([*build, "-p", "int4", "-e", "cpu", *extra], check=True)
    session = onnxruntime.InferenceSession("out/model.onnx", providers=["CPUExecutionProvider"])
    known = {"input_ids": tokens.numpy(), "attention_mask": np.ones((2, 32), np.int64)}
    known["position_ids"] = np.tile(np.arange(32), (2, 1))
    empty = np.zeros((2, 4, 0, 32), np.float32)
    feed = {entry.name: known.get(entry.name, empty) for entry in session.get_inputs()}
    return torch.from_numpy(session.run(["logits"], feed)[0])


default, exact, rounded = logits(), logits("accuracy_level=1"), logits("accuracy_level=4")
off = distance(default, exact)
expect("the default's logits, distance from those of accuracy_level=1", off, 0.002 < off < 0.1)
off = distance(default, rounded)
expect("the default's logits, distance from those of accuracy_level=4", off, off < 1e-6)
PY
