"""The one road of all adapters: what a layer's numbers or memory raise ends no run, and is told."""

from __future__ import annotations

import weakref
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from problems import hessian_of, weight_of
from torch import Tensor

from magr_gptq import MagRConfig
from magr_gptq.reduction.shrinkage import even_, shrink_, shrinkage
from magr_gptq.reduction.target import Half
from magr_gptq.rounding.rounded import Rounded
from magr_gptq.toolkits import layer_step, memory, roads
from magr_gptq.toolkits.layer_step import Aside, Done, Given, quantize_layer, quantize_together
from magr_gptq.toolkits.report import LayerReport, RunReport

pytestmark = pytest.mark.environments("modern")

BITS, GROUP, ROWS, COLUMNS = 3, 16, 6, 64
FAULTS = [
    ValueError("not positive definite"),
    TypeError("Cannot convert a MPS Tensor to float64 dtype"),
    torch.linalg.LinAlgError("linalg.eigh: failed to converge"),
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    MemoryError("no room"),
    ZeroDivisionError("division by zero"),
]


def given(seed: int = 0, config: MagRConfig | None = None, **changes) -> Given:
    plan = (config or MagRConfig()).resolve(BITS, GROUP)
    settings = {"tokens": 100, "in_order": True, **changes}
    return Given(weight_of(ROWS, COLUMNS, seed), hessian_of(COLUMNS, seed), plan, **settings)


def to_nearest(rows: Tensor, factors: Tensor, hessian: Tensor) -> Rounded:
    """A toolkit that rounds to nearest, and overwrites what it was given."""
    groups = rows.view(len(rows), -1, GROUP)
    scale = groups.abs().amax(2) * 2 / (2**BITS - 1) * factors[:, :1]
    zero = torch.full_like(scale, 2 ** (BITS - 1))
    codes = (groups / scale[..., None] + zero[..., None]).round().clamp(0, 2**BITS - 1)
    weight = ((codes - zero[..., None]) * scale[..., None]).flatten(1)
    rows.zero_(), hessian.zero_()
    return Rounded(weight, scale, zero, torch.arange(COLUMNS) // GROUP)


def regularised() -> Tensor:
    """The Hessian that is handed over, before its columns are ordered."""
    hessian = hessian_of(COLUMNS)
    rho = shrinkage(hessian, 100)
    return even_(shrink_(hessian, rho), rho, 100)


def loss(one: Given, weight: Tensor) -> float:
    error = one.weight - weight
    return float((error @ hessian_of(COLUMNS) * error).sum())


def test_a_layer_is_done_in_its_own_order_of_columns() -> None:
    one = given()
    done = quantize_layer(one, to_nearest)
    assert isinstance(done, Done)
    assert done.tokens == 100
    assert 0 < done.shrinkage < 1
    found = done.settled.rounded
    codes = found.weight / found.scale[:, found.group_of]
    torch.testing.assert_close(codes, codes.round(), atol=1e-3, rtol=0)
    plain = to_nearest(given().weight.clone(), torch.ones(ROWS, 1), torch.zeros(COLUMNS, COLUMNS))
    assert loss(one, found.weight) < 0.7 * loss(one, plain.weight)


def test_the_hessian_of_one_document_is_shrunk_further() -> None:
    draw = torch.Generator().manual_seed(0)
    tokens = [torch.randn(100, COLUMNS, generator=draw) for _ in range(2)]

    def share(whole: int) -> float:
        done = quantize_layer(given(halves=[Half.of(x, 0 * x, whole=whole) for x in tokens]), to_nearest)
        assert isinstance(done, Done)
        assert done.shrinkage is not None
        return done.shrinkage

    assert share(0) == pytest.approx(2 * share(1) / (1 + share(1)))


def test_the_sums_of_both_chains_are_gone_when_the_toolkit_rounds() -> None:
    draw = torch.Generator().manual_seed(0)
    tokens = [torch.randn(100, COLUMNS, generator=draw) for _ in range(4)]
    halves = [Half.of(tokens[0], tokens[1]), Half.of(tokens[2], tokens[3])]
    sums = [weakref.ref(half.gram) for half in halves]
    one = given(halves=halves)

    def look(*passed: Tensor) -> Rounded:
        assert not any(held() is not None for held in sums)
        return to_nearest(*passed)

    assert isinstance(quantize_layer(one, look), Done)


def test_what_is_rounded_is_most_important_first_and_groups_stay_whole() -> None:
    seen = []

    def look(rows: Tensor, factors: Tensor, hessian: Tensor) -> Rounded:
        seen.append((rows.clone(), hessian.diagonal().clone()))
        return to_nearest(rows, factors, hessian)

    # plain GPTQ's rows, which come first, are the weight's own
    one = given(config=MagRConfig(strength=0.1))
    quantize_layer(one, look)
    rows, diagonal = seen[0]
    firsts = diagonal.view(-1, GROUP)
    assert torch.equal(firsts, firsts.sort(descending=True).values)
    assert torch.equal(firsts[:, 0], firsts[:, 0].sort(descending=True).values)
    assert torch.equal(rows[:ROWS].sort(1).values, one.weight.sort(1).values)
    quantize_layer(given(config=MagRConfig(strength=0.1), in_order=False), look)
    assert torch.equal(seen[1][0][:ROWS], one.weight)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
@pytest.mark.parametrize("place", ["shrinkage", "prepare", "settle"])
def test_a_fault_before_or_after_rounding_leaves_the_layer_to_the_toolkit(place, fault, monkeypatch) -> None:
    def broken(*_, **__):
        raise fault

    before = place == "shrinkage"
    monkeypatch.setattr(layer_step if before else roads, place, broken)
    with one_by_one() if is_short(fault) and not before else nullcontext():
        aside = quantize_layer(given(), to_nearest)
    assert isinstance(aside, Aside)
    assert aside.outcome == "skipped"
    assert aside.reason == str(fault)
    # usable: neither what the toolkit overwrote, nor another one
    wanted = hessian_of(COLUMNS) if before else regularised()
    torch.testing.assert_close(aside.hessian.diagonal(), wanted.diagonal())


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_a_fault_of_the_toolkits_rounding_leaves_the_layer_to_it(fault, in_order: bool) -> None:
    """With a Hessian to round by, though the toolkit has overwritten its own."""

    def broken(rows: Tensor, factors: Tensor, hessian: Tensor) -> Rounded:
        rows.zero_(), hessian.zero_()
        raise fault

    with one_by_one() if is_short(fault) else nullcontext():
        aside = quantize_layer(given(in_order=in_order), broken)
    assert aside.reason == str(fault)
    torch.testing.assert_close(aside.hessian.diagonal(), regularised().diagonal())


def is_short(fault: Exception) -> bool:
    return isinstance(fault, (torch.OutOfMemoryError, MemoryError)) or "allocate" in str(fault)


def one_by_one():
    """The user is told."""
    return pytest.warns(UserWarning, match="no memory for all candidates of a layer: rounded one by one$")


def test_where_memory_ends_candidates_go_one_by_one_and_give_the_same() -> None:
    whole = quantize_layer(given(), to_nearest).settled.rounded

    def short(rows: Tensor, factors: Tensor, hessian: Tensor) -> Rounded:
        if len(rows) > ROWS:
            rows.zero_(), hessian.zero_()
            raise torch.OutOfMemoryError("no room")
        return to_nearest(rows, factors, hessian)

    with one_by_one():
        apart = quantize_layer(given(), short).settled.rounded
    torch.testing.assert_close(apart.weight, whole.weight)
    torch.testing.assert_close(apart.scale, whole.scale)


def test_where_memory_would_end_candidates_go_one_by_one_from_the_start(monkeypatch) -> None:
    """Linux promises memory that it lacks, and ends the process when it is used."""
    whole = quantize_layer(given(), to_nearest).settled.rounded
    tall = []

    def look(rows: Tensor, factors: Tensor, hessian: Tensor) -> Rounded:
        tall.append(len(rows))
        return to_nearest(rows, factors, hessian)

    least = memory.needed_bytes(ROWS, COLUMNS, at_once=2)
    monkeypatch.setattr(memory, "free_bytes", lambda _: least)
    quantize_layer(given(), look)
    assert tall == [2 * ROWS]
    monkeypatch.setattr(memory, "free_bytes", lambda _: least - 1)
    tall.clear()
    with one_by_one():
        apart = quantize_layer(given(), look).settled.rounded
    assert tall == 2 * [ROWS]
    torch.testing.assert_close(apart.weight, whole.weight)


def test_where_a_device_has_no_memory_for_one_rows_are_kept_and_chosen_on_the_cpu() -> None:
    """Stood in for: the CPU by its other name, which is another device to torch."""
    one = given()
    weight, hessian, plan = one.weight, regularised(), one.plan
    passage = roads.Passage(weight, hessian, plan)
    whole = roads.settled(passage, to_nearest)
    with pytest.warns(UserWarning, match="rounded one by one, chosen on the CPU$"):
        found = roads._one_by_one(passage, torch.device("cpu", 0), to_nearest)
    assert torch.equal(found.picked, whole.picked)
    torch.testing.assert_close(found.rounded.weight, whole.rounded.weight)
    torch.testing.assert_close(hessian, regularised())
    on_a_gpu = replace(passage, hessian=hessian.to("meta"))
    homes = [road.args[1].type for road in roads._roads(on_a_gpu)[1:]]
    assert homes == ["meta", "cpu"]


def test_layers_that_do_not_fit_together_go_each_by_itself(monkeypatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda _: memory.needed_bytes(ROWS, COLUMNS, at_once=2))
    together = []

    def round_all(passes) -> list[Rounded]:
        together.append(len(passes))
        return [to_nearest(*one) for _, *one in passes]

    quantize_together([given(seed) for seed in range(3)], round_all)
    assert together == [1, 1, 1]


def test_what_is_left_of_memory_is_what_the_device_says(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 5000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 300)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 100)
    # what torch has freed, and not given back, is free
    assert memory.free_bytes(torch.device("cuda")) == 1200
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    assert memory.free_bytes(torch.device("cpu")) is None
    memory.MEMINFO.write_text("MemTotal:  16 kB\nMemAvailable:       5 kB\n")
    assert memory.free_bytes(torch.device("cpu")) == 5 * 1024
    assert memory.free_bytes(torch.device("mps")) is None


def test_errors_that_are_no_layers_end_the_run() -> None:
    def broken(*_):
        raise KeyError("a mistake in the code")

    with pytest.raises(KeyError, match="a mistake"):
        quantize_layer(given(), broken)


def test_unreached_and_zero_layers_are_what_they_are() -> None:
    plan = MagRConfig().resolve(BITS, GROUP)
    weight, hessian = weight_of(ROWS, COLUMNS), hessian_of(COLUMNS)
    unreached = quantize_layer(Given(weight, torch.zeros_like(hessian), plan), to_nearest)
    assert (unreached.outcome, unreached.reason) == ("unreached", layer_step.UNREACHED)
    zero = quantize_layer(Given(torch.zeros_like(weight), hessian, plan), to_nearest)
    assert (zero.outcome, zero.reason) == ("unchanged", layer_step.ZERO)


def test_layers_together_are_as_each_by_itself_and_one_bad_one_spoils_no_other() -> None:
    def round_all(passes) -> list[Rounded]:
        return [to_nearest(*one) for _, *one in passes]

    alone = [quantize_layer(given(seed), to_nearest).settled.rounded.weight for seed in range(3)]
    for one, found in zip(
        alone, quantize_together([given(seed) for seed in range(3)], round_all), strict=True
    ):
        torch.testing.assert_close(found.settled.rounded.weight, one)

    bad = given(1)
    bad.weight[2, 3] = torch.nan
    first, broken, last = quantize_together([given(0), bad, given(2)], round_all)
    assert isinstance(broken, Aside)
    assert "NaN" in broken.reason
    torch.testing.assert_close(first.settled.rounded.weight, alone[0])
    torch.testing.assert_close(last.settled.rounded.weight, alone[2])


@pytest.mark.parametrize("in_order", [True, False])
def test_layers_that_fail_together_have_their_own_hessians_again(in_order: bool) -> None:
    def round_all(passes) -> list[Rounded]:
        found = [to_nearest(*one) for _, *one in passes]
        if len(passes) > 1:
            raise torch.linalg.LinAlgError("it names no layer")
        return found

    found = quantize_together([given(seed, in_order=in_order) for seed in range(3)], round_all)
    for seed, one in enumerate(found):
        alone = quantize_layer(given(seed, in_order=in_order), to_nearest)
        torch.testing.assert_close(one.settled.rounded.weight, alone.settled.rounded.weight)


@pytest.mark.parametrize(
    ("size", "stored", "told"), [(1, "float16", 0), (1e-5, "float16", 1), (1e-5, "float32", 0)]
)
def test_scales_that_the_checkpoint_holds_with_fewer_digits_are_told(size, stored, told) -> None:
    """GPTQModel stores scales in float16 whatever the model's dtype: weights below 1e-4 lose digits."""
    one = given()
    plan = replace(one.plan, stored=getattr(torch, stored))
    done = quantize_layer(replace(one, weight=one.weight * size, plan=plan), to_nearest)
    report = RunReport()
    report.add(LayerReport.of("small", BITS, GROUP, done))
    assert ("the scales of 1 layers, such as small, are too small" in (report.warning() or "")) == told
