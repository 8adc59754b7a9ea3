#!/usr/bin/env bash
# ONNX Runtime's and GGUF's own symmetric grids have negative scales, in every other group.
#
# Guess:  a symmetric grid has a positive scale, max|w| over 7 or 7.5; a negative scale is an oddity of auto-round and
#         MagR, which a kernel may or may not read.
# Seen:   both lay the longer side of the grid, code -8 at 4 bits, where the weight of largest magnitude is, sign
#         included: scale = w / -8. It is negative in half of the groups: ONNX Runtime's at 2, 4 and 8 bits, GGUF's
#         Q4_0 and Q5_0. Q8_0 does not. ONNX Runtime's asymmetric grids do not.
# Why:    kernels of these two read negative scales all day; "scales must be positive" is a belief of GPTQ's readers
#         alone. A check that refuses them would refuse symmetric ONNX models. At 2 bits it gives the largest weight
#         its exact value, where a positive scale cuts a third off.
# Ours:   mirrored grids of ours are safe in these two (docs); --positive-scales is for readers that are not.
. "$(dirname "$0")/lib.sh"
install onnxruntime==1.32.0 onnx==1.23.2 onnx-ir==1.1.0 gguf==0.19.0 numpy==2.2.6
see <<'PY'
import numpy as np
from finding import expect, versions
from gguf import GGMLQuantizationType, quants
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

versions("onnxruntime", "onnx", "gguf")
weight = np.random.default_rng(0).standard_normal((64, 128), dtype=np.float32)  # [out, in], blocks of 32 columns
blocks = weight.reshape(64, 4, 32)
largest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1, keepdims=True), -1)[..., 0]


def onnx_scales(bits, symmetric):
    """ONNX Runtime's scales of a model of one product: [64, 4]."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 128])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", 64])
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([product], "g", [x], [y], [numpy_helper.from_array(weight.T.copy(), "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    config = DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=symmetric, bits=bits)
    quantizer = MatMulNBitsQuantizer(model, algo_config=config)
    quantizer.process()
    stored = {entry.name: numpy_helper.to_array(entry) for entry in quantizer.model.model.graph.initializer}
    return stored["w_scales"].reshape(64, 4)


for bits in (2, 4, 8):
    scales = onnx_scales(bits, True)
    share = float((scales < 0).mean())
    expect(f"ONNX Runtime, {bits} bits, symmetric: share of negative scales", share, 0.4 < share < 0.6)
    off = float(np.abs(scales / (largest / -(2 ** (bits - 1))) - 1).max())
    expect(f"ONNX Runtime, {bits} bits: largest relative distance from w / -{2 ** (bits - 1)}", off, off < 1e-5)
share = float((onnx_scales(4, False) < 0).mean())
expect("ONNX Runtime, 4 bits, asymmetric: share of negative scales", share, share == 0)
for kind, expected in (("Q4_0", 0.5), ("Q5_0", 0.5), ("Q8_0", 0)):
    packed = quants.quantize(weight, GGMLQuantizationType[kind]).reshape(256, -1)
    share = float((packed[:, :2].copy().view(np.float16) < 0).mean())
    expect(f"GGUF, {kind}: share of negative scales", share, abs(share - expected) < 0.1)
PY
