#!/usr/bin/env bash
# A 3-bit weight takes 3, 3.2 or 8 bits on disk, by the format.
#
# Guess:  3 bits each and a little for scales, everywhere: 3-bit models are three quarters of 4-bit models.
# Seen:   GPTQ (GPTQModel) and compressed-tensors 0.19 pack 32 weights into three words of 32 bits: 3.0 bits.
#         HQQ puts ten into one word and leaves two bits unused: 3.2. torchao's int3
#         (and int2) weights lie in int8, one each: 8 bits, twice a 4-bit GPTQ file; only the values are few.
# Why:    sizes told by the number of bits are wrong by up to a factor of 2.7, and "3 bits" saves memory in some.
# Ours:   GPTQ files, which take 3 bits; docs/what-the-toolkits-really-do.md names the others.
. "$(dirname "$0")/lib.sh"
install $TOOLKITS
see <<'PY'
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from finding import expect, versions
from gptqmodel.nn_modules.qlinear.torch import TorchLinear
from torchao.quantization import IntxWeightOnlyConfig, quantize_
from torchao.quantization.granularity import PerGroup

versions("torch", "gptqmodel", "compressed-tensors", "torchao")


def bits(tensor, weights):
    return tensor.numel() * tensor.element_size() * 8 / weights


gptq = TorchLinear(bits=3, group_size=64, sym=True, desc_act=False, in_features=960, out_features=128)
expect("GPTQModel, 3 bits: bits of a weight without scales", bits(gptq.qweight, 960 * 128), True)
for width in (2, 3):
    net = torch.nn.Sequential(torch.nn.Linear(960, 128, bias=False))
    quantize_(net, IntxWeightOnlyConfig(weight_dtype=getattr(torch, f"int{width}"), granularity=PerGroup(64)))
    stored = bits(net[0].weight.qdata, 960 * 128)
    expect(f"torchao, {width} bits: the same", stored, stored == 8)
    values = len(net[0].weight.qdata.unique())
    expect(f"torchao, {width} bits: different values", values, values == 2**width)
codes = torch.randint(-4, 4, (8, 960)).to(torch.int8)
stored = bits(pack_to_int32(codes, 3), 8 * 960)
expect("compressed-tensors 0.19, 3 bits: the same", stored, True)
PY
install $PEERS
see <<'PY'
import torch
from finding import expect, versions
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

versions("hqq")
for width, expected in ((2, 2.0), (3, 3.2), (4, 4.0)):
    config = BaseQuantizeConfig(nbits=width, group_size=64, axis=1)
    layer = HQQLinear(torch.nn.Linear(960, 128, bias=False), config, compute_dtype=torch.float16, device="cpu")
    stored = layer.W_q.numel() * layer.W_q.element_size() * 8 / (960 * 128)
    expect(f"HQQ, {width} bits: bits of a weight without scales", stored, abs(stored - expected) < 0.01)
PY
