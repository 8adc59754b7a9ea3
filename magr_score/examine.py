"""What a checkpoint costs at inference and how far each layer strays, without magr_gptq.

    python -I -m magr_score.examine '{"checkpoint": FOLDER, "original": FOLDER, ...}'

The checkpoint generates first, in a process that has held no other model; then
every quantized layer is given the input that its unquantized twin gets in the original model. One
JSON line goes to stdout, everything that a toolkit prints to stderr.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

# first, as it sets what torch reads when it is imported
from magr_score.perplexity import ENGINES, cut_windows, load_transformers, model_limit

import torch  # isort: skip

PROMPT, GENERATED, REPEATS = 64, 64, 5
LAYER_WINDOWS = 8


@torch.no_grad()
def inference(model: Any, window: torch.Tensor) -> dict[str, Any]:
    """Tokens a second of greedy generation from one prompt, batch of one, and the peak of memory."""
    on_gpu = window.is_cuda
    length = min(PROMPT, window.shape[1] // 2)
    count = min(GENERATED, window.shape[1] - length)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    generate = partial(
        model.generate, window[:, :length], attention_mask=torch.ones_like(window[:, :length]),
        max_new_tokens=count, min_new_tokens=count, do_sample=False,
    )  # fmt: skip
    generate()
    rates = [count / _seconds(generate, on_gpu) for _ in range(REPEATS)]
    # Linux counts in KiB, macOS in bytes
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "tokens_per_second": statistics.median(rates),
        "rates": rates,
        "generated": count,
        "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else resident,
    }


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
        # whatever has a weight matrix and became something else was quantized
        if getattr(module, "weight", None) is not None and type(twins.get(name)) is not type(module):
            module.register_forward_hook(partial(see, name))
    for row in windows:
        original(input_ids=row[None].to(original.device), use_cache=False)
    return {name: error / energy for name, (error, energy) in sums.items() if energy}


def load_original(folder: str, device: str) -> Any:
    """The unquantized model: as the scorer has it, or in 16 bits on as many GPUs as it takes."""
    if device == "cpu":
        return load_transformers(folder, device)
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float16, device_map="auto")


def examine(request: dict[str, Any]) -> dict[str, Any]:
    """Load, generate, compare the layers."""
    from transformers import AutoConfig, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    folder, original = request["checkpoint"], request["original"]
    text = Path(request["text"]).read_text(encoding="utf-8")
    seqlen = min(request["seqlen"], model_limit(AutoConfig.from_pretrained(folder)))
    tokens = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    windows = cut_windows(tokens, seqlen, LAYER_WINDOWS).to(device)
    load = ENGINES[request["engine"]][0]
    quantized = load(folder, "cuda:0" if device == "cuda" else device).eval()
    return {
        "inference": {**inference(quantized, windows[:1]), "device": device},
        "layer_errors": layer_errors(load_original(original, device).eval(), quantized, windows),
    }


def main() -> None:
    """Answer with one JSON line on the real stdout; toolkits print banners to the other."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    result = examine(json.loads(sys.argv[1]))
    assert "magr_gptq" not in sys.modules, "magr_gptq was imported: this proves nothing"
    print(json.dumps(result), file=answer, flush=True)


if __name__ == "__main__":
    main()
