"""Seconds, peak memory and quality of the methods on one layer, and the machine they ran on."""

from __future__ import annotations

import gc
import importlib.metadata
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from eval.lib.baselines import Penalty, derived_penalty, gptq_round, inverse_factor, objective, proxy_loss
from eval.studies.solver.methods import ALPHA, OURS, STEPS, Method, Problem, methods
from magr_gptq import MagRConfig
from magr_gptq.config.settings import STRENGTHS

# rows are independent: the quality of these many, spread over the layer, stands for all
QUALITY_ROWS = 256
# on the CPU, where all steps would do more work than this in products, fewer are timed and scaled
MOST_MULTIPLICATIONS = STEPS * 1024**3
FEWER_STEPS = 5
# a step count that reaches the peak of memory
STEPS_TO_PEAK = 2
# on the CPU, what libraries take for themselves drowns the memory of smaller weights
LEAST_ELEMENTS = 2**20
PACKAGES = ("torch", "triton", "brevitas")


def machine(device: str) -> dict[str, Any]:
    """The processor, its cores, the GPU and the versions that a time depends on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    installed = {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions()}
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "cuda": torch.version.cuda if device == "cuda" else None,
        "python": platform.python_version(),
        **{name: installed.get(name) for name in PACKAGES},
    }


def now(device: str) -> float:
    """Seconds on a clock, once the GPU is idle."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds_of(function: Callable[[], Any], device: str) -> float:
    """Wall clock of one call."""
    start = now(device)
    function()
    return now(device) - start


def spread(values: list[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def product_rate(device: str, size: int | None = None) -> float:
    """Measured flops a second of float32 matrix products with the process's settings; best of 3."""
    size = size or (8192 if device == "cuda" else 2048)
    a, b = torch.randn(2, size, size, device=device)
    torch.mm(a, b)
    return 2 * size**3 / min(seconds_of(lambda: torch.mm(a, b), device) for _ in range(3))


def timed_steps(problem: Problem) -> int:
    """How many of the 150 steps are timed."""
    rows, columns = problem.weight.shape
    affordable = problem.weight.is_cuda or STEPS * rows * columns**2 <= MOST_MULTIPLICATIONS
    return STEPS if affordable else FEWER_STEPS


def times(
    problem: Problem, found: dict[str, Method], repeats: int, device: str
) -> tuple[dict[str, list[float]], dict[str, Tensor]]:
    """Seconds of every method, one list entry a repeat, and the last weights that it found.

    Repeats alternate, so that all methods meet the same disturbance. Where fewer steps are timed, the
    time beyond that of no step at all is scaled to 150 steps.
    """
    steps = timed_steps(problem)
    measured: dict[str, list[float]] = {name: [] for name in found}
    solved: dict[str, Tensor] = {}
    for _ in range(repeats):
        for name, method in found.items():
            start = now(device)
            solved[name] = method.solve(problem, steps)
            seconds = now(device) - start
            if method.by_steps and steps < STEPS:
                setup = seconds_of(lambda m=method: m.solve(problem, 0), device)
                seconds = setup + STEPS / steps * (seconds - setup)
            measured[name].append(seconds)
    return measured, solved


def quality(
    problem: Problem, found: dict[str, Method], solved: dict[str, Tensor]
) -> dict[str, dict[str, float]]:
    """Per method, of the same rows: the paper's objective where it is minimised, and the proxy loss.

    objective: summed over the rows with λmax = 1, in float64; "start" is that of the given weight.
    own objective: of the default's own penalty, likewise.
    proxy_loss: after GPTQ with the default's β; "gptq" is without MagR.

    Args:
        solved: weights from `times`; a descent, of which fewer steps were timed, runs anew on the rows.
    """
    rows = slice(None, None, max(1, len(problem.weight) // QUALITY_ROWS))
    sample = problem.of_rows(rows)
    solved = {
        name: method.solve(sample, STEPS) if method.by_steps else solved[name][rows]
        for name, method in found.items()
    }
    weight, hessian = sample.weight.double(), problem.hessian.double()
    scaled, penalty = hessian / problem.largest, Penalty(ALPHA, squared=False)
    factor = inverse_factor(problem.hessian)
    factors = torch.tensor(MagRConfig(search=False).resolve(problem.bits).candidates[0].factors)
    own = derived_penalty(factor.double(), problem.bits, strength=STRENGTHS[0])

    def loss_of(candidate: Tensor, beta: float | Tensor) -> float:
        return proxy_loss(gptq_round(candidate, factor, problem.bits, beta=beta).double(), weight, hessian)

    def total(candidate: Tensor, matrix: Tensor, of: Penalty) -> float:
        return float(objective(candidate.double(), weight, matrix, of).sum())

    papers = {name: x for name, x in solved.items() if found[name].papers_penalty}
    return {
        "objective": {
            "start": total(sample.weight, scaled, penalty),
            **{name: total(x, scaled, penalty) for name, x in papers.items()},
        },
        "own objective": {
            name: total(x, hessian, own) for name, x in {"start": weight, OURS: solved[OURS]}.items()
        },
        "proxy_loss": {
            "gptq": loss_of(sample.weight, 1.0),
            **{name: loss_of(x, factors) for name, x in solved.items()},
        },
    }


def peaks(problem: Problem, found: dict[str, Method], device: str) -> dict[str, int]:
    """Bytes that each method needs at its peak beyond weight and Hessian, its result included.

    On the CPU none for weights below a million elements.
    """
    if device == "cuda":
        return {name: peak_on_gpu(problem, method) for name, method in found.items()}
    if problem.weight.numel() < LEAST_ELEMENTS:
        return {}
    with tempfile.NamedTemporaryFile(suffix=".pt") as file:
        torch.save(problem, file.name)
        return {name: peak_on_cpu(file.name, name) for name in found}


def peak_on_gpu(problem: Problem, method: Method) -> int:
    """What torch allocated."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    method.solve(problem, STEPS_TO_PEAK)
    return torch.cuda.max_memory_allocated() - before


def peak_on_cpu(path: str, name: str) -> int:
    """Growth of the resident set, in a process of its own."""
    # of the new process: what it frees goes back at once, or the peak is what its heap happens to keep
    environment = patch.dict(os.environ, MALLOC_MMAP_THRESHOLD_="65536")
    with environment, multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(resident_growth, (path, name, torch.get_num_threads()))


def resident_growth(path: str, name: str, threads: int) -> int:
    """Solve the saved problem and return by how many bytes the resident set grew at its peak; Linux only."""
    torch.set_num_threads(threads)
    method = methods()[name]
    problem = torch.load(path, weights_only=False)
    columns = slice(min(64, problem.weight.shape[1]))
    small = Problem(
        problem.weight[:8, columns], problem.hessian[columns, columns], problem.bits, problem.largest
    )
    method.solve(small, STEPS_TO_PEAK)  # loads libraries
    gc.collect()
    # a process started by another inherits getrusage's maximum, so Linux's own counter is reset instead
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    method.solve(problem, STEPS_TO_PEAK)
    return _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))
