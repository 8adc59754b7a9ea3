"""The fused kernels against their plain twins, and the twins against what textbooks write."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from contextlib import contextmanager
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from places import HELPERS
from problems import hessian_of, weight_of

from eval.lib.baselines import gptq_round, grid_step, inverse_factor
from magr_gptq.reduction import kernels
from magr_gptq.reduction.admm import OVER_RELAXATION
from magr_gptq.reduction.groups import group_count
from magr_gptq.reduction.kernels import fusing, plain
from magr_gptq.reduction.kernels.plain import plain_update_
from magr_gptq.rounding import kernels as rounding_kernels
from magr_gptq.rounding.kernels.plain import plain_sweep_block_
from magr_gptq.toolkits.report import RunReport

RELAXATION = OVER_RELAXATION
# rows (of a batch), columns, group size: whole rows, groups, a short last group, a group wider than the row,
# one column
SHAPES = [((5,), 48, -1), ((3,), 100, -1), ((7,), 64, 16), ((4,), 100, 32), ((2,), 24, 64), ((3,), 1, -1)]
SHAPES += [((1,), 5000, 100), ((2, 3), 48, -1), ((3, 2), 100, 32)]
# squared, warm start, metric, t for every row
VARIANTS = list(itertools.product((True, False), repeat=4))
UPDATES = [("update", *shape, *variant) for shape in SHAPES for variant in VARIANTS]
# rows, columns, the block's first column and the one after its last, bits, lowest code
SWEEPS = [("sweep", 5, 100, 0, 100, 2, 0), ("sweep", 20, 200, 128, 200, 3, 0)]
SWEEPS += [("sweep", 17, 140, 0, 128, 2, -2), ("sweep", 3, 1, 0, 1, 4, 0)]
DEAD = 7


def update_arguments(rows, columns, group_size, squared, warm, weighted, per_row) -> dict:
    """One iteration's tensors; t is so large in places that a row or group is clipped to 0."""
    generator = torch.Generator().manual_seed(columns + group_size)
    v, z, original = torch.randn(3, *rows, columns, generator=generator)
    *batch, count = rows
    groups = group_count(columns, group_size)
    t = 10 ** (3 * torch.rand(*batch, count if per_row else 1, groups, generator=generator) - 1)
    metric = 10 ** (2 * torch.rand(*batch, columns, generator=generator) - 1)
    levels = 2 * torch.rand(*rows, groups, generator=generator)
    return {
        "v": v, "z": z, "original": original, "target": torch.zeros_like(v), "t": t,
        "metric": metric if weighted else None, "relaxation": RELAXATION, "group_size": group_size,
        "squared": squared, "levels": levels if warm else None,
    }  # fmt: skip


def sweep_arguments(rows, columns, first, last, bits, lowest) -> dict:
    """A block of a layer that GPTQ rounded; views, one column of it without input."""
    weight, hessian = weight_of(rows, columns), hessian_of(columns)
    if columns > DEAD:
        hessian[DEAD], hessian[:, DEAD] = 0, 0
    quantized, step = gptq_round(weight, inverse_factor(hessian), bits), grid_step(weight, bits)
    block = slice(first, last)
    residual = (weight - quantized) @ hessian
    # compressed-tensors' codes are signed, and its zero points whole numbers
    zero = torch.full((rows, 1), 2 ** (bits - 1) + lowest, dtype=torch.int8 if lowest else torch.float32)
    return {
        "found": quantized[:, block], "residual": residual[:, block], "hessian": hessian[block, block],
        "scale": step.expand(-1, last - first), "zero": zero.expand(-1, last - first),
        "lowest": lowest, "highest": lowest + 2**bits - 1,
    }  # fmt: skip


def arguments(kernel: str, *case) -> dict:
    return {"update": update_arguments, "sweep": sweep_arguments}[kernel](*case)


def apply(function, given: dict) -> dict[str, torch.Tensor]:
    """The arguments after a call of the function on copies of them, and its result."""
    copies = {k: x.clone() if torch.is_tensor(x) else x for k, x in given.items()}
    return {k: x for k, x in {"result": function(**copies), **copies}.items() if torch.is_tensor(x)}


@pytest.fixture(scope="module")
def fused(tmp_path_factory) -> dict[tuple, dict[str, torch.Tensor]]:
    """What the kernels leave and return in every case."""
    if find_spec("triton") is None:
        pytest.skip("triton is not installed in this environment")
    folder = tmp_path_factory.mktemp("kernels")
    cases = UPDATES + SWEEPS
    torch.save([(case[0], arguments(*case)) for case in cases], folder / "inputs.pt")
    script = HELPERS / "dump_kernels.py"
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    subprocess.run(
        [sys.executable, str(script), str(folder / "inputs.pt"), str(folder / "out.pt")],
        check=True,
        env=environment,
    )
    return dict(zip(cases, torch.load(folder / "out.pt"), strict=True))


@pytest.mark.parametrize("case", UPDATES, ids=str)
def test_update_is_its_twin(fused, case) -> None:
    expected = apply(plain_update_, arguments(*case))
    for name, twin in expected.items():
        torch.testing.assert_close(
            fused[case][name], twin, rtol=1e-5, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("case", SWEEPS, ids=str)
def test_sweep_makes_the_moves_of_its_twin(fused, case) -> None:
    given = arguments(*case)
    expected = apply(plain_sweep_block_, given)
    for name in ("found", "result"):
        torch.testing.assert_close(fused[case][name], expected[name], rtol=0, atol=1e-7)
    assert torch.equal(fused[case]["residual"], given["residual"])
    assert expected["result"].any() or given["found"].shape[1] == 1


@pytest.mark.parametrize("per_row", [True, False])
def test_the_update_of_a_batch_is_that_of_its_layers(per_row: bool) -> None:
    given = arguments("update", (2, 3), 100, 32, True, True, True, per_row)
    whole = apply(plain_update_, given)
    for layer in range(2):
        of_layer = {k: x[layer] if torch.is_tensor(x) else x for k, x in given.items()}
        for name, alone in apply(plain_update_, of_layer).items():
            torch.testing.assert_close(whole[name][layer], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [(7,), (2, 7)])
@pytest.mark.parametrize("per_row", [True, False])
def test_rows_are_updated_alike_however_many_at_a_time(rows, per_row: bool, monkeypatch) -> None:
    given = arguments("update", rows, 100, 32, True, True, True, per_row)
    whole = apply(plain_update_, given)
    monkeypatch.setattr(plain, "CHUNK_ELEMENTS", 3 * 100 * len(rows))
    for name, parts in apply(plain_update_, given).items():
        torch.testing.assert_close(parts, whole[name], rtol=1e-5, atol=1e-6)


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


def compiled(
    kernel, folder, monkeypatch, constants: tuple, options: dict, floats: tuple[str, ...] = (),
    target: tuple[str, int | str, int] = ("cuda", 90, 32),
):  # fmt: skip
    """What a kernel becomes for a target, compute capability 9.0 unless given."""
    triton = pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder))
    names = kernel.arg_names
    types = {n: "*fp32" if n.endswith("_ptr") else "constexpr" if n.isupper() else "i32" for n in names}
    types.update(dict.fromkeys(floats, "fp32"))
    upper = [(index,) for index, name in enumerate(names) if name.isupper()]
    source = triton.compiler.ASTSource(
        fn=kernel, signature=types, constexprs=dict(zip(upper, constants, strict=True))
    )
    gpu = triton.backends.compiler.GPUTarget(*target)
    return triton.compile(source, target=gpu, options=options)


# A100, H100, B200, MI300
TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "constants", [(True, True, True, 1, kernels.LONGEST), (False, False, False, 32, 128)], ids=str
)
def test_the_update_compiles_without_a_gpu(constants, target, monkeypatch, tmp_path) -> None:
    """For the longest rows and for groups, in as many threads as a block has on each."""
    pytest.importorskip("triton")
    from magr_gptq.reduction.kernels.fused import ELEMENTS_PER_WARP, _update_kernel

    warp = TARGETS[target][2]
    warps = min(1024 // warp, max(4, constants[-2] * constants[-1] // ELEMENTS_PER_WARP))
    found = compiled(
        _update_kernel, tmp_path, monkeypatch, constants, {"num_warps": warps}, ("relaxation",),
        TARGETS[target],
    )  # fmt: skip
    assert found.asm["hsaco" if target.startswith("gfx") else "cubin"]


@pytest.mark.parametrize("target", TARGETS)
def test_the_sweep_compiles_without_a_gpu(target, monkeypatch, tmp_path) -> None:
    """Its multiplications and additions stay apart: a fused one would find moves where there are none."""
    pytest.importorskip("triton")
    from magr_gptq.rounding.kernels.fused import OPTIONS, ROWS, _sweep_kernel

    found = compiled(_sweep_kernel, tmp_path, monkeypatch, (ROWS, 128), OPTIONS, target=TARGETS[target])
    if target.startswith("gfx"):
        assert found.asm["hsaco"]
        return
    assert found.asm["cubin"]
    assert "fma.rn.f32" not in found.asm["ptx"]
    assert "div.rn.f32" in found.asm["ptx"]


def test_the_kernels_are_for_cuda_only(monkeypatch) -> None:
    """On the CPU the twins are chosen and triton stays unimported."""
    modules = ("magr_gptq.reduction.kernels.fused", "magr_gptq.rounding.kernels.fused")
    for module in modules:
        monkeypatch.delitem(sys.modules, module, raising=False)
    apply(kernels.update_, arguments(*UPDATES[0]))
    apply(rounding_kernels.sweep_block_, arguments(*SWEEPS[0]))
    assert not sys.modules.keys() & set(modules)


@pytest.mark.parametrize(
    ("on_gpu", "dtype", "triton", "fuses"),
    [
        (True, torch.float32, True, True),
        (False, torch.float32, True, False),
        (True, torch.float64, True, False),
        (True, torch.float32, False, False),
    ],
)
def test_the_kernels_take_float32_on_cuda_where_triton_is(on_gpu, dtype, triton, fuses, monkeypatch) -> None:
    monkeypatch.setattr(fusing, "_has_triton", lambda: triton)
    assert fusing.can_fuse(SimpleNamespace(is_cuda=on_gpu, dtype=dtype)) is fuses


def launches(monkeypatch, fused) -> list[torch.device]:
    """Let a stand-in be the fused update of CPU tensors; the devices that are made current around it."""
    current = []

    @contextmanager
    def device_of(matrix):
        current.append(matrix.device)
        yield

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(kernels, "can_fuse", lambda _: True)
    monkeypatch.setitem(
        sys.modules, "magr_gptq.reduction.kernels.fused", SimpleNamespace(fused_update_=fused)
    )
    fusing.forget_failures()
    return current


def test_a_kernel_is_launched_on_the_device_of_its_tensors(monkeypatch) -> None:
    """Triton launches on the current device, and a model may be spread over several."""
    current = launches(monkeypatch, plain_update_)
    given = arguments(*UPDATES[0])
    apply(kernels.update_, given)
    assert current == [given["v"].device]


def test_a_kernel_that_fails_is_left_to_its_twin_for_the_rest_of_the_run(monkeypatch) -> None:
    """Compile and launch errors would otherwise end a run of hours."""
    tried = []

    def broken(*_, **__):
        tried.append(1)
        raise RuntimeError("PTX assembly failed\nmore of it")

    launches(monkeypatch, broken)
    given = arguments(*UPDATES[0])
    with pytest.warns(UserWarning, match="kernel update failed .*PTX assembly failed.; plain torch"):
        found = apply(kernels.update_, given)
    again = apply(kernels.update_, given)
    for name, twin in apply(plain_update_, given).items():
        assert torch.equal(found[name], twin)
        assert torch.equal(again[name], twin)
    assert len(tried) == 1
    assert "PTX assembly failed" in str(RunReport().warning())
    fusing.forget_failures()
    assert RunReport().warning() is None


def test_a_device_that_is_short_of_memory_is_no_broken_kernel(monkeypatch) -> None:
    def short(*_, **__):
        raise torch.OutOfMemoryError("no room")

    launches(monkeypatch, short)
    with pytest.raises(torch.OutOfMemoryError):
        apply(kernels.update_, arguments(*UPDATES[0]))
    assert not fusing.failed_kernels()


def test_rows_that_would_spill_are_left_to_the_twin(monkeypatch) -> None:
    launches(monkeypatch, lambda *_, **__: pytest.fail("fused"))
    apply(kernels.update_, update_arguments((1,), kernels.LONGEST + 1, -1, *VARIANTS[0]))
