#!/usr/bin/env bash
# Brevitas' MagR does the same whatever the inputs' size: its alpha is not the paper's.
#
# Guess:  alpha weighs the largest weight against the output's error, as in the paper: inputs ten times as large make the
#         error a hundred times as large, and the same alpha then reduces next to nothing.
# Seen:   the result is the same to rounding, for inputs times 1, 10 and 0.01. alpha is taken relative to the largest
#         absolute column sum of the Hessian.
# Why:    alpha = 0.001 from the paper is another setting here, and 0.1, the default of magr_mode, another one there;
#         MagR's class has 0.01.
# Ours:   comparisons translate: our penalty alpha * lambda_max^2 / ||H||_1 is their alpha.
. "$(dirname "$0")/lib.sh"
install $PEERS
see <<'PY'
import torch
from brevitas.graph.magr import magr_mode
from finding import distance, expect, versions

versions("torch", "brevitas")
torch.manual_seed(0)
inputs, weight = torch.randn(256, 64) @ torch.randn(64, 64), torch.randn(96, 64)


@torch.no_grad()
def reduced(factor):
    net = torch.nn.Sequential(torch.nn.Linear(64, 96, bias=False))
    net[0].weight.data.copy_(weight)
    with magr_mode(net, alpha=0.03, num_steps=20, create_weight_orig=False) as magr:
        magr.model(inputs * factor)
        magr.update()
    return net[0].weight.data


plain = reduced(1)
kept = float(plain.abs().amax(1).mean() / weight.abs().amax(1).mean())
expect("largest weights, share that is left", kept, kept < 0.98)
for factor in (10, 0.01):
    off = distance(reduced(factor), plain)
    expect(f"inputs times {factor}: distance from that", off, off < 1e-3)
PY
