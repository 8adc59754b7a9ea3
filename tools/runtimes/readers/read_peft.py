"""peft: a LoRA in every block, whose first step must lower the loss; predictions are of the start."""

import torch
from peft import LoraConfig, get_peft_model
from reading import answer
from transformers import AutoModelForCausalLM


def logits(folder, tokens, _):
    rows = torch.from_numpy(tokens)
    base = AutoModelForCausalLM.from_pretrained(folder, torch_dtype="auto", device_map="cpu")
    torch.manual_seed(0)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    start = model(input_ids=rows, labels=rows, use_cache=False)
    start.loss.backward()
    optimizer.step()
    with torch.no_grad():
        after = model(input_ids=rows, labels=rows, use_cache=False).loss
    if not after < start.loss:
        raise RuntimeError(f"one step moved the loss from {float(start.loss):.4f} to {float(after):.4f}")
    return start.logits.detach().float().numpy()


answer(logits, "peft", "transformers", "gptqmodel", "torch")
