"""Single layers through MagRGPTQModifier, what it refuses, and what it never passes over in silence."""

from __future__ import annotations

import itertools

import pytest
import torch
from problems import hessian_of, weight_of
from tiny import byte_tokenizer, save_tiny_model

import magr_gptq

pytest.importorskip("llmcompressor")

from compressed_tensors.quantization.lifecycle.forward import dequantize as dequantize_codes
from compressed_tensors.quantization.lifecycle.forward import quantize as quantize_codes
from llmcompressor.modifiers.gptq import GPTQModifier, helpers
from llmcompressor.modifiers.gptq import base as toolkit
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor_runs import quantize, round_layers, scheme
from loguru import logger
from transformers import AutoConfig, AutoModelForCausalLM

from magr_gptq.rounding.layer import prepare as layer_step_prepare
from magr_gptq.rounding.order import importance_order
from magr_gptq.toolkits import layer_step, roads
from magr_gptq.toolkits.llmcompressor import modifier as adapter
from magr_gptq.toolkits.llmcompressor.modifier import MagRGPTQModifier

# no choice per row, and a step that shows
ONE_BETA = {"search": False, "gain": False, "refine": 0, "beta": 0.5}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return str(save_tiny_model("llama", tmp_path_factory.mktemp("models") / "llama"))


@pytest.fixture
def prepared(monkeypatch) -> list[dict]:
    """What every layer was prepared with, and the rows that the toolkit got of it."""
    seen: list[dict] = []

    def recording(*given):
        layer, rows = layer_step_prepare(*given)
        seen.append({"plan": layer.plan, "rows": torch.cat(rows), "factors": layer.factors.clone()})
        return layer, rows

    for road in (layer_step, roads):
        monkeypatch.setattr(road, "prepare", recording)
    return seen


@pytest.fixture
def given(monkeypatch) -> list[torch.Tensor]:
    """The batches of weights that llm-compressor rounds, [batch, rows, in]."""
    seen: list[torch.Tensor] = []
    original = toolkit.quantize_weight

    def quantize_weight(**kwargs):
        seen.append(kwargs["weights"].clone())
        return original(**kwargs)

    monkeypatch.setattr(toolkit, "quantize_weight", quantize_weight)
    return seen


@pytest.fixture
def warnings() -> list[str]:
    """What llm-compressor's logger says at level WARNING."""
    said: list[str] = []
    sink = logger.add(said.append, level="WARNING", format="{message}")
    yield said
    logger.remove(sink)


def modifier(*args, magr=True, **settings) -> MagRGPTQModifier:
    return MagRGPTQModifier(config_groups=scheme(*args), magr=magr, **settings)


@pytest.mark.parametrize(("group_size", "symmetric"), itertools.product((-1, 32), (True, False)))
@pytest.mark.parametrize("bits", [2, 3])
def test_error_against_the_original_weight_is_lower(bits: int, group_size: int, symmetric: bool) -> None:
    weight, hessian = weight_of(64, 128), hessian_of(128)

    def loss(magr: bool) -> float:
        (module,) = round_layers(modifier(bits, group_size, symmetric, magr=magr), [(weight, hessian)])
        error = weight - module.weight
        return float((error @ hessian * error).sum())

    assert loss(magr=True) < 0.9 * loss(magr=False)


@pytest.mark.parametrize(("group_size", "symmetric"), itertools.product((-1, 32), (True, False)))
def test_steps_are_beta_times_those_of_the_reduced_weight(group_size, symmetric, prepared) -> None:
    layers = [(weight_of(32, 128), hessian_of(128))]
    (module,) = round_layers(modifier(3, group_size, symmetric, magr=ONE_BETA), layers)
    plain = GPTQModifier(config_groups=scheme(3, group_size, symmetric))
    (whole,) = round_layers(plain, [(prepared[0]["rows"], hessian_of(128))])
    torch.testing.assert_close(module.weight_scale, 0.5 * whole.weight_scale)
    assert torch.equal(module.weight_zero_point, whole.weight_zero_point)


def test_every_row_keeps_one_of_its_candidates(given) -> None:
    layers, pairs = [(weight_of(32, 128), hessian_of(128))], [(0.03, 0.85), (0.06, 0.95)]
    (module,) = round_layers(
        modifier(2, 32, False, magr={"search": pairs, "gain": False, "refine": 0}), layers
    )
    assert given[0].shape == (1, 3 * 32, 128)
    single = [{"search": False, "gain": False, "refine": 0, "strength": c, "beta": beta} for c, beta in pairs]
    alone = [round_layers(modifier(2, 32, False, magr=magr), layers)[0] for magr in (False, *single)]
    kept = torch.stack([(module.weight - other.weight).abs().amax(1) < 1e-5 for other in alone])
    assert kept.any(0).all()
    assert (kept.sum(1) > 0).all()


def test_a_batch_of_layers_is_rounded_as_each_alone(given) -> None:
    layers = [(weight_of(32, 64, seed), hessian_of(64, seed)) for seed in range(5)]
    layers.insert(2, (weight_of(48, 64), hessian_of(64)))
    alone = round_layers(modifier(4, 32, False, batched_quantization=None), layers)
    together = round_layers(used := modifier(4, 32, False, batched_quantization=4), layers)
    assert [len(batch) for batch in given] == [1, 1, 1, 1, 1, 1, 4, 1, 1]
    for first, second in zip(alone, together, strict=True):
        for name, value in first.named_parameters():
            torch.testing.assert_close(getattr(second, name), value, msg=name)
    assert sorted(layer.name for layer in used.magr_report.reduced) == [f"layer {i}" for i in range(6)]


def test_batches_made_for_the_memory_are_cut_for_taller_layers(given, monkeypatch) -> None:
    monkeypatch.setattr(helpers, "max_batch_size", lambda *_: 9)
    layers = [(weight_of(8, 32, seed), hessian_of(32, seed)) for seed in range(10)]
    # of two candidates each
    round_layers(modifier(4, -1), layers)
    assert [tuple(batch.shape) for batch in given] == [(4, 16, 32)] * 2 + [(1, 16, 32)] * 2


@pytest.mark.parametrize("batched", [None, 3])
def test_short_memory_rounds_the_candidates_one_by_one(batched, given, monkeypatch) -> None:
    """Stood in for: a device that rounds no more rows than a layer has."""
    layers = [(weight_of(16, 64, seed), hessian_of(64, seed)) for seed in range(3)]
    settings = {"batched_quantization": batched}
    whole = round_layers(modifier(3, 32, False, **settings), layers)
    given.clear()
    roomy = toolkit.quantize_weight

    def short(**kwargs):
        found = roomy(**kwargs)
        if kwargs["weights"].shape[:2].numel() > 16:
            raise torch.OutOfMemoryError("no room")
        return found

    monkeypatch.setattr(toolkit, "quantize_weight", short)
    with pytest.warns(UserWarning, match="one by one$"):
        apart = round_layers(used := modifier(3, 32, False, **settings), layers)
    # together, each layer by itself, each candidate by itself
    assert {batch.shape for batch in given} == {(batched or 1, 2 * 16, 64), (1, 2 * 16, 64), (1, 16, 64)}
    for first, second in zip(whole, apart, strict=True):
        for name, value in first.named_parameters():
            torch.testing.assert_close(getattr(second, name), value, msg=name)
    assert sorted(layer.name for layer in used.magr_report.reduced) == [f"layer {i}" for i in range(3)]
    assert not used._hessians
    assert not used._num_samples


def test_rows_are_rounded_in_float32(prepared, given) -> None:
    """bfloat16 has 8 bits: the clipped magnitudes would blur."""
    (module,) = round_layers(modifier(3), [(weight_of(32, 64), hessian_of(64))], torch.bfloat16)
    assert torch.equal(given[0][0], prepared[0]["rows"])
    assert {module.weight.dtype, module.weight_scale.dtype} == {torch.bfloat16}


# at 8 bits in bfloat16 compressed-tensors itself is off by a code now and then
@pytest.mark.parametrize(
    ("bits", "dtype"), [*itertools.product((2, 4), (torch.float16, torch.bfloat16)), (8, torch.float16)]
)
@pytest.mark.parametrize("magr", [True, {"refine": 2}], ids=["gain", "refined"])
def test_weights_lie_on_the_grid_that_is_stored(bits: int, dtype: torch.dtype, magr) -> None:
    """Whatever the gain does to a scale: codes times the stored scale are the weight, to the bit."""
    used = modifier(bits, 32, False, magr=magr)
    (module,) = round_layers(used, [(weight_of(32, 64), hessian_of(64))], dtype)
    assert torch.equal(to_nearest(module.weight, module, used), module.weight)


def to_nearest(weight: torch.Tensor, module, used: MagRGPTQModifier) -> torch.Tensor:
    """compressed-tensors' own codes for the weight on the module's grid, and back."""
    args = used.resolved_config.config_groups["group_0"].weights
    grid = {"scale": module.weight_scale, "zero_point": module.weight_zero_point, "args": args}
    return dequantize_codes(quantize_codes(x=weight, dtype=torch.int8, **grid), **grid)


def test_refinement_lowers_the_error() -> None:
    weight, hessian = weight_of(32, 64), hessian_of(64)

    def loss(refine: int) -> float:
        magr = {"search": False, "gain": False, "refine": refine}
        round_layers(used := modifier(2, 32, False, magr=magr), [(weight, hessian)])
        return used.magr_report.layers[0].loss

    assert loss(3) < 0.99 * loss(0)


def test_rounding_to_nearest_spreads_no_error(prepared) -> None:
    magr = {"search": False, "gain": False, "rounding": "nearest"}
    (module,) = round_layers(used := modifier(3, 32, magr=magr), [(weight_of(32, 64), hessian_of(64))])
    assert torch.equal(module.weight, to_nearest(prepared[0]["rows"], module, used))


@pytest.mark.parametrize("actorder", ["static", "weight", None])
@pytest.mark.parametrize("group_size", [-1, 32])
def test_groups_are_those_of_the_original_columns(group_size: int, actorder, prepared) -> None:
    """They are whole in every order that columns are reduced in."""
    hessian = hessian_of(128)
    settings = modifier(2, group_size, actorder=actorder)
    (module,) = round_layers(settings, [(weight_of(16, 128), hessian)])
    if group_size == -1 and actorder:
        assert torch.equal(prepared[0]["plan"].order, hessian.diagonal().argsort(descending=True))
    elif actorder:
        assert prepared[0]["plan"].order is None
    else:
        assert torch.equal(prepared[0]["plan"].order, importance_order(hessian.diagonal(), group_size))
    groups = module.weight.view(16, -1, 128 if group_size == -1 else 32)
    codes = groups / module.weight_scale[:, :, None]
    torch.testing.assert_close(codes, codes.round(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("observer", ["memoryless_mse", "imatrix_mse"])
def test_observers_that_search_keep_their_step(observer: str, tiny, prepared) -> None:
    settings = {"config_groups": scheme(2, 32, observer=observer), "ignore": ["lm_head"]}
    quantize([searched := MagRGPTQModifier(**settings)], tiny)
    assert len(searched.magr_report.reduced) == len(prepared) == 7
    assert all((layer["factors"] == 1).all() for layer in prepared)
    prepared.clear()
    round_layers(MagRGPTQModifier(**settings, magr={"beta": 0.9}), [(weight_of(8, 64), hessian_of(64))])
    assert prepared[0]["factors"].unique().tolist() == pytest.approx([0.9, 1.0])


REFUSED = {
    "float8": ({"scheme": "FP8_DYNAMIC"}, "type='float'"),
    "nvfp4": ({"scheme": "NVFP4A16"}, "type='float'"),
    "tensor": ({"config_groups": {"g": {"targets": ["Linear"], "weights": {"num_bits": 4}}}}, "'tensor'"),
    "one bit": ({"config_groups": scheme(1)}, "num_bits=1"),
    "sixteen bits": ({"config_groups": scheme(16)}, "num_bits=16"),
    "unknown setting": ({"scheme": "W4A16", "magr": {"alhpa": 1e-3}}, "alhpa"),
    "unknown argument": ({"scheme": "W4A16", "margr": True}, "margr"),
    "out of range": ({"scheme": "W4A16", "magr": {"beta": 2}}, "beta=2"),
}


@pytest.mark.parametrize(("settings", "message"), REFUSED.values(), ids=REFUSED)
def test_what_makes_no_sense_is_refused_when_the_modifier_is_made(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MagRGPTQModifier(**settings)


@pytest.mark.parametrize("name", ["float8", "nvfp4", "tensor", "one bit"])
def test_refused_schemes_are_llm_compressors_business_where_magr_is_off(name: str) -> None:
    MagRGPTQModifier(**REFUSED[name][0], magr=False)


def test_a_scheme_of_an_earlier_modifier_is_refused_by_layer(tiny) -> None:
    recipe = [QuantizationModifier(scheme="FP8_DYNAMIC", ignore=["lm_head"]), MagRGPTQModifier()]
    with pytest.raises(ValueError, match=r"model\.layers\.0\.self_attn\.q_proj have type='float'"):
        quantize(recipe, tiny)


def test_embeddings_are_refused(tiny) -> None:
    with pytest.raises(ValueError, match=r"model\.embed_tokens is an embedding"):
        quantize([MagRGPTQModifier(targets=["Linear", "Embedding"], scheme="W4A16")], tiny)


def test_quantized_activations_are_not_magrs_business(tiny) -> None:
    quantize([used := MagRGPTQModifier(scheme="W4A8", ignore=["lm_head"])], tiny)
    assert len(used.magr_report.reduced) == 7


def test_layers_that_could_not_be_factorized_are_no_success(tiny) -> None:
    """llm-compressor only warns when it rounds all layers to nearest."""
    recipe = MagRGPTQModifier(scheme="W4A16", ignore=["lm_head"], dampening_frac=-1.0)
    with pytest.raises(magr_gptq.NothingReducedError, match=r"0 of 7 .*rounded to nearest"):
        quantize([recipe], tiny)
    assert {layer.fallback for layer in recipe.magr_report.layers} == {adapter.NOT_FACTORIZED}


def test_layers_that_are_never_called_are_reported(tiny, warnings) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny)
    model.model.layers[0].mlp.spare_proj = torch.nn.Linear(128, 128, bias=False)
    quantize([used := MagRGPTQModifier(scheme="W4A16", ignore=["lm_head"])], model)
    (spare,) = used.magr_report.skipped
    assert (spare.name, spare.skipped) == ("model.layers.0.mlp.spare_proj", adapter.NEVER_CALLED)
    assert any("spare_proj" in line for line in warnings)
    assert any("not as intended: 1 of 8 layers" in line for line in warnings)


def test_experts_without_a_token_are_reported(tmp_path, warnings) -> None:
    """The router chooses between the first two of four experts."""
    model = AutoModelForCausalLM.from_pretrained(save_mixture(tmp_path))
    gate = model.model.layers[0].mlp.gate.weight.data
    gate[1], gate[2:] = -gate[0], 0
    used = MagRGPTQModifier(config_groups=scheme(4, 32), ignore=["lm_head", "re:.*gate$"])
    quantized = quantize([used], model, moe_calibrate_all_experts=False)
    experts = [f"model.layers.0.mlp.experts.{index}." for index in range(4)]
    skipped = {layer.name for layer in used.magr_report.skipped}
    assert skipped == {f"{expert}{n}_proj" for expert in experts[2:] for n in ("gate", "up", "down")}
    assert {layer.skipped for layer in used.magr_report.skipped} == {adapter.NO_INPUT}
    assert len(used.magr_report.reduced) == 4 + 6
    assert all(any(name in line for line in warnings) for name in skipped)
    assert not any(quantized.get_submodule(name).weight.any() for name in skipped)


def test_batched_experts_are_all_reduced(tmp_path) -> None:
    used = MagRGPTQModifier(
        config_groups=scheme(4, 32, False), ignore=["lm_head", "re:.*gate$"], batched_quantization=4
    )
    quantize([used], str(save_mixture(tmp_path)))
    assert len(used.magr_report.reduced) == 4 + 4 * 3
    assert not used.magr_report.skipped


def save_mixture(folder):
    """A tiny mixture of four experts with its tokenizer."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    config = AutoConfig.for_model(
        "mixtral", vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=1,
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("batched", [2, None])
def test_a_layer_with_bad_numbers_is_left_to_llm_compressor(batched, warnings) -> None:
    good, bad = (weight_of(32, 128), hessian_of(128)), (weight_of(32, 128), hessian_of(128) * float("nan"))
    recipe = modifier(3, 32, batched_quantization=batched)
    modules = round_layers(recipe, [good, bad])
    reports = {layer.name: layer for layer in recipe.magr_report.layers}
    assert {name: layer.outcome for name, layer in reports.items()} == {
        "layer 0": "reduced",
        "layer 1": "skipped",
    }
    assert "hessian holds NaN or infinity" in reports["layer 1"].reason
    assert any("steps aside for layer 1" in line for line in warnings)
    plain = round_layers(GPTQModifier(config_groups=scheme(3, 32)), [bad])
    assert torch.equal(modules[1].weight, plain[0].weight)
