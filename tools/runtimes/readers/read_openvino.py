"""optimum-intel's export to OpenVINO, computing in float32."""

import sys
from unittest.mock import MagicMock

import numpy as np
import torch
from optimum.intel import OVModelForCausalLM
from reading import answer

# GPTQModel 7.1 imports it for models of images, and PyPI's builds are for CUDA
for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
    sys.modules[name] = MagicMock()
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}


def logits(folder, tokens, _):
    model = OVModelForCausalLM.from_pretrained(
        folder, export=True, load_in_8bit=False, use_cache=False, ov_config=EXACT
    )
    rows = torch.from_numpy(tokens)
    return np.asarray(model(input_ids=rows, attention_mask=torch.ones_like(rows)).logits)


answer(logits, "optimum-intel", "openvino", "transformers", "torch")
