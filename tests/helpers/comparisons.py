"""Made-up records of a comparison, whose numbers are easy to check by hand."""

from __future__ import annotations

import random
from typing import Any

from magr_gptq.app.comparing.cells import PROFILE, UNQUANTIZED, Cell

UNQUANTIZED_PERPLEXITY = 20.0
# what each method adds to the unquantized model's perplexity at 2 bits; halved twice with every bit more
ADDED = {"rtn": 40.0, "gptq": 16.0, "paper": 8.0, "magr": 6.0}


def cell(method: str, bits: int, group_size: int = -1, seed: int = 0) -> Cell:
    return Cell(method, bits, group_size, seed, "prose")


def added(method: str, bits: float, seed: int) -> float:
    """To the unquantized perplexity; 0.1 more with every seed."""
    return ADDED.get(method, 5.0) / 4 ** (bits - 2) + 0.1 * seed


def scored(
    perplexity: float | None,
    layers: int = 0,
    seconds: float = 10.0,
    divergence: float | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Without a divergence: a record of an earlier release."""
    draw = random.Random(0)
    score = {
        "perplexity": perplexity,
        "windows": 9,
        "versions": {"torch": "2.13.0", "transformers": "5.17.0"},
    }
    return {
        "scores": {"prose": score if divergence is None else {**score, "divergence": divergence}},
        "quantize_seconds": seconds,
        "versions": {"gptqmodel": "7.6.0", "torch": "2.13.0"},
        "checkpoint": {"file_bytes": 3_600_000, "tensor_bytes": 3_500_000, "tensors": 9, "layout": "same"},
        "inference": {"tokens_per_second": 100.0 + seconds / 10, "peak_bytes": 900_000_000},
        "layer_errors": {
            f"model.layers.{i}.self_attn.q_proj": seconds * draw.uniform(0.5, 1) / 500 for i in range(layers)
        },
        **more,
    }


def profile(layers: int = 30, channels: int = 200) -> dict[str, Any]:
    draw = random.Random(0)
    magnitudes = {}
    for name in (
        "model.layers.0.self_attn.q_proj",
        "model.layers.3.mlp.up_proj",
        "model.layers.5.mlp.down_proj",
    ):
        before = [abs(draw.gauss(0.4, 0.15)) + 0.05 for _ in range(channels)]
        after = [value * draw.uniform(0.4, 0.8) for value in before]
        magnitudes[name] = {"before": before, "after": after, "channels": channels, "median_ratio": 0.6}
    return {
        "fraction_ranks": {f"layer{i}": 0.5 for i in range(layers)},
        "rank_summary": {"min": 3.0, "q25": 40.0, "mean": 50.0, "q75": 60.0, "max": 99.0},
        "magnitudes": magnitudes,
    }


def comparison(
    bits: tuple[int, ...] = (4, 3, 2),
    groups: tuple[int, ...] = (-1,),
    methods: tuple[str, ...] = ("rtn", "gptq", "paper", "magr"),
    seeds: int = 3,
) -> dict[Cell, dict[str, Any]]:
    """Every cell finished, with `added` in every one; divergence is a hundredth of that."""
    records: dict[Cell, dict[str, Any]] = {
        Cell(UNQUANTIZED): scored(UNQUANTIZED_PERPLEXITY, divergence=0.0),
        Cell(PROFILE, min(bits), -1, 0, "prose"): profile(),
    }
    for seed in range(seeds):
        for group in groups:
            for width in bits:
                for method in methods:
                    value = added(method, width, seed)
                    records[cell(method, width, group, seed)] = scored(
                        UNQUANTIZED_PERPLEXITY + value, 42, ADDED[method] + width, divergence=value / 100
                    )
    return records
