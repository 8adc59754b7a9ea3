"""ONNX Runtime GenAI's builder, then ONNX Runtime.

By itself the builder rounds the inputs of products to int8, and what the checkpoint has in 16 bits, such as
the head, to 4. Both are switched off.
"""

import subprocess
import sys
import tempfile

import numpy as np
import onnxruntime
from reading import answer
from transformers import AutoConfig

EXACT = ("accuracy_level=1", "nodes_to_exclude=/lm_head/MatMul")


def logits(folder, tokens, _):
    config = AutoConfig.from_pretrained(folder)
    with tempfile.TemporaryDirectory() as out:
        done = subprocess.run(
            [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", folder, "-o", out, "-c", out,
             "-p", "int4", "-e", "cpu", "--extra_options", *EXACT],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            print(done.stderr, file=sys.stderr)
            raise RuntimeError(f"the builder: {done.stderr.strip().splitlines()[-1]}")
        session = onnxruntime.InferenceSession(f"{out}/model.onnx", providers=["CPUExecutionProvider"])
    rows, positions = tokens.shape
    known = {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}
    known["position_ids"] = np.tile(np.arange(positions), (rows, 1))
    empty = np.zeros((rows, config.num_key_value_heads, 0, config.head_dim), np.float32)
    feed = {entry.name: known.get(entry.name, empty) for entry in session.get_inputs()}
    return session.run(["logits"], feed)[0]


answer(logits, "onnxruntime-genai", "onnxruntime", "transformers")
