"""GPTQModel's kernels for CPUs; the option is one of its backends."""

import torch
from gptqmodel import BACKEND, GPTQModel
from reading import answer


@torch.no_grad()
def logits(folder, tokens, kernel):
    model = GPTQModel.load(folder, backend=BACKEND[kernel], device="cpu", dtype=torch.float16)
    return model.model(input_ids=torch.from_numpy(tokens), use_cache=False).logits.float().numpy()


answer(logits, "gptqmodel", "transformers", "torch")
