"""What users of the toolkits ran into and told of in public: with MagR on it does not happen, or it is told.

A line a report: its thread, and what happened there, in our words. The inputs are our own.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from bad_models import _starve, save_tiny
from safetensors.torch import load_file
from tiny import calibration_rows, save_tiny_model

import magr_gptq

pytest.importorskip("gptqmodel")

from gptqmodel import BACKEND, GPTQModel
from gptqmodel_runs import load, quantize
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor_runs import quantize as compress
from llmcompressor_runs import scheme
from optimum.gptq import GPTQQuantizer
from optimum_runs import quantize_by_optimum, quantize_by_transformers
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from magr_gptq.app.inputs import read_model
from magr_gptq.app.text import random_windows
from magr_gptq.errors import InputError
from magr_gptq.toolkits.llmcompressor import MagRGPTQModifier
from magr_gptq.toolkits.report import RunReport
from magr_gptq.toolkits.undamaged import UndamagedChain
from magr_score.windows import read_windows

pytestmark = pytest.mark.long

LAYERS = 7


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=calibration_rows(2)).logits.float()


def loaded(folder: str | Path) -> Any:
    return GPTQModel.load(str(folder), backend=BACKEND.TORCH, device="cpu", dtype=torch.float16)


def report_of(model: Any) -> RunReport:
    report: RunReport = model.quantize_config.magr_report
    return report


def shards_are_saved(model: str) -> None:
    quantized = quantize(model, bits=4, group_size=32, magr=True)
    quantized.save("whole")
    quantized.save("shards", max_shard_size="100KB")
    assert len(list(Path("shards").glob("*.safetensors"))) > 1
    assert torch.equal(logits(loaded("shards")), logits(loaded("whole")))


def near_the_original(shape: str, **settings: Any) -> RunReport:
    """With 8 bits what is saved is every layer's own weight, to a tenth of its norm."""
    folder = str(save_tiny_model(shape, Path(shape)))
    quantized = quantize(folder, bits=8, magr=True, **settings)
    report = report_of(quantized)
    assert len(report.reduced) == len(report.layers)
    quantized.save("out")
    original, packed = AutoModelForCausalLM.from_pretrained(folder), loaded("out").model.named_modules()
    read = {
        name: module.dequantize_weight().T for name, module in packed if hasattr(module, "dequantize_weight")
    }
    assert set(read) == {layer.name for layer in report.layers}
    for name, weight in read.items():
        layer = original.get_submodule(name)
        expected = (layer.weight.T if isinstance(layer, Conv1D) else layer.weight).float()
        assert (weight - expected).norm() < 0.1 * expected.norm(), name
    return report


def skipped_blocks(_: str) -> None:
    report = near_the_original("two-blocks", group_size=32, dynamic={r"-:.*layers\.1\..*": {}})
    assert {layer.name.split(".")[2] for layer in report.layers} == {"0"}
    assert not [
        name for name in load_file("out/model.safetensors") if "layers.1" in name and "qweight" in name
    ]


def transposed_weights(_: str) -> None:
    near_the_original("gpt2", group_size=32)


def one_group_a_row(_: str) -> None:
    near_the_original("llama", group_size=-1)


def static_groups_in_the_order_of_importance(_: str) -> None:
    near_the_original("llama", group_size=32, static_groups=True, desc_act=True)


def searched_steps(model: str) -> None:
    quantized = quantize(model, bits=3, group_size=32, mse=2.4, magr=True)
    # MagR leaves the choice of steps to the search
    assert [layer.beta for layer in report_of(quantized).reduced] == [1.0] * LAYERS
    quantized.save("out")
    assert json.loads(Path("out", "quantize_config.json").read_text())["meta"]["mse"] == 2.4


def an_order_within_uneven_groups(_: str) -> None:
    near_the_original("tail", group_size=128, act_group_aware=True)


def scales_that_are_positive(model: str) -> None:
    quantize(model, bits=3, group_size=32, magr={"mirror": False}).save("out")
    scales = [t for name, t in load_file("out/model.safetensors").items() if name.endswith(".scales")]
    assert len(scales) == LAYERS
    assert all((scale > 0).all() for scale in scales)


def mixture() -> str:
    """Experts 2 and 3 of 4 never get a token."""
    folder = save_tiny(
        "qwen3_moe", Path("mixture"), _starve, hidden_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=32, moe_intermediate_size=64, num_experts=4, num_experts_per_tok=1,
    )  # fmt: skip
    return str(folder)


def is_starved(name: str) -> bool:
    return ".experts.2." in name or ".experts.3." in name


def starved_with_fallback(_: str) -> None:
    rounded = {"strategy": "rtn", "threshold": 1}
    report = report_of(quantize(mixture(), bits=4, group_size=32, fallback=rounded, magr=True))
    assert {layer.outcome for layer in report.layers if is_starved(layer.name)} == {"fallen back"}
    assert (len(report.skipped), len(report.reduced)) == (6, 4 + 6)


def starved_without_fallback(_: str) -> None:
    quantized = quantize(mixture(), bits=4, group_size=32, fallback=None, magr=True)
    report = report_of(quantized)
    # the toolkit leaves them as they are
    assert not any(is_starved(layer.name) for layer in report.layers)
    assert (len(report.skipped), len(report.reduced)) == (0, 4 + 6)
    quantized.save("out")
    assert logits(loaded("out")).isfinite().all()


def one_token_over_and_over(model: str) -> None:
    quantized = load(model, bits=4, group_size=32, magr=True)
    quantized.quantize([{"input_ids": [7] * 64, "attention_mask": [1] * 64}] * 4, batch_size=1)
    assert len(report_of(quantized).layers) == LAYERS
    quantized.save("out")
    assert logits(loaded("out")).isfinite().all()


def odd_last_groups(_: str) -> None:
    quantized = quantize(str(save_tiny_model("tail", Path("tail"))), bits=4, group_size=128, magr=True)
    assert len(report_of(quantized).reduced) == LAYERS
    quantized.save("out")
    assert logits(loaded("out")).isfinite().all()


def batches_of_unequal_rows(model: str) -> None:
    found = []
    for batch_size in (1, 4):
        quantized = load(model, bits=4, group_size=32, magr=True)
        rows = [row.tolist() for row in calibration_rows()]
        uneven = [
            {"input_ids": row[: 16 + 6 * n], "attention_mask": [1] * (16 + 6 * n)}
            for n, row in enumerate(rows)
        ]
        quantized.quantize(uneven, batch_size=batch_size)
        found.append({layer.name: layer for layer in report_of(quantized).reduced})
    assert len(found[0]) == LAYERS
    for name, alone in found[0].items():
        # padding is no token
        assert found[1][name].tokens == alone.tokens
        assert found[1][name].loss == pytest.approx(alone.loss, rel=0.05)


def formats_are_what_the_config_says(model: str) -> None:
    for sym in (True, False):
        seen = []
        for name in ("gptq", "gptq_v2"):
            quantize(model, bits=2, group_size=32, sym=sym, format=name, magr=True).save(name)
            written = json.loads(Path(name, "quantize_config.json").read_text())
            assert written["checkpoint_format"] == name
            seen.append(logits(loaded(name)))
        assert torch.equal(*seen)


def saved_by_transformers(model: str) -> None:
    quantized = quantize_by_transformers(model, Path("out"), bits=3, group_size=32, magr=True)
    again = AutoModelForCausalLM.from_pretrained("out", dtype=torch.float16)
    torch.testing.assert_close(logits(again), logits(quantized), rtol=0, atol=0.02)


def no_order_of_magrs_own(model: str) -> None:
    written = []
    for modifier in (GPTQModifier, MagRGPTQModifier):
        compress([modifier(config_groups=scheme(8), ignore=["lm_head"])], model, modifier.__name__)
        config = json.loads(Path(modifier.__name__, "config.json").read_text())
        written.append(config["quantization_config"])
    assert written[0] == written[1]


def groups_that_do_not_divide(_: str) -> None:
    modifier = MagRGPTQModifier(config_groups=scheme(4, 128), ignore=["lm_head"])
    with pytest.raises(ValueError, match="q_proj"):
        compress([modifier], str(save_tiny_model("tail", Path("tail"))))
    assert not modifier.magr_report.layers


def all_rounded_to_nearest(model: str) -> None:
    modifier = MagRGPTQModifier(config_groups=scheme(4, 32), ignore=["lm_head"], dampening_frac=-1.0)
    with pytest.raises(magr_gptq.NothingReducedError, match=r"0 of 7 .*rounded to nearest"):
        compress([modifier], model)


def scales_of_starved_experts(_: str) -> None:
    modifier = MagRGPTQModifier(config_groups=scheme(4, 32), ignore=["lm_head", "re:.*mlp.gate$"])
    compress([modifier], mixture(), "out")
    tensors = load_file("out/model.safetensors")
    unset = {
        name for name, tensor in tensors.items() if name.endswith("_scale") and not tensor.isfinite().all()
    }
    told = {layer.name for layer in modifier.magr_report.skipped}
    assert {name.removesuffix(".weight_scale") for name in unset} <= told
    assert len(modifier.magr_report.layers) == 4 + 4 * 3
    assert {name for name in told if not is_starved(name)} == set()


def overflows(_: str) -> None:
    """What enters down_proj is beyond 65,504."""

    def amplify(model: Any) -> None:
        for name, weight in model.named_parameters():
            if "gate_proj" in name or "up_proj" in name:
                weight.data.mul_(3e3)

    folder = save_tiny(
        "llama", Path("amplified"), amplify, hidden_size=64, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    modifier = MagRGPTQModifier(config_groups=scheme(4, 32), ignore=["lm_head"])
    compress([modifier], AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16))
    (told,) = modifier.magr_report.skipped
    assert told.name.endswith("down_proj")
    assert "NaN or infinity" in told.skipped
    assert len(modifier.magr_report.reduced) == LAYERS - 1


def tied_embeddings(_: str) -> None:
    folder = save_tiny(
        "llama", Path("tied"), hidden_size=64, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    compress([MagRGPTQModifier(config_groups=scheme(4, 32), ignore=["lm_head"])], str(folder), "out")
    assert "lm_head.weight" not in load_file("out/model.safetensors")
    again = AutoModelForCausalLM.from_pretrained("out")
    assert torch.equal(again.lm_head.weight, again.model.embed_tokens.weight)


def experts_have_names_of_their_own(_: str) -> None:
    modifier = MagRGPTQModifier(config_groups=scheme(4, 32), ignore=["lm_head", "re:.*mlp.gate$"])
    compress([modifier], mixture(), "out")
    packed = {name for name in load_file("out/model.safetensors") if name.endswith("weight_packed")}
    assert {name for name in packed if "gate_up" in name} == set()
    assert len({name for name in packed if ".experts." in name}) == 4 * 3
    assert {layer.name for layer in modifier.magr_report.layers} == {
        name.removesuffix(".weight_packed") for name in packed
    }


def both_ways_of_saving(model: str) -> None:
    quantize_by_optimum(model, Path("out"), bits=4, group_size=32, magr=True)
    assert torch.equal(logits(loaded("out")), logits(loaded("out-pretrained")))


def windows_as_many_as_asked(_: str) -> None:
    windows = random_windows(range(100), 128, 64, seed=0)
    assert {len(window) for window in windows} == {64}
    assert len(windows) == 128
    with pytest.raises(InputError, match="has 64 tokens, too few for one window of 64"):
        random_windows(range(64), 1, 64, seed=0)


def rows_with_masks(model: str) -> None:
    lengths = (16, 40, 64)
    rows = [
        {"input_ids": [row[:length].tolist()], "attention_mask": [[1] * length]}
        for row, length in zip(calibration_rows(3), lengths, strict=True)
    ]
    quantizer = GPTQQuantizer(bits=4, group_size=32, dataset=rows, magr=True)
    quantized = quantizer.quantize_model(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float16))
    layers = report_of(quantized).layers
    assert len(layers) == LAYERS
    assert {layer.tokens for layer in layers} == {sum(lengths)}


def blocks_of_experts(_: str) -> None:
    """Every token reaches every expert of both blocks."""
    folder = save_tiny(
        "qwen3_moe", Path("experts"), hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=32, moe_intermediate_size=64, num_experts=4, num_experts_per_tok=4,
    )  # fmt: skip
    quantized = quantize(str(folder), bits=4, group_size=32, magr=True)
    reduced = [layer.name for layer in report_of(quantized).reduced]
    assert len(reduced) == len(set(reduced)) == 2 * (4 + 4 * 3)
    quantized.save("out")
    assert logits(loaded("out")).isfinite().all()


def groups_and_whole_rows(_: str) -> None:
    folder = save_tiny(
        "opt", Path("opt"), hidden_size=64, ffn_dim=128, num_hidden_layers=2, num_attention_heads=2,
        word_embed_proj_dim=64,
    )  # fmt: skip
    wanted = logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16))
    away = {}
    for group_size in (32, -1):
        quantize(str(folder), bits=4, group_size=group_size, magr=True).save(f"out{group_size}")
        away[group_size] = float((logits(loaded(f"out{group_size}")) - wanted).norm())
    assert away[32] < away[-1]


def bits_by_layer(model: str) -> None:
    wide = {r"+:.*down_proj": {"bits": 8}}
    quantized = quantize(model, bits=4, group_size=32, dynamic=wide, magr=True)
    widths = {layer.name.rpartition(".")[2]: layer.bits for layer in report_of(quantized).reduced}
    assert widths == {name: 8 if name == "down_proj" else 4 for name in widths}
    quantized.save("out")
    assert json.loads(Path("out", "quantize_config.json").read_text())["dynamic"] == wide
    tensors = load_file("out/model.safetensors")
    packed = {name: len(tensors[f"model.layers.0.mlp.{name}.qweight"]) for name in ("down_proj", "up_proj")}
    # of 256 and of 128 inputs, in words of 32 bits
    assert packed == {"down_proj": 256 * 8 // 32, "up_proj": 128 * 4 // 32}
    assert loaded("out").model.get_submodule("model.layers.0.mlp.down_proj").bits == 8


def texts_shorter_than_a_window(model: str) -> None:
    rows = [json.dumps({"text": f"The {number}th text has forty tokens in all."}) for number in range(40)]
    Path("texts.jsonl").write_text("\n".join(rows))
    drawn = read_model(Path(model)).windows("texts.jsonl", samples=8, seqlen=128, seed=0)
    assert [len(row) for row in drawn.rows] == [128] * 8


def weights_in_memory(*sizes: int) -> int:
    """How many tensors of this shape, or turned, hold numbers."""
    gc.collect()
    tensors = [found for found in gc.get_objects() if issubclass(type(found), torch.Tensor)]
    return len({t.data_ptr() for t in tensors if not t.is_meta and sorted(t.shape) == sorted(sizes)})


def left_after_each_block(out: str, *sizes: int, **settings: Any) -> list[int]:
    """What `weights_in_memory` finds once a block's layers were packed and offloaded."""
    left: dict[int, int] = {}
    quantized = load("blocks", bits=4, group_size=32, wait_for_submodule_finalizers=True, **settings)

    def look(layer_idx: int, submodule_finalized: bool) -> None:
        if submodule_finalized:
            left[layer_idx] = weights_in_memory(*sizes)

    quantized.layer_callback = look
    rows = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in calibration_rows()]
    quantized.quantize(rows, batch_size=1, backend=BACKEND.TORCH)
    quantized.save(out)
    return [left[block] for block in sorted(left)]


def finished_blocks_leave_memory(_: str) -> None:
    # sizes that no other test's tensors have
    save_tiny(
        "llama", Path("blocks"), hidden_size=96, intermediate_size=160, num_hidden_layers=3,
        num_attention_heads=2,
    )  # fmt: skip
    assert left_after_each_block("plain", 96, 160, offload_to_disk=True) == [0, 0, 0]
    *left, last = left_after_each_block("offloaded", 96, 160, offload_to_disk=True, magr=True)
    assert left == [0, 0]
    # its unquantized copy, up to the run's end
    assert last <= 3
    left_after_each_block("held", 96, 160, magr=True)
    held, offloaded = (load_file(f"{name}/model.safetensors") for name in ("held", "offloaded"))
    assert held.keys() == offloaded.keys()
    assert all(torch.equal(held[name], offloaded[name]) for name in held)


@contextmanager
def chains_made() -> Iterator[list[UndamagedChain]]:
    """The unquantized chains that runs begin with here."""
    made: list[UndamagedChain] = []
    begin = UndamagedChain.__init__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UndamagedChain, "__init__", lambda self: (begin(self), made.append(self))[0])
        yield made


def values_that_later_blocks_share(_: str) -> None:
    """Blocks 2 and 3 read those of 0 and 1; in the unquantized chain, of the unquantized blocks 0 and 1."""
    folder = save_tiny(
        "gemma4_text", Path("shared"), hidden_size=64, intermediate_size=64, num_hidden_layers=4,
        num_attention_heads=2, num_key_value_heads=2, head_dim=32, global_head_dim=32,
        hidden_size_per_layer_input=0, num_kv_shared_layers=2,
        layer_types=["sliding_attention", "full_attention"] * 2,
    )  # fmt: skip
    with chains_made() as made:
        report = report_of(quantize(str(folder), bits=2, group_size=32, magr=True))
    assert len(report.reduced) == len(report.layers) == 2 * LAYERS + 2 * (LAYERS - 2)
    ((chain,), entered) = made, []
    original = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16)
    original.model.layers[3].register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    for row in calibration_rows():
        original(input_ids=row[None])
    for number, state in chain.states.items():
        torch.testing.assert_close(state, entered[number])
    # llm-compressor 0.14 traces transformers 5.17 so that every block gets an empty mapping of its own
    for modifier in (GPTQModifier, MagRGPTQModifier):
        with pytest.raises(KeyError, match="sliding_attention"):
            compress([modifier(config_groups=scheme(4, 32), ignore=["lm_head"])], str(folder))


def layers_that_are_not_quantized(model: str) -> None:
    inside = [["self_attn.q_proj", "self_attn.k_proj"], ["mlp.down_proj"]]
    others = {r"-:.*\.(v_proj|o_proj|gate_proj|up_proj)": {}}
    small: dict[str, Any] = {"bits": 4, "group_size": 32, "magr": True}
    by_gptqmodel = quantize(model, dynamic=others, **small)
    by_gptqmodel.save("dynamic")
    by_transformers = quantize_by_transformers(
        model, Path("modules_in_block_to_quantize"), modules_in_block_to_quantize=inside, **small
    )
    for name, told, run in (
        ("dynamic", others, by_gptqmodel),
        ("modules_in_block_to_quantize", inside, by_transformers),
    ):
        packed = {
            tensor.removesuffix(".qweight")
            for tensor in load_file(f"{name}/model.safetensors")
            if tensor.endswith(".qweight")
        }
        assert packed == {layer.name for layer in report_of(run).layers}
        assert packed == {f"model.layers.0.{layer}" for subset in inside for layer in subset}
        assert json.loads(Path(name, "config.json").read_text())["quantization_config"][name] == told


def windows_begin_as_a_text_does(_: str) -> None:
    """The tokenizer puts token 0 before a text, and one after it, which has no place in a window."""
    folder = save_tiny_model("llama", Path("begins"), begins=True)
    Path("text.txt").write_text("A text has no token of the tokenizer's own within it. " * 8)
    drawn = read_model(folder).windows("text.txt", samples=6, seqlen=32, seed=0).rows
    scored = read_windows(str(folder), {"text": "text.txt", "seqlen": 32}, None).tokens.tolist()
    assert len(drawn) == 6
    assert len(scored) > 6
    for window in (*drawn, *scored):
        assert len(window) == 32
        assert [place for place, token in enumerate(window) if token == 0] == [0]


class Report(NamedTuple):
    """threads: where it was told of. what: happened there. holds: asserts what we do, on a tiny model."""

    threads: str
    what: str
    holds: Callable[[str], None]


REPORTS = [
    Report(
        "GPTQModel #253", "a checkpoint in several files was not saved, or answered wrongly", shards_are_saved
    ),
    Report(
        "GPTQModel #1680, #2235", "experts that few tokens reached were not quantized", starved_with_fallback
    ),
    Report(
        "GPTQModel #1376, AutoGPTQ #736",
        "a layer that no token reached ended the run",
        starved_without_fallback,
    ),
    Report(
        "AutoGPTQ #572, #708",
        "the Cholesky factor of too uniform texts ended the run",
        one_token_over_and_over,
    ),
    Report("GPTQModel #328", "192 inputs in groups of 128 could not be loaded", odd_last_groups),
    Report("AutoGPTQ #306", "the loss was NaN with batches of more than one row", batches_of_unequal_rows),
    Report("vLLM #26092", "zero points were read as another format's", formats_are_what_the_config_says),
    Report("optimum #1360", "a model that transformers had saved could not be loaded", saved_by_transformers),
    Report("llm-compressor #2805", "an order was written that the runtime refused", no_order_of_magrs_own),
    Report(
        "compressed-tensors #447",
        "groups that don't divide a row failed at the end",
        groups_that_do_not_divide,
    ),
    Report(
        "llm-compressor #2952", "154 of 154 layers were rounded to nearest, unnoticed", all_rounded_to_nearest
    ),
    Report("llm-compressor #2826", "experts without a token got scales of NaN", scales_of_starved_experts),
    Report("GPTQModel #912", "GPT-2's weights, which lie transposed, were not turned", transposed_weights),
    Report("GPTQModel #1294", "with one group a row weights of zero were saved", one_group_a_row),
    Report(
        "neural-compressor #1614",
        "static groups in the order of importance lost their scales",
        static_groups_in_the_order_of_importance,
    ),
    Report("GPTQModel PR #825", "the search for steps could not be asked for", searched_steps),
    Report(
        "GPTQModel #2761",
        "an order within groups met rows that groups don't divide",
        an_order_within_uneven_groups,
    ),
    Report("GPTQModel #904", "blocks that were to be skipped were saved as zeros", skipped_blocks),
    Report(
        "Olive PR #2609", "calibration ran on fewer windows than asked, unnoticed", windows_as_many_as_asked
    ),
    Report("vLLM #48905", "negative scales were read as unsigned", scales_that_are_positive),
    Report("transformers #36822", "what enters a layer overflowed in float16", overflows),
    Report("llm-compressor PR #2798", "tied embeddings were saved twice", tied_embeddings),
    Report(
        "llm-compressor #2430, #2939",
        "experts in one weight were not matched, or saved under names that nobody reads",
        experts_have_names_of_their_own,
    ),
    Report("optimum PR #1216", "a model was saved in a way that read as gibberish", both_ways_of_saving),
    Report("GPTQModel #2435", "4 bits of a mixture ended in its first blocks", blocks_of_experts),
    Report(
        "AutoGPTQ #188", "groups lost ten times what whole rows lose, on an OPT model", groups_and_whole_rows
    ),
    Report("auto-round #773", "GPTQ's format was written without the bits of each layer", bits_by_layer),
    Report(
        "LlamaFactory #5650",
        "no text was as long as a window, which ended the run",
        texts_shorter_than_a_window,
    ),
    Report("AutoGPTQ #697", "masks could not be handed over with one's own texts", rows_with_masks),
    Report(
        "GPTQModel #2538",
        "the whole model stayed in memory though it was to be offloaded",
        finished_blocks_leave_memory,
    ),
    Report(
        "auto-round #1837",
        "blocks that read an earlier one's keys and values found none",
        values_that_later_blocks_share,
    ),
    Report(
        "vLLM PR #25455",
        "a checkpoint gave no sign which layers are not quantized",
        layers_that_are_not_quantized,
    ),
    Report(
        "Brevitas #1229",
        "no calibration window had the token that the tokenizer begins a text with",
        windows_begin_as_a_text_does,
    ),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(save_tiny_model("llama", tmp_path_factory.mktemp("reports") / "model"))


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: f"{report.threads}: {report.what}")
def test_what_was_reported_in_public_does_not_happen_or_is_told(
    report: Report, model: str, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with magr_gptq.enabled():
        report.holds(model)
