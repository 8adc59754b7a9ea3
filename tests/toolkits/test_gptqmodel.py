"""MagR inside the real GPTQModel: its loop, its files, its unmodified loader."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import pickle
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch
from bad_models import save_tiny
from forked_workers import fork
from problems import hessian_of, weight_of
from safetensors.torch import load_file
from seams import layers_given, orders_given
from short_memory import CALLS, end_memory
from tiny import calibration_rows, save_tiny_model
from transformers import AutoConfig

import magr_gptq

pytest.importorskip("gptqmodel")

from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
from gptqmodel.looper import module_looper
from gptqmodel.quantization import config as config_module
from gptqmodel.quantization.config import HessianConfig, TensorParallelPadderConfig
from gptqmodel.quantization.gptq import GPTQ
from gptqmodel.quantization.quantizer import Quantizer
from gptqmodel.utils import torch as toolkit_torch
from gptqmodel_runs import load, quantize, run_vanilla

from magr_gptq.app.quantizing import by_gptqmodel as engine
from magr_gptq.app.quantizing.job import Job
from magr_gptq.app.quantizing.layers import full_report
from magr_gptq.reduction.factorization import Factorization
from magr_gptq.toolkits import memory
from magr_gptq.toolkits.gptqmodel import adapter
from magr_gptq.toolkits.gptqmodel import config as config_field
from magr_gptq.toolkits.gptqmodel.rounding import Rounding
from magr_gptq.toolkits.report import LayerReport, RunReport

pytestmark = pytest.mark.long


@pytest.fixture(autouse=True)
def _own_folder(tmp_path_factory, monkeypatch):
    # GPTQModel writes ./logs
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))


@pytest.fixture
def switched_on():
    with magr_gptq.enabled("gptqmodel"):
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {shape: str(save_tiny_model(shape, root / shape)) for shape in ("llama", "tail", "gpt2")}


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file but the log of seconds."""
    files = [path for path in sorted(folder.iterdir()) if path.name != "quant_log.csv"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_off_gives_the_files_of_a_process_without_magr(tiny, tmp_path, switched_on) -> None:
    model = quantize(tiny["llama"], bits=3, group_size=32, act_group_aware=True)
    model.save(str(tmp_path / "enabled"))
    run_vanilla("quantize", tiny["llama"], str(tmp_path / "vanilla"), cwd=tmp_path)
    assert digests(tmp_path / "enabled") == digests(tmp_path / "vanilla")


def test_on_changes_the_tensors_but_no_shape(tiny, tmp_path, switched_on) -> None:
    from safetensors.torch import load_file

    files = {}
    for magr in (None, True):
        quantize(tiny["llama"], bits=3, group_size=32, magr=magr).save(str(tmp_path / str(magr)))
        files[magr] = load_file(tmp_path / str(magr) / "model.safetensors")
    assert {n: (t.shape, t.dtype) for n, t in files[True].items()} == {
        n: (t.shape, t.dtype) for n, t in files[None].items()
    }
    assert not torch.equal(
        files[True]["model.layers.0.mlp.down_proj.qweight"],
        files[None]["model.layers.0.mlp.down_proj.qweight"],
    )


LAYERS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
          "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]  # fmt: skip

SETTINGS = {
    "gar": {"group_size": 32, "act_group_aware": True},
    "static groups": {"group_size": 32, "static_groups": True},
    "static groups, desc_act": {"group_size": 32, "static_groups": True, "desc_act": True},
    "gptaq": {"group_size": 32, "gptaq": {"alpha": 0.25}},
    "foem": {"group_size": 32, "foem": {"alpha": 0.25, "beta": 0.2}},
    "one input at a time": {"group_size": 32, "true_sequential": False},
    "mse": {"group_size": 32, "mse": 2.4},
    "paper": {"group_size": -1, "magr": {"preset": "paper", "iterations": 20}},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_every_layer_is_reduced(settings: dict, tiny, switched_on) -> None:
    model = quantize(tiny["llama"], bits=3, **{"magr": {"strength": 0.1}, **settings})
    report = model.quantize_config.magr_report
    assert sorted(layer.name for layer in report.reduced) == sorted(f"model.layers.0.{n}" for n in LAYERS)
    assert not report.skipped
    for layer in report.layers:
        assert layer.largest_after < layer.largest_before
        assert layer.loss > 0
        # GPTAQ, FOEM and the paper's preset leave rows no choice; an unbiased output may cost a little
        assert layer.plain_loss is None or layer.loss < 1.05 * layer.plain_loss


def test_short_last_groups_and_conv1d(tiny, tmp_path, switched_on) -> None:
    layers = {"tail": 7, "gpt2": 4}
    for shape, desc_act in itertools.product(layers, (False, True)):
        model = quantize(tiny[shape], bits=2, group_size=128, desc_act=desc_act, magr=True)
        assert len(model.quantize_config.magr_report.reduced) == layers[shape]
        model.save(str(tmp_path / f"{shape}-{desc_act}"))
    run_vanilla("dequantize", *map(str, tmp_path.iterdir()), cwd=tmp_path)
    for shape, desc_act in itertools.product(layers, (False, True)):
        weights = torch.load(tmp_path / f"{shape}-{desc_act}" / "dequantized.pt")
        assert len(weights) == layers[shape]
        assert all(weight.isfinite().all() for weight in weights.values())


@pytest.fixture
def factorized(monkeypatch) -> list[int]:
    """The widths of all Hessians that have been factorized."""
    widths, compute = [], Factorization.of

    def note(hessian):
        widths.append(hessian.diagonal.shape[-1])
        return compute(hessian)

    monkeypatch.setattr(Factorization, "of", note)
    return widths


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 4),  # q, k and v have one input, gate and up another
        ({"desc_act": True}, 4),
        # this one forms its groups in another order
        ({"desc_act": True, "dynamic": {r"+:.*k_proj": {"static_groups": True}}}, 5),
    ],
)
def test_layers_with_one_input_share_one_factorization(
    settings: dict, expected: int, tiny, switched_on, factorized
) -> None:
    def weights(shared: bool) -> dict[str, torch.Tensor]:
        factorized.clear()
        dedup = HessianConfig(dedup_shared_inputs=shared)
        model = quantize(tiny["llama"], bits=2, group_size=32, hessian=dedup, magr=True, **settings)
        assert len(factorized) == (expected if shared else 7)
        return model.model.state_dict()

    together, apart = weights(True), weights(False)
    assert together.keys() == apart.keys()
    assert all(torch.equal(tensor, apart[name]) for name, tensor in together.items())


def test_candidates_one_by_one_share_the_factorization_of_their_input(
    tiny, switched_on, factorized, monkeypatch
) -> None:
    """The toolkit has let go of its Hessian by the time that the second candidate is reduced."""

    def weights() -> dict[str, torch.Tensor]:
        factorized.clear()
        model = quantize(tiny["llama"], bits=2, group_size=32, magr=True)
        assert len(factorized) == 4
        return model.model.state_dict()

    together = weights()
    monkeypatch.setattr(memory, "LARGE", 1)
    monkeypatch.setattr(memory, "TALL", 0)
    apart = weights()
    assert all(torch.equal(tensor, apart[name]) for name, tensor in together.items())


def test_a_layer_never_takes_the_toolkits_factor_of_a_hessian_that_was_changed_otherwise(
    tiny, switched_on
) -> None:
    def codes(magr: object, **dynamic: object) -> dict[str, torch.Tensor]:
        overrides = {rf"+:.*{name}": {"magr": setting} for name, setting in dynamic.items()}
        model = quantize(tiny["llama"], bits=2, group_size=32, magr=magr, dynamic=overrides or None)
        state = model.model.state_dict()
        return {name: state[f"model.layers.0.self_attn.{name}.qweight"] for name in ("q_proj", "k_proj")}

    shrunk, unshrunk = True, {"shrink": False}
    together, apart = codes(shrunk), codes(unshrunk)
    assert not any(torch.equal(together[name], apart[name]) for name in together)
    # q, k and v have one input, and so one Hessian
    mixed = codes(shrunk, k_proj=unshrunk)
    assert torch.equal(mixed["q_proj"], together["q_proj"])
    assert torch.equal(mixed["k_proj"], apart["k_proj"])


def test_a_mixtures_experts_keep_no_factorization_for_each_other(tmp_path, switched_on, factorized) -> None:
    # no Mixtral: GPTQModel rewrites an architecture's experts for the whole process
    folder = save_tiny(
        "qwen3_moe", tmp_path, hidden_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=32, moe_intermediate_size=64, num_experts=4, num_experts_per_tok=4,
    )  # fmt: skip
    model = quantize(str(folder), bits=3, group_size=32, magr=True)
    experts = [layer for layer in model.quantize_config.magr_report.reduced if ".experts." in layer.name]
    assert len(experts) == 4 * 3
    assert len(factorized) == 1 + 1 + len(experts)  # q, k and v; o


def test_dynamic_overrides_reach_their_modules(tiny, switched_on) -> None:
    model = quantize(
        tiny["llama"], bits=3, group_size=32, magr={"beta": 0.9, "search": False},
        dynamic={
            r"+:.*down_proj": {"magr": False},
            r"+:.*o_proj": {"magr": {"beta": 0.7, "search": False}},
        },
    )  # fmt: skip
    betas = {layer.name.split(".")[-1]: layer.beta for layer in model.quantize_config.magr_report.layers}
    assert "down_proj" not in betas
    assert betas["o_proj"] == 0.7
    assert betas["q_proj"] == 0.9


def test_dynamic_can_switch_magr_on_for_one_module(tiny, switched_on) -> None:
    model = quantize(tiny["llama"], bits=3, group_size=32, dynamic={r"+:.*down_proj": {"magr": True}})
    assert [layer.name for layer in model.quantize_config.magr_report.layers] == [
        "model.layers.0.mlp.down_proj"
    ]


def test_a_dynamic_pattern_that_reaches_no_layer_is_told_of(tiny, switched_on, caplog) -> None:
    paper = {"magr": {"preset": "paper"}}
    dynamic = {
        r"+:q_proj": paper,
        r"+:.*v_proj": paper,
        r"+:.*(o|k)_proj": paper,
        r"+:.*layers.0.mlp.*": {"bits": 4},
        r"+:mlp.*": {"group_size": 64, "bits": 4},
        r"-:.*(v|o)_proj": {},
        r"-:lm_head_": {},
    }
    model = quantize(tiny["llama"], bits=3, group_size=32, magr=True, dynamic=dynamic)
    negative, nothing, defeated, widths = notes = model.quantize_config.magr_report.notes
    assert nothing.startswith("the dynamic pattern '+:q_proj', which sets magr, matches no layer; ")
    assert defeated.startswith("the dynamic pattern '+:.*v_proj' sets magr for 1 layers, and a '-:' pattern")
    assert widths.startswith("the dynamic pattern '+:mlp.*', which sets bits, group_size, matches no layer; ")
    assert negative.startswith("the dynamic pattern '-:lm_head_', which leaves layers out, matches no layer")
    assert model.quantize_config.magr_report.warning() == "; ".join(notes)
    for note in notes:
        # before the work, and at its end
        assert caplog.text.count(note) == 2


def test_a_pattern_that_a_checkpoint_keeps_is_told_of_by_the_command(tmp_path) -> None:
    seen = RunReport(["a pattern matches no layer"])
    whole = full_report(Job("model", "out", "text"), seen, ["a", "b"], {})
    assert whole.warning().startswith("a pattern matches no layer; 2 of 2 layers")
    assert pickle.loads(pickle.dumps(seen)).notes == seen.notes


def test_setting_is_saved_under_meta_and_comes_back(tiny, tmp_path, switched_on) -> None:
    dynamic = {r"+:.*down_proj": {"magr": magr_gptq.MagRConfig(alpha=1e-3)}}
    model = quantize(tiny["llama"], bits=3, group_size=32, magr={"beta": 0.9}, dynamic=dynamic)
    model.save(str(tmp_path / "saved"))
    written = json.loads((tmp_path / "saved" / "quantize_config.json").read_text())
    assert written["meta"]["magr"] == {"preset": "default", "beta": 0.9}
    assert "magr" not in written
    loaded = QuantizeConfig.from_pretrained(str(tmp_path / "saved"))
    assert loaded.magr == magr_gptq.MagRConfig(beta=0.9)
    assert copy.deepcopy(loaded).magr == loaded.magr
    assert loaded.dynamic[r"+:.*down_proj"]["magr"] == {"preset": "default", "alpha": 1e-3}


def test_layers_without_samples_step_aside(tiny, switched_on, caplog) -> None:
    """A threshold above the calibration size sends every layer to the toolkit's fallback."""
    with pytest.raises(magr_gptq.NothingReducedError, match="too few calibration samples"):
        quantize(
            tiny["llama"], bits=3, group_size=32, magr=True, fallback={"strategy": "rtn", "threshold": 10**9}
        )
    assert "magr steps aside for model.layers.0.self_attn.q_proj" in caplog.text


def test_mock_quantization_steps_aside(tiny, switched_on) -> None:
    with pytest.raises(magr_gptq.NothingReducedError, match="mock_quantization"):
        quantize(tiny["llama"], bits=3, group_size=32, magr=True, mock_quantization=True)


@pytest.mark.parametrize("method", ["awq", "qqq"])
def test_other_methods_refuse_magr(method: str, switched_on) -> None:
    with pytest.raises(ValueError, match=r"magr=True applies to method='gptq'"):
        QuantizeConfig(
            bits=4, group_size=128, method=method, format=method if method == "qqq" else "gemm", magr=True
        )
    QuantizeConfig(
        bits=4, group_size=128, method=method, format=method if method == "qqq" else "gemm", magr=False
    )


@pytest.mark.parametrize("place", ["config", "dynamic"])
def test_bad_settings_are_refused_when_the_config_is_made(place: str, switched_on) -> None:
    bad = {"alpha": -1.0}
    settings = {"magr": bad} if place == "config" else {"dynamic": {"+:.*": {"magr": bad}}}
    with pytest.raises(ValueError, match=r"alpha=-1\.0"):
        QuantizeConfig(bits=3, group_size=32, **settings)


@pytest.mark.parametrize(
    "dynamic", [None, {r"+:.*q_proj": {"static_groups": True}}, {r"+:.*q_proj": {"magr": True}}], ids=str
)
def test_static_groups_with_the_toolkits_order_are_refused(dynamic, switched_on) -> None:
    settings = {"bits": 3, "group_size": 32, "dynamic": dynamic, "device": "cpu"}
    whole = dynamic is None or "static_groups" not in str(dynamic)
    settings |= {"static_groups": whole, "magr": "magr" not in str(dynamic)}
    with pytest.raises(ValueError, match="other groups for reordered columns; set act_group_aware=False"):
        QuantizeConfig(**settings)
    assert QuantizeConfig(**settings, act_group_aware=False)
    assert QuantizeConfig(**settings, desc_act=True)
    assert QuantizeConfig(bits=3, group_size=32, static_groups=True, device="cpu")


@pytest.mark.parametrize("dead", [False, True])
def test_static_groups_with_the_toolkits_order_are_wrong(dead: bool, switched_on, monkeypatch) -> None:
    """Why they are refused: MagR's order makes the toolkit's the identity, but not with a dead column."""
    weight, hessian = weight_of(64, 128) * torch.tensor([8.0, 4, 2, 1]).repeat_interleave(32), hessian_of(128)
    if dead:
        hessian[[5, 40]], hessian[:, [5, 40]] = 0, 0

    def loss(**settings) -> float:
        error = weight - run_layer(weight, hessian, 3, group_size=32, **settings)[0].float()
        return float((error @ hessian * error).sum())

    both = {"static_groups": True, "act_group_aware": True}
    assert loss(**both) > 2 * loss(act_group_aware=True)
    right = loss(magr=True)
    assert loss(magr=True, static_groups=True) == pytest.approx(right, rel=1e-3)
    monkeypatch.setattr(config_field, "check_static_groups", lambda _: None)
    if dead:
        assert loss(magr=True, **both) > 2 * right
    else:
        assert loss(magr=True, **both) == pytest.approx(right, rel=1e-3)
    assert loss(magr={"preset": "paper"}, **both) > 2 * loss(magr={"preset": "paper"})


@pytest.mark.parametrize("dead", [False, True])
def test_desc_act_groups_are_the_toolkits(dead: bool, switched_on, monkeypatch) -> None:
    """Along the order that MagR is given, the toolkit's own g_idx counts up group by group."""
    orders = orders_given(monkeypatch)
    hessian = hessian_of(128)
    if dead:
        hessian[[3, 40]], hessian[:, [3, 40]] = 0, 0
    g_idx = run_layer(weight_of(64, 128), hessian, group_size=32, desc_act=True, magr=True)[3]
    assert torch.equal(g_idx[orders[0]], torch.arange(128, dtype=g_idx.dtype) // 32)


def run_layer(weight, hessian, bits: int = 2, **settings):
    """One layer through the toolkit's GPTQ.quantize with this very Hessian."""
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data.copy_(weight)
    settings = {"act_group_aware": False, **settings}
    config = QuantizeConfig(bits=bits, offload_to_disk=False, device="cpu", **settings)
    task = GPTQ(layer, qcfg=config)
    task.quantizer.configure(perchannel=True)
    task.H, task.nsamples = hessian.clone(), 1024
    found = task.quantize()
    report = getattr(config, "magr_report", None)
    # a layer that is left to the toolkit would pass many a test, too
    assert report is None or not any(layer.skipped for layer in report.layers)
    return found


@pytest.mark.parametrize(
    "settings", [{"preset": "paper"}, {"search": False}, {"search": False, "reorder": False}]
)
def test_a_single_candidate_is_refined_outside_of_a_run_too(settings: dict, switched_on) -> None:
    """Where nobody has turned on inference mode, and nothing has copied what the toolkit returned."""
    weight, hessian = weight_of(16, 64), hessian_of(64)
    plain = run_layer(weight, hessian, group_size=32)[0]
    assert not torch.equal(run_layer(weight, hessian, group_size=32, magr=settings)[0], plain)


@pytest.mark.parametrize("group_size", [-1, 32])
@pytest.mark.parametrize("bits", [2, 3])
def test_error_against_the_original_weight_is_lower(bits: int, group_size: int, switched_on) -> None:
    weight, hessian = weight_of(64, 128), hessian_of(128)

    def loss(**settings) -> float:
        error = weight - run_layer(weight, hessian, bits, group_size=group_size, **settings)[0].float()
        return float((error @ hessian * error).sum())

    assert loss(magr=True) < 0.9 * loss()


def test_step_is_shrunk_without_a_subclass(switched_on, monkeypatch) -> None:
    """GPTQModel takes its fused kernel only while type(quantizer) is Quantizer."""
    classes, grids = [], []
    original = Quantizer.find_params

    def spy(self, x, weight=False):
        original(self, x, weight=weight)
        classes.append(type(self))
        grids.append(self.scale.clone())

    monkeypatch.setattr(Quantizer, "find_params", spy)
    magr = {"beta": 0.5, "search": False, "gain": False}
    scale = run_layer(weight_of(8, 64), hessian_of(64), group_size=-1, magr=magr)[1]
    assert set(classes) == {Quantizer}
    # as float16, which the checkpoint stores
    torch.testing.assert_close(scale, (0.5 * grids[-1]).half().float())


def test_rows_that_are_too_short_for_the_toolkit_are_counted_and_told(tiny, switched_on, caplog) -> None:
    """Its own warning is gone when a run of hours ends."""
    model = load(tiny["llama"], bits=3, group_size=32, magr=True)
    lengths = [64] * 6 + [10, 3]
    model.quantize([{"input_ids": [7] * n, "attention_mask": [1] * n} for n in lengths], batch_size=4)
    assert model.quantize_config.magr_report.dropped == 2
    assert "2 calibration rows were too short for the toolkit" in caplog.text


@pytest.mark.parametrize("magr", [None, True])
def test_a_config_can_be_pickled(magr, switched_on) -> None:
    """The report's lock could not be, not even where magr was off."""
    config = QuantizeConfig(bits=3, group_size=32, magr=magr)
    assert pickle.loads(pickle.dumps(config)).magr_report.layers == []
    config.magr_report.add(LayerReport("a", 3, 32, skipped="why"))
    again = pickle.loads(pickle.dumps(config))
    assert again.magr == config.magr
    assert again.magr_report.layers == config.magr_report.layers
    again.magr_report.add(LayerReport("b", 3, 32))


def test_layers_that_the_toolkit_pads_are_cut_back(tmp_path, switched_on) -> None:
    """The process ended with a RuntimeError, as the stand-in had the padded shape."""
    folder = str(save_tiny_model("padded", tmp_path / "padded"))
    model = quantize(folder, bits=3, group_size=64, preprocessors=[TensorParallelPadderConfig()], magr=True)
    assert len(model.quantize_config.magr_report.reduced) == 7
    model.save(str(tmp_path / "out"))
    run_vanilla("dequantize", str(tmp_path / "out"), cwd=tmp_path)
    weights = torch.load(tmp_path / "out" / "dequantized.pt")
    assert weights["model.layers.0.self_attn.q_proj"].shape == (160, 160)
    assert all(weight.isfinite().all() for weight in weights.values())


def test_worker_threads_and_repeats_give_the_same_bits(tiny, tmp_path, switched_on) -> None:
    for name in ("first", "second"):
        quantize(tiny["llama"], bits=3, group_size=32, magr=True).save(str(tmp_path / name))
    assert digests(tmp_path / "first") == digests(tmp_path / "second")


def test_magr_is_unknown_before_and_after() -> None:
    assert not hasattr(QuantizeConfig(bits=3, magr=True), "magr")
    with magr_gptq.enabled("gptqmodel"):
        assert QuantizeConfig(bits=3, magr=True).magr == magr_gptq.MagRConfig()
        assert config_module.GPTQConfig(bits=3, magr=True).magr == magr_gptq.MagRConfig()
    assert not hasattr(QuantizeConfig(bits=3, magr=True), "magr")


@pytest.mark.parametrize("name", adapter.CALLED)
def test_what_is_called_in_the_layer_loop_is_looked_for_first(name, monkeypatch) -> None:
    monkeypatch.setattr(GPTQ, name, lambda surprise: surprise)
    with pytest.raises(magr_gptq.SeamError, match=rf"GPTQ\.{name} takes \('surprise',\), not"):
        magr_gptq.enable("gptqmodel")
    monkeypatch.delattr(GPTQ, name)
    with pytest.raises(magr_gptq.SeamError, match=rf"gptqmodel .* has no .*GPTQ\.{name};"):
        magr_gptq.enable("gptqmodel")
    assert not hasattr(QuantizeConfig(bits=3, magr=True), "magr")


def test_rounding_to_nearest_carries_nothing_over(switched_on) -> None:
    weight, hessian = weight_of(64, 128), hessian_of(128)
    magr = {"rounding": "nearest", "search": False, "gain": False, "shrink": False}
    found, scale, *_ = run_layer(weight, hessian, group_size=-1, magr=magr)
    reduced = magr_gptq.reduce(weight, hessian, bits=2).weight
    codes, wanted = found / scale, (reduced / scale).clamp(-2, 1)
    torch.testing.assert_close(codes, codes.round())
    # the road's order of columns rounds otherwise in the last bits, so that a tie may go either way
    assert ((codes - wanted).abs() <= 0.5 + 1e-4).all()


@pytest.mark.parametrize("method", [{"gptaq": {"alpha": 0.25}}, {"foem": {"alpha": 0.25, "beta": 0.2}}])
@pytest.mark.parametrize("magr", [{"refine": 2}, {"search": True}])
def test_what_leads_back_to_the_weight_is_refused_where_the_target_is_another(
    method: dict, magr: dict, switched_on
) -> None:
    with pytest.raises(ValueError, match="corrects for errors of earlier layers"):
        QuantizeConfig(bits=3, group_size=32, magr=magr, **method)
    with pytest.raises(ValueError, match="corrects for errors of earlier layers"):
        QuantizeConfig(bits=3, group_size=32, dynamic={r"+:.*down_proj": {"magr": magr}}, **method)


@pytest.mark.parametrize(
    "method", [{"gptaq": {"alpha": 0.25}}, {"foem": {"alpha": 0.25, "beta": 0.2}}], ids=str
)
def test_columns_stay_in_order_where_the_toolkit_corrects_for_earlier_layers(
    method: dict, tiny, switched_on, monkeypatch
) -> None:
    """Its correction is a matrix of the columns in their own order, and it counts sequences for tokens."""
    seen = layers_given(monkeypatch)
    quantize(tiny["llama"], bits=3, group_size=32, magr=True, **method)
    assert len(seen) == 7
    assert not any(given.in_order or given.tokens for given in seen)


def test_after_nan_the_toolkit_retries_on_the_layers_own_weight(switched_on, monkeypatch) -> None:
    """Its retry calls quantize again, while MagR's rows stand in for the layer."""
    weight, hessian = weight_of(8, 64), hessian_of(64)
    real = Quantizer.quantize
    calls = []

    def broken(self, x):
        calls.append(len(x))
        return real(self, x) if len(calls) != 3 else torch.full_like(x, float("nan"))

    monkeypatch.setattr(Quantizer, "quantize", broken)
    layer = torch.nn.Linear(64, 8, bias=False)
    layer.weight.data.copy_(weight)
    config = QuantizeConfig(
        bits=3, group_size=32, act_group_aware=False, offload_to_disk=False, device="cpu", magr=True
    )
    task = GPTQ(layer, qcfg=config)
    task.quantizer.configure(perchannel=True)
    task.H, task.nsamples = hessian.clone(), 1024
    found = task.quantize()[0]
    assert task.module is layer
    assert found.shape == layer.weight.shape
    assert found.isfinite().all()
    assert [layer.fallback for layer in config.magr_report.layers] == [
        "the toolkit met NaN and rounded without the Hessian"
    ]


@pytest.mark.parametrize("settings", [{"group_size": -1}, {"group_size": 32, "desc_act": True}])
def test_short_memory_rounds_the_candidates_one_by_one(settings: dict, switched_on, monkeypatch) -> None:
    """Stood in for: a device whose memory ends amid the columns of more rows than the layer has."""
    weight, hessian = weight_of(16, 64), hessian_of(64)
    whole = run_layer(weight, hessian, magr=True, **settings)
    tall = end_memory(monkeypatch, Quantizer, rows=16)
    with pytest.warns(UserWarning, match="one by one$") as caught:
        apart = run_layer(weight, hessian, magr=True, **settings)
    assert len(caught) == 1
    assert tall == CALLS * [2 * 16]
    for one, other in zip(apart[:4], whole[:4], strict=True):
        torch.testing.assert_close(one, other)
    assert apart[5] == pytest.approx(whole[5])


def test_short_memory_for_a_single_candidate_is_an_error(switched_on, monkeypatch) -> None:
    def none(*_):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(Quantizer, "quantize", none)
    with pytest.raises(torch.OutOfMemoryError):
        run_layer(weight_of(16, 64), hessian_of(64), group_size=32, magr={"search": False})


def test_the_toolkit_alone_holds_the_memory_of_the_rows_that_it_rounds(switched_on, monkeypatch) -> None:
    """It permutes a copy; the rows that frames above name would stay, as much as all candidates again."""
    handed, real, rounded = [], Rounding.__call__, Quantizer.quantize

    def hand_over(self, rows, factors, hessian):
        handed.append(rows)
        return real(self, rows, factors, hessian)

    def look(self, x):
        assert handed[-1].numel() == 0
        return rounded(self, x)

    monkeypatch.setattr(Rounding, "__call__", hand_over)
    monkeypatch.setattr(Quantizer, "quantize", look)
    run_layer(weight_of(16, 64), hessian_of(64), group_size=32, magr=True)
    assert len(handed) == 1


@pytest.mark.parametrize("settings", [{"group_size": 32}, {"group_size": 32, "act_group_aware": True}, {}])
def test_a_large_and_tall_layer_is_rounded_candidate_by_candidate(
    settings: dict, switched_on, monkeypatch
) -> None:
    weight, hessian = weight_of(128, 64), hessian_of(64)
    together = run_layer(weight, hessian, magr=True, **settings)
    handed, real = [], Rounding.__call__

    def hand_over(self, rows, factors, hessian):
        handed.append(len(rows))
        return real(self, rows, factors, hessian)

    monkeypatch.setattr(Rounding, "__call__", hand_over)
    monkeypatch.setattr(memory, "LARGE", 128 * 64)
    apart = run_layer(weight, hessian, magr=True, **settings)
    assert handed == 2 * [128]
    for one, other in zip(apart[:4], together[:4], strict=True):
        torch.testing.assert_close(one, other)


def spoil(monkeypatch, method: str, spoilt) -> None:
    """Have GPTQ's method return something else for one layer."""
    real = getattr(GPTQ, method)

    def wrapped(self, *args, **kwargs):
        found = real(self, *args, **kwargs)
        return spoilt(self, found) if "down_proj" in self.name else found

    monkeypatch.setattr(GPTQ, method, wrapped)


def spoilt_hessian(task, hessian: torch.Tensor) -> torch.Tensor:
    task.H = hessian * float("nan")
    return task.H


@pytest.mark.parametrize(
    ("method", "spoilt", "outcome", "reason"),
    [
        ("finalize_hessian", spoilt_hessian, "skipped", "hessian holds NaN or infinity"),
        ("hessian_inverse", lambda _task, _found: (None, 1.0), "fallen back", adapter.NOT_INVERTED),
    ],
    ids=["NaN", "not inverted"],
)
def test_a_layer_with_bad_numbers_does_not_end_the_run(
    method, spoilt, outcome: str, reason: str, tiny, switched_on, monkeypatch
) -> None:
    spoil(monkeypatch, method, spoilt)
    model = quantize(tiny["llama"], bits=3, group_size=32, magr=True)
    report = model.quantize_config.magr_report
    assert len(report.reduced) == len(LAYERS) - 1
    (left,) = report.skipped
    assert (left.name, left.outcome) == ("model.layers.0.mlp.down_proj", outcome)
    assert reason in left.reason
    assert [row["module"] for row in model.quant_log if row["loss"] == "rtn fallback"] == ["mlp.down_proj"]


def test_the_engine_hands_on_further_settings_of_the_toolkit() -> None:
    job = Job("model", "out", "text", bits=3, group_size=-1, options={"mse": 2.0, "damp_percent": 0.02})
    with magr_gptq.enabled("gptqmodel"):
        config = engine._quantize_config(job)
    assert (config.mse, config.damp_percent, config.act_group_aware) == (2.0, 0.02, False)
    assert config.magr == magr_gptq.MagRConfig()


def precision_of_products(folder: str) -> tuple[set[str], str]:
    """In GPTQModel's loop, and after it, where the user wants TF32 and the guard works as on a GPU."""
    rounds, guards, seen = GPTQ.quantize, module_looper.tf32_high_precision_guard, set()

    def quantize_and_look(self, blocksize: int = 128):
        seen.add(torch.backends.cuda.matmul.fp32_precision)
        return rounds(self, blocksize)

    @contextmanager
    def guard_as_on_a_gpu():
        with pytest.MonkeyPatch.context() as patch, ExitStack() as guarded:
            patch.setattr(toolkit_torch, "HAS_CUDA", True)
            guarded.enter_context(guards())
            patch.undo()
            yield

    GPTQ.quantize, module_looper.tf32_high_precision_guard = quantize_and_look, guard_as_on_a_gpu
    torch.set_float32_matmul_precision("high")
    with magr_gptq.enabled("gptqmodel"):
        quantize(folder, bits=4, group_size=32, magr=True)
    return seen, torch.backends.cuda.matmul.fp32_precision


def test_the_toolkits_loop_takes_no_tf32_whatever_the_user_has_set(tiny) -> None:
    """So docs/scaling.md has no times in TF32 for this toolkit."""
    # a process that has set precisions by torch's old and new way is good for nothing else
    assert fork(precision_of_products, tiny["llama"]) == ({"ieee"}, "tf32")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_engine_keeps_the_models_dtype_on_a_cpu(dtype: torch.dtype, tmp_path) -> None:
    """GPTQModel's own default makes bfloat16 of a float16 model there."""
    folder = save_tiny_model("llama", tmp_path / "model")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"torch_dtype": str(dtype).split(".")[1]}))
    job = Job(str(folder), str(tmp_path / "out"), "text", bits=4, group_size=32)
    with magr_gptq.enabled("gptqmodel"):
        engine.quantize(
            job, AutoConfig.from_pretrained(folder), calibration_rows().tolist(), 8, lambda _: None
        )
    (file,) = (tmp_path / "out").glob("*.safetensors")
    kept = {name: t for name, t in load_file(file).items() if name.endswith((".weight", "norm.weight"))}
    assert {tensor.dtype for tensor in kept.values()} == {dtype}
    assert len(kept) >= 4
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == str(dtype).split(".")[1]


def test_finished_layers_wait_inside_the_output_folder_and_leave_no_trace(
    tiny, tmp_path, monkeypatch
) -> None:
    # what is done on a GPU, on a CPU
    monkeypatch.setattr(
        engine,
        "_load",
        lambda job, *_: GPTQModel.load(
            job.model,
            engine._quantize_config(job, device="cpu", **engine._offloading(job)),
            backend=BACKEND.TORCH,
            dtype=torch.float16,
        ),
    )
    monkeypatch.setattr(engine, "_parameters_to", lambda *_: None)
    out = tmp_path / "out"
    job = Job(str(tiny["llama"]), str(out), "text", bits=4, group_size=32, magr=None)
    seen = []
    with magr_gptq.enabled("gptqmodel"):
        engine.quantize(
            job,
            AutoConfig.from_pretrained(job.model),
            calibration_rows().tolist(),
            8,
            lambda _: seen.append([path.name for path in (out / engine.OFFLOAD).iterdir()]),
        )
    assert any("q_proj" in name for name in seen[-1])
    assert not (out / engine.OFFLOAD).exists()
    for name in ("config.json", "quantize_config.json"):
        assert str(tmp_path) not in (out / name).read_text()
    loaded = GPTQModel.load(str(out), backend=BACKEND.TORCH, device="cpu", dtype=torch.float16)
    with torch.no_grad():
        assert loaded.model(calibration_rows(1)).logits.isfinite().all()
