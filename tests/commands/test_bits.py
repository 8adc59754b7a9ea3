"""Bits by layer: plans, their sizes, their words in the toolkits' configs, and the commands."""

from __future__ import annotations

import json
import re
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bad_models import save_mixture
from command_line import PROSE, call
from safetensors import safe_open
from tiny import calibration_rows, save_tiny_model
from transformers import AutoModelForCausalLM

from magr_gptq import MagRConfig
from magr_gptq.allocation.fisher import random_direction
from magr_gptq.allocation.worth import Sample, Width, Worth, limited_mean
from magr_gptq.app.cli import quantize as quantize_module
from magr_gptq.app.inputs import read_model
from magr_gptq.app.inspecting.hessians import TURN_BYTES
from magr_gptq.app.planning import child as planning_child
from magr_gptq.app.planning import planner
from magr_gptq.app.planning import survey as survey_module
from magr_gptq.app.planning.alike import by_fused_name, fused_name, pattern
from magr_gptq.app.planning.decide import Budget, decide, parse_size
from magr_gptq.app.planning.found import Candidate, Survey
from magr_gptq.app.planning.plan import BitPlan
from magr_gptq.app.planning.planner import widths_among
from magr_gptq.app.planning.sizes import LAYOUTS
from magr_gptq.app.planning.survey import SIGN_SEED, layers_to_plan, survey, weigh
from magr_gptq.app.planning.views import Place, draw_plan, totals
from magr_gptq.app.planning.written import config_groups_of, dynamic_of
from magr_gptq.app.quantizing.engines import ENGINES
from magr_gptq.app.quantizing.runtimes import RUNTIMES, Asked, choose_mixed_road
from magr_gptq.app.quantizing.worker import Worker
from magr_gptq.errors import InputError
from magr_gptq.toolkits import installed

pytestmark = pytest.mark.long

NEEDS_GPTQMODEL = pytest.mark.skipif("gptqmodel" not in installed(), reason="needs GPTQModel")
MIXING = [name for name, engine in ENGINES.items() if engine.mixed and engine.toolkit in installed()]
BLOCK = "model.layers.{}."
KINDS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
         "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip
NAMES = [BLOCK.format(block) + kind for block in range(2) for kind in KINDS]
WIDTHS = tuple(Width(bits, 64) for bits in (2, 3, 4, 8))
GIVEN = ("--calibration", "prose.txt", "--samples", 8, "--seqlen", 64, "--group-size", 64)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prose.txt").write_text(PROSE)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_tiny_model("two-blocks", tmp_path_factory.mktemp("model") / "tiny")


def survey_of_two_blocks() -> Survey:
    """As of a Llama of two blocks; later layers matter more."""
    layers = {
        name: Candidate((128, 128), tuple((1 + i) ** 2 * 4.0**-width.bits for width in WIDTHS))
        for i, name in enumerate(NAMES)
    }
    return Survey(WIDTHS, layers, rest_bytes=10_000, tokens=512)


def smallest_step_for_less(plan: BitPlan) -> float:
    """The bytes that it takes at least for one group of layers to cost less than in this plan."""
    stored, found = LAYOUTS[plan.engine].layer_bytes, plan.survey

    def of(names: list[str], width: Width) -> tuple[int, float]:
        layers, place = [found.layers[name] for name in names], found.widths.index(width)
        size = sum(stored(layer.shape, width, plan.sym) for layer in layers)
        return size, sum(layer.divergences[place] for layer in layers)

    steps = []
    for names in by_fused_name(plan.widths).values():
        size, cost = of(names, plan.widths[names[0]])
        others = [of(names, width) for width in found.widths]
        steps += [larger - size for larger, less in others if less < cost]
    return min(steps)


def plan_of(average: float, fuses: bool = True) -> BitPlan:
    budget = Budget(avg_bits=average)
    return decide(survey_of_two_blocks(), budget, engine="gptqmodel", sym=True, fuses=fuses)


def quantize(model: object, *more: object, engine: str = "gptqmodel") -> tuple[int, str]:
    return call("quantize", model, *GIVEN, "--engine", engine, "--out", "out", *more)


def inspect(model: object, *more: object) -> tuple[int, str]:
    return call("inspect", model, *GIVEN, *more)


# layers that are run as one


def test_what_runtimes_fuse_has_one_name_and_experts_have_one_name() -> None:
    found = by_fused_name(NAMES[:7])
    assert [name.rpartition(".")[2] for name in found] == ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
    experts = {"model.layers.3.mlp.experts"}
    assert {fused_name(f"model.layers.3.mlp.experts.{i}.down_proj") for i in (0, 11)} == experts
    assert fused_name("model.layers.3.mlp.shared_experts.up_proj").endswith("shared_experts.gate_up_proj")


def test_where_nothing_is_fused_only_experts_are_alike() -> None:
    assert by_fused_name(NAMES, fuses=False) == {name: [name] for name in NAMES}
    experts = [f"model.layers.3.mlp.experts.{i}.up_proj" for i in (0, 11)]
    assert by_fused_name(experts, fuses=False) == {"model.layers.3.mlp.experts": experts}


@pytest.mark.parametrize(
    ("names", "others"),
    [
        (NAMES[:3], ["model.layers.0.self_attn.o_proj", "model.layers.10.self_attn.q_proj", "q_proj"]),
        (NAMES[3:4], ["model.layers.0.self_attn.o_proj.bias", "xmodel.layers.0.self_attn.o_proj",
                      "modelxlayers.0.self_attn.o_proj"]),
        (["m.0.experts.0.up_proj", "m.0.experts.1.down_proj"], ["m.0.experts_gate", "m.0.shared_experts.up"]),
    ],
)  # fmt: skip
def test_a_pattern_matches_its_layers_and_their_fused_name_alone(names: list[str], others: list[str]) -> None:
    fused = fused_name(names[0])
    for name in (*names, fused):
        assert re.match(pattern(fused, names), name)
    for name in others:
        assert not re.match(pattern(fused, names), name)


@NEEDS_GPTQMODEL
@pytest.mark.parametrize("fuses", [True, False])
def test_gptqmodel_reads_every_layers_width_from_the_dynamic(fuses: bool) -> None:
    from gptqmodel import QuantizeConfig

    widths = {}
    for place, names in enumerate(by_fused_name(NAMES, fuses).values()):
        widths |= dict.fromkeys(names, (2 + place % 3, 64))
    config = QuantizeConfig(bits=2, group_size=64, dynamic=dynamic_of(widths, (2, 64)))
    for name, (bits, group) in widths.items():
        assert config.dynamic_get(name, "bits", 2) == bits
        assert config.dynamic_get(name, "group_size", 64) == group
    assert all(not key.startswith("-:") for key in config.dynamic)
    # a runtime that fuses layers finds no width for those that differ
    fused = [re.fullmatch(key, "model.layers.0.self_attn.qkv_proj") for key in config.dynamic]
    assert fuses or not any(fused)


def test_config_groups_name_every_layer_once() -> None:
    widths = {name: (2 if "mlp" in name else 4, -1 if "down" in name else 64) for name in NAMES}
    groups = config_groups_of(widths, sym=False)
    assert sorted(name for group in groups.values() for name in group["targets"]) == sorted(NAMES)
    for group in groups.values():
        scheme = group["weights"]
        for name in group["targets"]:
            assert (scheme["num_bits"], scheme.get("group_size", -1)) == widths[name]
        assert scheme["symmetric"] is False


# plans


@pytest.mark.parametrize("average", [2.6, 3.0, 3.5, 4.4])
def test_a_plan_is_as_large_as_asked_and_never_larger(average: float) -> None:
    plan = plan_of(average)
    # a step of a fused group of 14 layers is a fifth of a bit
    assert average - 0.25 < plan.average_bits <= average
    for names in by_fused_name(plan.widths).values():
        assert len({plan.widths[name] for name in names}) == 1


def test_layers_that_nothing_runs_as_one_may_differ_and_then_cost_less() -> None:
    together, apart = plan_of(3.5), plan_of(3.5, fuses=False)
    assert apart.divergence < together.divergence
    assert apart.average_bits <= 3.5
    apart.require_alike(fuses=False)
    with pytest.raises(InputError, match=r"gate_up_proj: give them one width, or name a runtime that"):
        apart.require_alike(fuses=True)


def test_experts_that_differ_are_refused_whatever_runs_them() -> None:
    survey = survey_of_two_blocks()
    names = {old: f"model.layers.0.mlp.experts.{i}.up_proj" for i, old in enumerate(NAMES)}
    renamed = replace(survey, layers={names[old]: layer for old, layer in survey.layers.items()})
    plan = BitPlan({new: WIDTHS[old == NAMES[0]] for old, new in names.items()}, renamed, "gptqmodel")
    for fuses in (True, False):
        with pytest.raises(InputError, match=r"run them as one, .*mlp\.experts: give them one width$"):
            plan.require_alike(fuses)


def test_the_layers_that_matter_more_have_more_bits() -> None:
    plan = plan_of(3.2)
    assert plan.widths[NAMES[-1]].bits > plan.widths[NAMES[3]].bits


def test_a_plan_comes_back_from_its_file_and_says_the_same() -> None:
    plan = plan_of(3.2)
    Path("plan.json").write_text(plan.to_json())
    assert BitPlan.read(Path("plan.json")) == plan
    assert sum(line.lstrip().startswith('"model.layers') for line in plan.to_json().split("\n")) == 14


def test_a_changed_plan_counts_what_was_changed() -> None:
    plan = plan_of(3.2)
    more = 8 - plan.widths["model.layers.0.self_attn.o_proj"].bits
    text = re.sub(r'(0\.self_attn\.o_proj": \{"bits": )\d', r"\g<1>8", plan.to_json())
    Path("plan.json").write_text(text)
    changed = BitPlan.read(Path("plan.json"))
    assert more > 0
    assert changed.layer_bytes == plan.layer_bytes + 128 * 128 * more // 8 + 2 * 128 * more // 8
    assert changed.divergence < plan.divergence


BROKEN = {
    "no JSON": (lambda _: "{", "cannot be read as JSON"),
    "another file": (lambda _: "{}", "it is not a plan, as `inspect --avg-bits` makes them"),
    "bits": (lambda text: text.replace('"bits": 2', '"bits": 5', 1), "5 bits; GPTQ checkpoints hold"),
    "groups": (lambda text: text.replace('"group_size": 64}', '"group_size": 0}', 1), "groups of 0; give a"),
    "wide groups": (
        lambda text: text.replace('"group_size": 64}', '"group_size": 256}', 1), "has 128 columns, fewer",
    ),
    "an unknown layer": (lambda text: text.replace("0.self_attn.o_proj", "0.o", 1), "is not a layer of its"),
    "a missing part": (lambda text: text.replace('"engine"', '"motor"'), "lacks something that plans have"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
def test_a_senseless_plan_is_refused_by_what_is_wrong(change, message: str) -> None:
    Path("plan.json").write_text(change(plan_of(2.6).to_json()))
    with pytest.raises(InputError, match=re.escape(message)):
        BitPlan.read(Path("plan.json"))


def test_an_absent_plan_is_named() -> None:
    with pytest.raises(InputError, match=r"--plan absent\.json cannot be read"):
        BitPlan.read(Path("absent.json"))


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Budget(avg_bits=2.1), "--avg-bits 2.100: with 2, 3, 4, 8 bits it must lie between"),
        (Budget(avg_bits=12.0), "--avg-bits 12.000: with 2, 3, 4, 8 bits it must lie between"),
        (Budget(size=9_000), "--size 0.01MB: with 2, 3, 4, 8 bits it must lie between"),
        (Budget(size=10**9), "--size 1,000.00MB: with 2, 3, 4, 8 bits it must lie between"),
    ],
)
def test_a_size_that_no_width_gives_is_refused_with_the_range(budget: Budget, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        decide(survey_of_two_blocks(), budget, engine="gptqmodel", sym=True)


@pytest.mark.parametrize(
    ("text", "count"), [("4GB", 4 * 10**9), ("3.5 GiB", int(3.5 * 2**30)), ("900mb", 9 * 10**8), ("77", 77)]
)
def test_sizes_are_read_as_people_write_them(text: str, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["four", "4 TBX", "GB", "-3GB"])
def test_a_size_without_sense_is_named(text: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"--size {text}: give a number with a unit")):
        parse_size(text)


def test_blocks_and_kinds_are_read_off_names() -> None:
    assert Place.of("model.layers.3.mlp.down_proj") == Place("model.layers.3", "mlp.down_proj")
    assert Place.of("model.layers.3.mlp.experts.7.w1") == Place("model.layers.3", "mlp.experts.w1")


def test_a_plan_is_drawn_and_summed_up() -> None:
    pytest.importorskip("matplotlib")
    plan = plan_of(3.2)
    draw_plan(plan, Path("plan.png"))
    assert Path("plan.png").stat().st_size > 10_000
    assert f"{plan.average_bits:.3f} bits a weight" in "\n".join(totals(plan))


# what the model tells


def test_every_third_window_weighs_what_is_rounded_for_the_others(model: Path, monkeypatch) -> None:
    seen: list[torch.Tensor] = []

    def look(_model, rounding, weighing, _widths, **_settings) -> Survey:
        seen.extend([torch.cat(rounding), torch.cat(weighing)])
        return Survey((), {}, 0, 0)

    monkeypatch.setattr(planning_child, "survey", look)
    drawn = {"samples": 5, "seqlen": 64, "seed": 0, "cut": "tokenizer"}
    request = {
        "model": str(model), "engine": "gptqmodel", "allow_pickle": False, "trust_remote_code": False,
        "head": False, "calibration": "prose.txt", "widths": [[2, 64]], "magr": {}, "sym": True, **drawn,
    }  # fmt: skip
    planning_child.answer(request, lambda *_, **__: None)
    planning_child.answer({**request, "samples": 1}, lambda *_, **__: None)
    rows = torch.tensor(read_model(model, False).windows("prose.txt", **drawn).rows)
    assert seen[0].equal(rows[[0, 2, 3]])
    assert seen[1].equal(rows[[1, 4]])
    assert seen[2].equal(seen[3])


def test_a_layer_is_weighed_by_what_comes_back_of_random_directions(model: Path) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(model).float()
    name, rows = NAMES[-1], calibration_rows(4)
    layer = layers_to_plan(loaded, "gptqmodel")[name]
    sampled, changes = torch.tensor([3, 77]), torch.randn(2, 2, layer.in_features)
    worth = Worth(Sample(sampled, 0, changes, foreseen=torch.ones(2, 128)))
    weigh(loaded, {name: layer}, {name: worth}, rows.split(2), lambda: None)
    assert not any(module._forward_hooks for module in loaded.modules())
    # the same directions, one batch at a time, by the gradient of what is added to the outputs
    squares, products = torch.zeros(128, dtype=torch.float64), []
    given, generator = [], torch.Generator().manual_seed(SIGN_SEED)
    watching = layer.register_forward_pre_hook(lambda _m, arguments: given.append(arguments[0].detach()))
    for batch in rows.split(2):
        added = torch.zeros(2, 64, 128, requires_grad=True)
        handle = layer.register_forward_hook(lambda _m, _i, out, added=added: out + added)
        logits = loaded(input_ids=batch).logits.flatten(0, 1)
        handle.remove()
        logits.backward(random_direction(logits.detach(), generator))
        each = added.grad.double().square()
        squares += each.sum((0, 1))
        moved = torch.einsum("bti,wri->btwr", given[-1].double(), changes.double())
        products += (moved.square() * each[:, :, None, sampled]).sum(3).flatten(0, 1)
    watching.remove()
    torch.testing.assert_close(worth.squares.double(), squares, rtol=1e-4, atol=0.0)
    # every token for itself: both sampled rows stand for all
    share = squares.sum() / squares[sampled].sum()
    expected = limited_mean(share * torch.stack(products)) / 2
    torch.testing.assert_close(worth.divergences(256), expected, rtol=1e-4, atol=0.0)


def test_widths_beyond_4_bits_are_foreseen_from_4(model: Path, monkeypatch) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(model).float()
    rounded: list[Width] = []
    real = survey_module.samples

    def seen(weights, shared, widths, *args, **kwargs):
        rounded.extend(widths)
        return real(weights, shared, widths, *args, **kwargs)

    monkeypatch.setattr(survey_module, "samples", seen)
    rows = calibration_rows(2)
    found = survey(
        loaded, [rows[:1]], [rows[1:]], [Width(2), Width(8), Width(4)], engine="gptqmodel", sym=True,
        config=None, advance=lambda *_: None,
    )  # fmt: skip
    assert set(rounded) == {Width(2), Width(4)}
    for layer in found.layers.values():
        two, eight, four = layer.divergences
        assert two > four > 0
        assert eight == pytest.approx(four / 17**2, rel=1e-6)


def test_a_survey_in_several_turns_is_that_of_one_and_keeps_no_turns_hessians(model, monkeypatch) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(model).float()
    rows = calibration_rows(8)
    settings = {"engine": "gptqmodel", "sym": True, "config": MagRConfig()}
    steps: list[tuple[int, int]] = []

    def surveyed() -> Survey:
        steps.clear()
        return survey(
            loaded, rows[:4].split(2), rows[4:].split(2), [Width(2), Width(4)],
            advance=lambda *s: steps.append(s), **settings,
        )  # fmt: skip

    whole = surveyed()
    alive: list[weakref.ref] = []
    real = survey_module.layer_inputs

    def seen(*args, **kwargs):
        assert not any(one() is not None for one in alive)
        found = real(*args, **kwargs)
        alive.extend(weakref.ref(one.hessian) for one in found)
        return found

    monkeypatch.setattr(survey_module, "layer_inputs", seen)
    monkeypatch.setattr(survey_module, "turn_bytes", lambda _: 3 * 4 * 128**2)
    found = surveyed()
    assert len(alive) >= 3
    assert steps[-1][0] == steps[-1][1]
    for name, one in whole.layers.items():
        assert found.layers[name].divergences == pytest.approx(one.divergences, rel=1e-3)


@pytest.mark.parametrize(("free", "taken"), [(1000, 500), (None, TURN_BYTES), (10 * TURN_BYTES, TURN_BYTES)])
def test_a_turns_hessians_leave_half_of_what_is_free(free: int | None, taken: int, monkeypatch) -> None:
    monkeypatch.setattr(survey_module, "free_bytes", lambda _: free)
    assert survey_module.turn_bytes(torch.device("cpu")) == taken


@pytest.mark.parametrize(("options", "groups"), [((), {128, -1}), (("--group-size", 64), {64, -1})])
def test_inspect_plans_in_the_groups_that_quantize_takes(options, groups, model: Path, planning) -> None:
    given = ("--calibration", "prose.txt", "--samples", 2, "--seqlen", 64, "--avg-bits", 3)
    code, output = call("inspect", model, *given, *options, "--plan", "plan.json")
    assert code == 0, output
    assert {width.group_size for width in BitPlan.read(Path("plan.json")).survey.widths} == groups


def test_all_bits_in_all_groups_may_be_chosen_but_the_most_bits_in_the_largest_alone() -> None:
    assert widths_among([2, 3], [64, -1]) == [Width(2, 64), Width(2), Width(3, 64), Width(3)]
    assert widths_among([4, 8], [64, -1, 64]) == [Width(4, 64), Width(4), Width(8)]
    assert widths_among([4, 8], [32, 128]) == [Width(4, 32), Width(4, 128), Width(8, 128)]
    assert widths_among([4, 8], [64]) == [Width(4, 64), Width(8, 64)]


def test_groups_that_no_layer_fills_are_refused_before_the_passes(model: Path, planning) -> None:
    code, output = inspect(model, "--avg-bits", 3, "--group-sizes", "64,256", "--plan", "plan.json")
    assert code == 2
    assert "self_attn.q_proj has 128 columns, fewer than a group of 256: give smaller ones, or -1" in output
    assert not Path("plan.json").exists()


@NEEDS_GPTQMODEL
def test_fused_experts_are_refused_by_name(tmp_path, planning) -> None:
    code, output = quantize(save_mixture(tmp_path / "mixture"), "--avg-bits", 3)
    assert code == 2
    assert "several experts in one weight" in output


# the commands


@NEEDS_GPTQMODEL
def test_every_layer_has_its_bits_and_the_file_its_size(model: Path, worker: Worker, planning) -> None:
    code, output = quantize(model, "--avg-bits", 3.2)
    assert code == 0, output
    plan = BitPlan.read(Path("out", "bits.json"))
    assert len({width.bits for width in plan.widths.values()}) > 1
    # where nothing else is asked for, groups are those of --group-size or the whole row
    assert {width.group_size for width in plan.survey.widths} == {64, -1}
    with safe_open("out/model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    stored = 0
    for name, width in plan.widths.items():
        rows, columns = plan.survey.layers[name].shape
        assert tensors[f"{name}.qweight"].shape == (columns * width.bits // 32, rows)
        stored += sum(t.nbytes for key, t in tensors.items() if key.startswith(f"{name}."))
    assert stored == plan.layer_bytes
    assert 0 <= 3.2 * plan.weights / 8 - plan.layer_bytes < smallest_step_for_less(plan)
    size = Path("out", "model.safetensors").stat().st_size
    assert 0.99 * plan.file_bytes < size <= plan.file_bytes
    # by GPTQModel in a process that has no magr_gptq
    loaded = json.loads(Path("out", "magr.json").read_text())["loaded"][0]
    assert (loaded["loader"], loaded["missing"], loaded["error"]) == ("gptqmodel", [], None)
    assert loaded["difference"] < 1e-3
    assert not Path("out.bits.json").exists()
    bits = ", ".join(map(str, sorted({width.bits for width in plan.widths.values()})))
    assert f"Bits: {bits} by layer" in Path("out", "README.md").read_text()


@pytest.mark.skipif("llm-compressor" not in MIXING, reason="needs llm-compressor")
@pytest.mark.parametrize("symmetry", ["--sym", "--no-sym"])
def test_llm_compressor_takes_a_plan_as_its_own_groups(
    symmetry: str, model: Path, worker: Worker, planning
) -> None:
    code, output = quantize(model, "--avg-bits", 3.4, symmetry, engine="llm-compressor")
    assert code == 0, output
    plan = BitPlan.read(Path("out", "bits.json"))
    config = json.loads(Path("out", "config.json").read_text())["quantization_config"]
    bits = {n: g["weights"]["num_bits"] for g in config["config_groups"].values() for n in g["targets"]}
    assert bits == {name: width.bits for name, width in plan.widths.items()}
    size = Path("out", "model.safetensors").stat().st_size
    assert 0.99 * plan.file_bytes < size <= plan.file_bytes
    loaded = json.loads(Path("out", "magr.json").read_text())["loaded"][0]
    assert (loaded["missing"], loaded["error"]) == ([], None)
    assert loaded["difference"] < 1e-3


@NEEDS_GPTQMODEL
def test_inspect_writes_a_plan_that_quantize_takes_after_a_change(
    model: Path, worker: Worker, planning
) -> None:
    code, output = inspect(model, "--size", "250KB", "--plan", "plan.json")
    assert code == 0, output
    assert "Bits of each layer" in output
    text = Path("plan.json").read_text()
    assert BitPlan.read(Path("plan.json")).file_bytes <= 250_000
    wider = re.sub(r'(layers\.1\.mlp\.down_proj": \{"bits": )\d', r"\g<1>8", text)
    Path("plan.json").write_text(wider)
    code, output = quantize(model, "--plan", "plan.json", "--no-verify")
    assert code == 0, output
    with safe_open("out/model.safetensors", "pt") as file:
        assert file.get_slice("model.layers.1.mlp.down_proj.qweight").get_shape() == [256 * 8 // 32, 128]


@NEEDS_GPTQMODEL
def test_for_a_runtime_that_fuses_nothing_every_layer_has_bits_of_its_own(
    model: Path, worker: Worker, planning
) -> None:
    code, output = quantize(model, "--avg-bits", 3.2, "--for", "gptqmodel")
    assert code == 0, output
    plan = BitPlan.read(Path("out", "bits.json"))
    assert any(len({plan.widths[n] for n in names}) > 1 for names in by_fused_name(plan.widths).values())
    loaded = json.loads(Path("out", "magr.json").read_text())["loaded"][0]
    assert (loaded["missing"], loaded["error"]) == ([], None)
    assert loaded["difference"] < 1e-3
    # the same plan, for whatever may run it
    code, output = quantize(model, "--plan", "out/bits.json", "--out", "again")
    assert code == 2
    assert "give them one width, or name a runtime that doesn't, --for gptqmodel" in output


@pytest.mark.parametrize("engine", MIXING)
def test_each_layer_takes_one_of_several_group_sizes(
    engine: str, model: Path, worker: Worker, planning
) -> None:
    code, output = quantize(model, "--avg-bits", 3, "--group-sizes", "32,-1", engine=engine)
    assert code == 0, output
    plan = BitPlan.read(Path("out", "bits.json"))
    assert {width.group_size for width in plan.survey.widths} == {32, -1}
    assert {width.group_size for width in plan.widths.values()} == {32, -1}
    assert 2.9 < plan.average_bits <= 3
    loaded = json.loads(Path("out", "magr.json").read_text())["loaded"][0]
    assert (loaded["missing"], loaded["error"]) == ([], None)
    assert loaded["difference"] < 1e-3


def test_the_output_layer_has_a_pattern_also_where_it_has_the_usual_width() -> None:
    widths = dict.fromkeys([*NAMES, "lm_head"], (2, 64))
    assert dynamic_of(widths, (2, 64)) == {"^lm_head$": {"bits": 2, "group_size": 64}}


@NEEDS_GPTQMODEL
def test_the_output_layer_has_bits_if_asked_and_so_in_a_plan(model: Path, worker: Worker, planning) -> None:
    code, output = quantize(model, "--avg-bits", 3.2, "--head")
    assert code == 0, output
    plan = BitPlan.read(Path("out", "bits.json"))
    assert plan.head == "lm_head"
    config = json.loads(Path("out", "config.json").read_text())["quantization_config"]
    assert config["lm_head"]
    with safe_open("out/model.safetensors", "pt") as file:
        rows, columns = plan.survey.layers["lm_head"].shape
        assert file.get_tensor("lm_head.qweight").shape == (columns * plan.widths["lm_head"].bits // 32, rows)
        places = [key for key in file.keys() if key.rpartition(".")[0] in plan.widths]  # noqa: SIM118
        assert sum(file.get_tensor(key).nbytes for key in places) == plan.layer_bytes
    assert Path("out", "model.safetensors").stat().st_size <= plan.file_bytes
    loaded = json.loads(Path("out", "magr.json").read_text())["loaded"][0]
    assert (loaded["loader"], loaded["missing"], loaded["error"]) == ("gptqmodel", [], None)
    assert loaded["difference"] < 1e-3
    reduced = {layer["name"] for layer in json.loads(Path("out", "magr.json").read_text())["layers"]}
    assert "lm_head" in reduced
    Path("out", "bits.json").rename("plan.json")
    code, output = call("quantize", model, *GIVEN, "--out", "again", "--plan", "plan.json", "--no-verify")
    assert code == 0, output
    assert BitPlan.read(Path("again", "bits.json")).widths == plan.widths
    code, output = call("quantize", model, *GIVEN, "--out", "third", "--plan", "plan.json", "--for", "sglang")
    assert code == 2
    assert "--plan plan.json has an output layer: sglang loads no quantized output layer" in output


def test_a_head_that_is_the_embeddings_is_refused_by_name(tmp_path: Path, planning) -> None:
    tied = save_tiny_model("gpt2", tmp_path / "tied")
    code, output = inspect(tied, "--avg-bits", 3, "--head", "--plan", "plan.json")
    assert code == 2
    assert "its embeddings, too, which no toolkit quantizes for GPTQ; leave out --head" in output
    assert not Path("plan.json").exists()


def test_the_head_is_weighed_by_its_most_frequent_rows(model: Path, monkeypatch) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(model).float()
    taken: dict[str, torch.Tensor] = {}
    real = survey_module.weigh

    def weighed(model, layers, worths, *args) -> None:
        taken.update({name: worth.sample.rows for name, worth in worths.items()})
        real(model, layers, worths, *args)

    monkeypatch.setattr(survey_module, "weigh", weighed)
    rows = calibration_rows(8)
    found = survey(
        loaded, rows[:4].split(2), rows[4:].split(2), [Width(2), Width(4)], engine="gptqmodel", sym=True,
        config=MagRConfig(), advance=lambda *_: None, head=True,
    )  # fmt: skip
    assert set(found.layers) == {*NAMES, "lm_head"}
    two, four = found.layers["lm_head"].divergences
    assert two > four > 0
    largest = loaded.lm_head.weight.abs().amax(1).argsort(descending=True, stable=True)[:12]
    assert taken["lm_head"][:12].equal(largest)
    counts = rows[:4].flatten().bincount(minlength=len(loaded.lm_head.weight)).float()
    counts[largest] = -1
    assert counts[taken["lm_head"][12:]].sum() == counts.topk(36).values.sum()


@NEEDS_GPTQMODEL
def test_a_plan_of_another_model_is_refused_before_work(model: Path, planning, monkeypatch) -> None:
    monkeypatch.setattr(quantize_module, "Worker", _never)
    Path("plan.json").write_text(plan_of(3.2).to_json())
    code, output = quantize(model, "--plan", "plan.json")
    assert code == 2
    assert "the plan is of another model: model.layers." in output
    assert not Path("out").exists()


@NEEDS_GPTQMODEL
def test_an_interrupted_runs_survey_is_used_again(model: Path, worker: Worker, planning, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(quantize_module, "_run_under_bar", _interrupted)
        assert quantize(model, "--avg-bits", 3.2, "--no-verify")[0] == 130
    assert Path("out.bits.json").exists()
    monkeypatch.setattr(planner, "Child", _never)
    # the survey serves another size, too
    code, output = quantize(model, "--avg-bits", 2.9, "--no-verify")
    assert code == 0, output
    assert BitPlan.read(Path("out", "bits.json")).average_bits <= 2.9


def _never(*_: object, **__: object) -> None:
    raise AssertionError("work was started")


def _interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


REFUSED = {
    "two sizes": (["--avg-bits", "3", "--size", "1MB"], "--avg-bits and --size each say what bits"),
    "bits, too": (["--avg-bits", "3", "--bits", "3"], "--bits and --avg-bits each say what bits"),
    "too few": (["--avg-bits", "1.5"], "--avg-bits 1.5: give bits a weight, between 2 and 8"),
    "not a size": (["--size", "big"], "--size big: give a number with a unit"),
    "no groups": (["--size", "1MB", "--group-sizes", "64,all"], "--group-sizes 64,all: give positive"),
    "groups of none": (["--avg-bits", "3", "--group-sizes", "0"], "--group-sizes 0: give positive numbers"),
    "groups alone": (["--group-sizes", "64"], "--group-sizes 64 belongs to --avg-bits or --size"),
    "a head alone": (["--head"], "--head belongs to --avg-bits or --size; a plan has the output layer's"),
    "a head of an engine": (
        ["--avg-bits", "3", "--head", "--engine", "llm-compressor"], "--head: llm-compressor leaves",
    ),
    "a head for a runtime": (
        ["--avg-bits", "3", "--head", "--for", "sglang"], "--head: sglang loads no quantized output layer",
    ),
    "a tuned head": (["--avg-bits", "3", "--head", "--tune"], "--tune takes no quantized output layer"),
    "no plan": (["--plan", "absent.json"], "--plan absent.json cannot be read"),
    "a runtime of one width": (
        ["--avg-bits", "3", "--for", "onnxruntime"], "--for onnxruntime: layers of several widths load there",
    ),
}  # fmt: skip


@NEEDS_GPTQMODEL
@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_sizes_are_named_before_any_work(
    options: list[str], message: str, model: Path, monkeypatch
) -> None:
    monkeypatch.setattr(quantize_module, "Worker", _never)
    monkeypatch.setattr(planner, "Child", _never)
    code, output = quantize(model, *options)
    assert code == 2
    assert message in output


@pytest.mark.parametrize(
    "engine", [name for name, engine in ENGINES.items() if not engine.mixed and engine.toolkit in installed()]
)
def test_engines_of_one_width_refuse_by_name(engine: str, model: Path) -> None:
    code, output = quantize(model, "--avg-bits", 3, engine=engine)
    assert code == 2
    assert f"{engine} gives all layers one width: name --bits" in output


@pytest.mark.parametrize(
    ("runtime", "engine", "bits"),
    [
        ("gptqmodel", "gptqmodel", (2, 3, 4, 8)),
        ("vllm", "gptqmodel", (4, 8)),
        ("transformers", "gptqmodel", (2, 4, 8)),
    ],
)
def test_a_runtime_says_what_bits_layers_may_have(runtime, engine, bits, monkeypatch) -> None:
    monkeypatch.setattr("magr_gptq.app.quantizing.runtimes.installed", lambda: ("gptqmodel",))
    road = choose_mixed_road(runtime, Asked(None, 4, 128, True, False))
    assert (road.engine, road.mixed) == (engine, bits)
    assert RUNTIMES[runtime].fuses == (runtime == "vllm")


def test_layouts_are_of_the_engines_that_mix() -> None:
    assert set(LAYOUTS) == {name for name, engine in ENGINES.items() if engine.mixed}


def test_inspect_has_no_plan_without_a_size(model: Path) -> None:
    code, output = inspect(model, "--plan", "plan.json")
    assert code == 2
    assert "--plan plan.json belongs to --avg-bits or --size" in output
