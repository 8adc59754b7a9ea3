"""Toolkits quantize on pool threads: the same bits as from one, and nothing of torch's changed."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from prepared import prepared
from problems import hessian_of, weight_of
from rounding import round_rows

from magr_gptq import MagRConfig, reduce

THREADS = 8
CONFIGS = [MagRConfig(refine=2), MagRConfig(alpha=1e-3), MagRConfig(preset="paper", iterations=10)]
JOBS = list(itertools.product(range(2), CONFIGS, (-1, 16)))


def work(job: tuple[int, MagRConfig, int]) -> list[torch.Tensor]:
    seed, config, group_size = job
    weight, hessian = weight_of(24, 96, seed), hessian_of(96, seed)
    order = torch.randperm(96, generator=torch.Generator().manual_seed(seed))
    reduced = reduce(weight, hessian, bits=2, group_size=group_size, order=order, config=config)
    layer = prepared(weight, hessian, bits=2, group_size=group_size, config=config)
    settled = layer.settle(round_rows(layer, 2, group_size))
    return [reduced.weight, reduced.objective_after, settled.rounded.weight, settled.rounded.scale]


def test_eight_threads_give_the_bits_of_one() -> None:
    alone = [work(job) for job in JOBS]
    together = threading.Barrier(THREADS)

    def all_at_once(jobs) -> list[list[torch.Tensor]]:
        together.wait()
        return [work(job) for job in jobs]

    # every thread does every job, each starting elsewhere
    turns = [JOBS[start:] + JOBS[:start] for start in range(THREADS)]
    with ThreadPoolExecutor(THREADS) as pool:
        for start, found in zip(turns, pool.map(all_at_once, turns), strict=True):
            for job, tensors in zip(start, found, strict=True):
                expected = alone[JOBS.index(job)]
                assert all(torch.equal(a, b) for a, b in zip(tensors, expected, strict=True)), job


def test_eight_threads_may_share_one_weight_and_hessian() -> None:
    weight, hessian = weight_of(24, 96), hessian_of(96)
    expected = reduce(weight, hessian, bits=2).weight
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda _: reduce(weight, hessian, bits=2).weight, range(4 * THREADS)))
    assert all(torch.equal(weight, expected) for weight in found)


def state() -> dict[str, object]:
    """What of torch is global, or belongs to the thread."""
    return {
        "threads": torch.get_num_threads(),
        "interop threads": torch.get_num_interop_threads(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "tf32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
        "benchmark": torch.backends.cudnn.benchmark,
        "autocast": torch.is_autocast_enabled("cpu"),
        "generator": torch.get_rng_state().tolist(),
    }


@pytest.mark.parametrize("gradients", [True, False])
def test_nothing_of_torchs_is_changed(gradients: bool) -> None:
    with torch.set_grad_enabled(gradients):
        before = state()
        for job in JOBS[:6]:
            work(job)
        with pytest.raises(ValueError, match="bits=9"):
            reduce(weight_of(2, 8), hessian_of(8), bits=9)
        assert state() == before


def test_a_parameter_leaves_no_graph_behind() -> None:
    weight = torch.nn.Parameter(weight_of(8, 32))
    hessian = hessian_of(32)
    layer = prepared(weight, hessian, bits=2, config=MagRConfig(refine=1))
    settled = layer.settle(round_rows(layer, 2))
    for tensor in (reduce(weight, hessian, bits=2).weight, layer.rows, settled.rounded.weight):
        assert not tensor.requires_grad
