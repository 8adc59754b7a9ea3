"""What a checkpoint costs at inference, and how far each layer strays.

The checkpoint generates first, in a process that has held no other model; then
every quantized layer is given the input that its unquantized twin gets in the original model.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from magr_score.loaders import LOADERS, device, dtype_on, load_transformers
from magr_score.windows import read_windows

PROMPT, GENERATED, REPEATS = 64, 64, 5
# to generate is slow where a kernel unpacks whole layers for every token: no repetition begins after so long
SECONDS = 60
WARM_UP = 4
LAYER_WINDOWS = 8


@torch.no_grad()
def inference(model: Any, window: torch.Tensor) -> dict[str, Any]:
    """Tokens a second of greedy generation from one prompt, batch of one, and the peak of memory."""
    on_gpu = window.is_cuda
    length = min(PROMPT, window.shape[1] // 2)
    count = min(GENERATED, window.shape[1] - length)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()

    def generate(tokens: int) -> Any:
        return model.generate(
            window[:, :length], attention_mask=torch.ones_like(window[:, :length]), max_new_tokens=tokens,
            min_new_tokens=tokens, do_sample=False,
        )  # fmt: skip

    generate(min(WARM_UP, count))
    rates: list[float] = []
    end = time.perf_counter() + SECONDS
    while not rates or (len(rates) < REPEATS and time.perf_counter() < end):
        rates.append(count / _seconds(partial(generate, count), on_gpu))
    return {
        "tokens_per_second": statistics.median(rates),
        "rates": rates,
        "generated": count,
        "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else _peak_resident(),
    }


def _peak_resident() -> int:
    """The most bytes of memory that this process has had."""
    # of Unix alone
    import resource

    # Linux counts in KiB, macOS in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _seconds(call: Callable[[], Any], on_gpu: bool) -> float:
    start = time.perf_counter()
    call()
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start


@torch.no_grad()
def layer_errors(original: Any, quantized: Any, windows: torch.Tensor) -> dict[str, float]:
    """‖Q(x) − W(x)‖² / ‖W(x)‖² of every quantized layer, on what the unquantized model hands to it."""
    twins = dict(quantized.named_modules())
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def see(name: str, _: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        given = inputs[0].to(quantized.device, quantized.dtype)
        wanted = output.float()
        change = twins[name](given).to(output.device).float() - wanted
        sums[name][0] += float(change.square().sum())
        sums[name][1] += float(wanted.square().sum())

    for name, module in original.named_modules():
        if getattr(module, "weight", None) is not None and _is_quantized(twins.get(name), module):
            module.register_forward_hook(partial(see, name))
    for row in windows:
        original(input_ids=row[None].to(original.device), use_cache=False)
    return {name: error / energy for name, (error, energy) in sums.items() if energy}


def _is_quantized(twin: Any, module: torch.nn.Module) -> bool:
    """Whether a module became something else, or a layer with the scheme of compressed-tensors."""
    return type(twin) is not type(module) or hasattr(twin, "quantization_scheme")


def examine(request: dict[str, Any]) -> dict[str, Any]:
    """Load, generate, compare the layers.

    Args:
        request: checkpoint and original, folders; engine, of `LOADERS`; text and others,
            see `read_windows`.
    """
    windows = read_windows(request["checkpoint"], request, LAYER_WINDOWS).tokens.to(device())
    dtype = dtype_on(device(), request["original"])
    quantized = LOADERS[request["engine"]].load(request["checkpoint"], device(), dtype)
    inferred = {**inference(quantized, windows[:1]), "device": windows.device.type}
    original = load_transformers(request["original"], device(), dtype)
    return {"inference": inferred, "layer_errors": layer_errors(original, quantized, windows)}
