#!/usr/bin/env bash
# A symmetric grid covers half of a group that has no negative weight, and a third of it at 2 bits.
#
# Guess:  "symmetric" is -max|w| to max|w| for every group; a group of one sign wastes half of its codes.
# Seen:   where no weight is negative the scale is max / (2^b - 1), as if all codes were above zero, while the zero point
#         stays at 2^(b-1): codes reach 7/15 of the largest weight at 4 bits, 1/3 at 2 bits, and all above is clipped.
#         A group without positive weights has no such trouble.
# Why:    short groups of one sign are common in norms' neighbours and in pruned or clipped models. Nothing is
#         reported: the loss is that of clipped weights.
# Ours:   the mirrored grid: for each group the better of the grid and its negative.
. "$(dirname "$0")/lib.sh"
install $TOOLKITS
see <<'PY'
import torch
from finding import expect, versions
from gptqmodel import QuantizeConfig
from gptqmodel.quantization.quantizer import Quantizer

versions("torch", "gptqmodel")
weight = torch.linspace(0, 1, 64)[None]


def reach(bits, weight):
    """The largest |weight| that comes back, over the largest there was."""
    quantizer = Quantizer(QuantizeConfig(bits=bits, sym=True))
    quantizer.configure(perchannel=True)
    quantizer.find_params(weight, weight=True)
    return float(quantizer.quantize(weight).abs().max() / weight.abs().max())


for bits in (2, 3, 4, 8):
    seen, expected = reach(bits, weight), (2 ** (bits - 1) - 1) / (2**bits - 1)
    expect(f"{bits} bits, no negative weight: share of the range that is kept", seen, abs(seen - expected) < 1e-3)
    seen = reach(bits, -weight)
    expect(f"{bits} bits, no positive weight: the same", seen, seen > 0.85)
PY
