"""optimum-intel's export to OpenVINO, computing in float32."""

import numpy as np
import torch
from optimum.intel import OVModelForCausalLM
from reading import answer

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}


def logits(folder, tokens, _):
    model = OVModelForCausalLM.from_pretrained(
        folder, export=True, load_in_8bit=False, use_cache=False, ov_config=EXACT
    )
    rows = torch.from_numpy(tokens)
    return np.asarray(model(input_ids=rows, attention_mask=torch.ones_like(rows)).logits)


answer(logits, "optimum-intel", "openvino", "transformers", "torch")
