"""The fused kernel against its plain twin, and the twin against ADMM as textbooks write it."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from problems import hessian_of, weight_of

from magr_gptq import kernels
from magr_gptq.groups import group_count
from magr_gptq.kernels.plain import plain_update_

POSITIONAL = ("v", "z", "original", "target", "t", "metric")
RESULTS = ("v", "z", "original", "target", "levels")
RELAXATION = 1.6
# rows, columns, group size: whole rows, groups, a short last group, a group wider than the row, one column
SHAPES = [(5, 48, -1), (3, 100, -1), (7, 64, 16), (4, 100, 32), (2, 24, 64), (3, 1, -1), (1, 5000, 100)]
# squared, warm start, metric, t for every row
VARIANTS = list(itertools.product((True, False), repeat=4))
CASES = [(*shape, *variant) for shape in SHAPES for variant in VARIANTS]


def arguments(rows, columns, group_size, squared, warm, weighted, per_row) -> dict:
    """One iteration's tensors; t is so large in places that a row or group is clipped to 0."""
    generator = torch.Generator().manual_seed(columns + group_size)
    v, z, original = torch.randn(3, rows, columns, generator=generator)
    groups = group_count(columns, group_size)
    t = 10 ** (3 * torch.rand(rows if per_row else 1, groups, generator=generator) - 1)
    metric = 10 ** (2 * torch.rand(columns, generator=generator) - 1)
    levels = 2 * torch.rand(rows, groups, generator=generator)
    return {
        "v": v, "z": z, "original": original, "target": torch.zeros_like(v), "t": t,
        "metric": metric if weighted else None, "relaxation": RELAXATION, "group_size": group_size,
        "squared": squared, "levels": levels if warm else None,
    }  # fmt: skip


def apply(update, given: dict) -> list[torch.Tensor]:
    """What an update leaves in copies of v, z, original and target, and the levels it returns."""
    copies = {k: x.clone() if torch.is_tensor(x) else x for k, x in given.items()}
    positional = [copies.pop(name) for name in POSITIONAL]
    return [*positional[:4], update(*positional, **copies)]


@pytest.fixture(scope="module")
def fused(tmp_path_factory) -> dict[tuple, list[torch.Tensor]]:
    """The kernel's results of every case."""
    if find_spec("triton") is None:
        pytest.skip("triton is not installed in this environment")
    folder = tmp_path_factory.mktemp("kernels")
    torch.save([arguments(*case) for case in CASES], folder / "inputs.pt")
    script = Path(__file__).with_name("dump_kernels.py")
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    subprocess.run(
        [sys.executable, str(script), str(folder / "inputs.pt"), str(folder / "out.pt")],
        check=True,
        env=environment,
    )
    return dict(zip(CASES, torch.load(folder / "out.pt"), strict=True))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernel_is_its_twin(fused, case) -> None:
    expected = apply(plain_update_, arguments(*case))
    for name, ours, twin in zip(RESULTS, fused[case], expected, strict=True):
        torch.testing.assert_close(ours, twin, rtol=1e-5, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("group_size", [-1, 16, 20])
def test_the_twin_is_an_iteration_of_admm(group_size: int, variant) -> None:
    """v, z and target after 10 iterations against w, z and u of the textbook, in float64."""
    squared, warm, weighted, per_row = variant
    original, hessian = weight_of(6, 48).double(), hessian_of(48, dtype=torch.float64)
    scale = hessian.diagonal().mean()
    metric = 0.1 * scale * (torch.linspace(0.5, 2, 48).double() if weighted else torch.ones(48).double())
    groups = group_count(48, group_size)
    t = 0.01 * scale * torch.linspace(1, 2, (6 if per_row else 1) * groups).double().view(-1, groups)
    product = torch.diag(metric) @ torch.linalg.inv(hessian + torch.diag(metric))
    # None is a metric of ones, that is penalty and Hessian in units of the metric's one value
    given = (t, metric) if weighted else (t / metric[0], None)
    w, z, u = original, original, torch.zeros_like(original)
    v, mine, target, levels = original.clone(), original.clone(), torch.zeros_like(original), None
    for _ in range(10):
        w = original + (z - u - original) @ product
        z, u = prox_and_rest(RELAXATION * w - (RELAXATION - 1) * z + u, t, metric, group_size, squared)
        v.addmm_(target, product, alpha=RELAXATION)
        levels = kernels.update_(
            v, mine, original, target, *given, relaxation=RELAXATION, group_size=group_size,
            squared=squared, levels=levels if warm else None,
        )  # fmt: skip
        torch.testing.assert_close(mine, z, rtol=0, atol=1e-9)
        torch.testing.assert_close(target, z - u - original, rtol=0, atol=1e-9)
    assert not torch.equal(z, original)


def prox_and_rest(v, t, metric, group_size: int, squared: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """argmin_z penalty(z) + ½Σ metricᵢ(zᵢ − vᵢ)², and v minus it; θ of every group by bisection."""
    z, size = v.clone(), v.shape[1] if group_size == -1 else group_size
    for group, weight in enumerate(t.expand(len(v), -1).T):
        columns = slice(group * size, (group + 1) * size)
        a, m = v[:, columns].abs(), metric[columns]
        low, high = torch.zeros(len(v)).double(), a.amax(1)
        for _ in range(100):
            middle = (low + high) / 2
            pull = (m * (a - middle[:, None]).clamp_min(0)).sum(1)
            above = pull > weight * (middle if squared else 1)
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        z[:, columns] = v[:, columns].clamp(-low[:, None], low[:, None])
    return z, v - z


@pytest.mark.parametrize("constants", [(True, True, True, 1, 4096), (False, False, False, 32, 128)])
def test_the_kernel_compiles_without_a_gpu(constants, monkeypatch, tmp_path) -> None:
    """To a binary for compute capability 9.0, for whole rows and for groups."""
    triton = pytest.importorskip("triton")
    from magr_gptq.kernels.fused import _update_kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    names = _update_kernel.arg_names
    types = {n: "*fp32" if n.endswith("_ptr") else "constexpr" if n.isupper() else "i32" for n in names}
    types["relaxation"] = "fp32"
    upper = [(index,) for index, name in enumerate(names) if name.isupper()]
    source = triton.compiler.ASTSource(
        fn=_update_kernel, signature=types, constexprs=dict(zip(upper, constants, strict=True))
    )
    target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
    assert triton.compile(source, target=target, options={"num_warps": 8}).asm["cubin"]


def test_the_kernel_is_for_cuda_only(monkeypatch) -> None:
    """On the CPU the twin is chosen and triton stays unimported."""
    monkeypatch.delitem(sys.modules, "magr_gptq.kernels.fused", raising=False)
    apply(kernels.update_, arguments(*CASES[0]))
    assert "magr_gptq.kernels.fused" not in sys.modules
