"""AutoGPTQ's kernel for CPUs."""

import torch
from auto_gptq import AutoGPTQForCausalLM
from reading import answer


@torch.no_grad()
def logits(folder, tokens, _):
    model = AutoGPTQForCausalLM.from_quantized(
        folder, device="cpu", torch_dtype=torch.float32, disable_exllama=True, disable_exllamav2=True
    )
    return model.model.float()(input_ids=torch.from_numpy(tokens), use_cache=False).logits.numpy()


answer(logits, "auto-gptq", "transformers", "torch")
