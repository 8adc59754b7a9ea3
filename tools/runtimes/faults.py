"""Faults of the consumers' own: by kind of checkpoint, why plain GPTQ's is refused or misread there, too."""

from __future__ import annotations

_G_IDX = "it refuses g_idx, which every GPTQ file has"
_CUDA = "its GPTQ kernels are for CUDA alone"
_DROPPED = "it has dropped GPTQ of 2 and 3 bits"
_FOUR = "it reads GPTQ of 4 bits alone"

_GROUPS = "its product takes groups of 32, 64, 128 or 256 alone"
_KERNEL_FOUR = dict.fromkeys(("w3", "w2", "w8"), "this kernel takes 4 bits alone")

GPTQMODEL_ATEN = {"w4-channel": _GROUPS, **_KERNEL_FOUR}
GPTQMODEL_INT8 = {"w3": "this kernel takes 2, 4 and 8 bits"}
GPTQMODEL_FUSED = {
    "w4-asymmetric": "on CPUs it takes every zero point for the middle",
    "w4-channel": _GROUPS,
    **_KERNEL_FOUR,
}
OPENVINO = {
    "w4-asymmetric": "it applies zero points twice",
    "w4-desc-act": "it ignores g_idx, and a wrong group often has the wrong sign",
    **dict.fromkeys(("w3", "w2", "w8"), _FOUR),
}
LLAMA_CPP = {"w3": "its converter unpacks no 3 bits"}
NEURAL_COMPRESSOR = {"w3": "it packs ten codes of 3 bits a word, where GPTQ's files pack 32 in three words"}
CTRANSLATE2 = "its converter knows no GPTQ"
TRANSFORMERS = {
    "w4-channel": "the kernel that AUTO picks on CPUs, torch_aten, takes groups of 32, 64, 128 or 256 alone",
}
ONNXRUNTIME = {
    "w4-channel": "its blocks are powers of two, which not every row is",
    "w3": "its builder unpacks no 3 bits",
}
AUTO_ROUND = {
    "w4-asymmetric": "loading ends in a TypeError, where it looks for a data type that no config names",
    "w4-desc-act": "it refuses a g_idx that orders columns",
}
MISTRALRS = {
    "w4": _CUDA,
    "w4-asymmetric": _CUDA,
    "w4-desc-act": _CUDA,
    "w4-channel": "it takes no group size of -1",
    "w3": "it counts the words of packed 3-bit codes wrongly",
    "w2": _CUDA,
    "w8": _CUDA,
}
MLX_LM = {
    "w4": _G_IDX,
    "w4-asymmetric": _G_IDX,
    "w4-desc-act": _G_IDX,
    "w4-channel": _G_IDX,
    "w3": _FOUR,
    "w2": _FOUR,
    "w8": _FOUR,
}
VLLM = {
    "w4-asymmetric": "it refuses asymmetric GPTQ",
    "w4-desc-act": "it refuses desc_act in groups",
    "w3": _DROPPED,
    "w2": _DROPPED,
    "w8": "on CPUs its kernels are of 4 bits",
}
VLLM_COMPRESSED = dict.fromkeys(("ct-w3", "ct-w2", "ct-w8"), "on CPUs its kernels are of 4 bits")
