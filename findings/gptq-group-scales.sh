#!/usr/bin/env bash
# The same layer through five toolkits' GPTQ: four of them take the scales from weights that were not yet corrected.
#
# Guess:  a group's scale is taken when the rounding reaches the group, from weights that carry the errors of all
#         columns before it, as in the paper: only the first group's scale is that of the unquantized weight.
# Seen:   GPTQModel corrects later weights block by block (128 columns): the scales of the first 128 columns are
#         those of the unquantized weight, with groups of 32 four of eight. neural-compressor does the same with
#         blocks of 2048, so in a layer of up to 2048 columns every scale is. llm-compressor, Quark and
#         ModelOpt take all scales from the unquantized weight on purpose ("static").
# Why:    the same name, bits and group size are different methods: groups shorter than a block cost something in
#         one toolkit and nothing in another, and a change of the block size, sold as speed, changes the result.
# Ours:   the weight is reduced before any scale is taken, so all of these gain; the block size is the toolkit's.
. "$(dirname "$0")/lib.sh"
install $TOOLKITS
cat >shares.py <<'PY'
import torch
from finding import llama, rows
from transformers import AutoModelForCausalLM

if not __import__("os").path.exists("model"):
    llama("model", hidden=256)
tokens = rows(16)


def load():
    return AutoModelForCausalLM.from_pretrained("model", dtype=torch.float32)


def query(model):
    return model.model.layers[0].self_attn.q_proj


weight = query(load()).weight.detach()


def unquantized(scales):
    """For each of 8 groups of 32 columns, whether its scales [256 rows] are 2 max|w| / 15 of the unquantized weight."""
    scales = scales.detach().float()
    scales = scales.T if scales.shape[0] == 8 else scales.reshape(256, 8)
    share = ((scales / (weight.view(256, 8, 32).abs().amax(2) * 2 / 15) - 1).abs() < 2e-3).float().mean(0)
    return [int(group > 0.9) for group in share]
PY
see <<'PY'
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from finding import expect, versions
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from shares import load, query, tokens, torch, unquantized

versions("torch", "transformers", "gptqmodel", "llmcompressor", "compressed-tensors")
config = QuantizeConfig(bits=4, group_size=32, act_group_aware=False, offload_to_disk=False, device="cpu")
model = GPTQModel.load("model", config, backend=BACKEND.TORCH, dtype=torch.float16)
data = [{"input_ids": row.tolist(), "attention_mask": [1] * 64} for row in tokens]
model.quantize(data, batch_size=1, backend=BACKEND.TORCH)
seen = unquantized(query(model.model).scales)
expect("GPTQModel: groups with the unquantized weight's scale", seen, seen == [1, 1, 1, 1, 0, 0, 0, 0])

arguments = QuantizationArgs(num_bits=4, group_size=32, strategy="group", symmetric=True)
scheme = {"all": QuantizationScheme(targets=["Linear"], weights=arguments)}
model = load()
data = Dataset.from_dict({"input_ids": tokens.tolist(), "attention_mask": [[1] * 64] * 16})
modifier = GPTQModifier(ignore=["lm_head"], config_groups=scheme)
oneshot(model=model, dataset=data, recipe=[modifier], num_calibration_samples=16, max_seq_length=64)
seen = unquantized(query(model).weight_scale)
expect("llm-compressor: groups with the unquantized weight's scale", seen, seen == [1] * 8)
PY
install $PEERS
see <<'PY'
import modelopt.torch.quantization as mtq
from finding import expect, versions
from neural_compressor.torch.quantization import GPTQConfig, convert, prepare
from quark.torch import ModelQuantizer
from quark.torch.quantization.config.config import GPTQConfig as QuarkGPTQ
from quark.torch.quantization.config.config import Int4PerGroupSpec, QConfig, QLayerConfig
from shares import load, query, tokens, torch, unquantized

versions("transformers", "neural-compressor-pt", "nvidia-modelopt", "amd-quark")
for block, expected in ((2048, [1] * 8), (128, [1, 1, 1, 1, 0, 0, 0, 0])):
    model = prepare(load(), GPTQConfig(bits=4, group_size=32, **({} if block == 2048 else {"block_size": block})))
    for row in tokens:
        model(row[None])
    seen = unquantized(query(convert(model)).scales)
    expect(f"neural-compressor, blocks of {block}: the same", seen, seen == expected)

weights = {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": 4, "block_sizes": {-1: 32}}}
off = [{"quantizer_name": name, "enable": False} for name in ("*input_quantizer", "*lm_head*")]
settings = {"quant_cfg": [weights, *off], "algorithm": {"method": "gptq"}}
model = mtq.quantize(load(), settings, lambda model: [model(row[None]) for row in tokens])
seen = unquantized(query(model).weight_quantizer.amax * 2 / 15)
expect("ModelOpt: the same", seen, seen == [1] * 8)

names = ["self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj", "self_attn.o_proj"]
names += ["mlp.up_proj", "mlp.gate_proj", "mlp.down_proj"]
grid = Int4PerGroupSpec(symmetric=True, ch_axis=-1, is_dynamic=False, scale_type="float", group_size=32)
method = QuarkGPTQ(desc_act=False, inside_layer_modules=names, model_decoder_layers="model.layers")
layers = QLayerConfig(weight=grid.to_quantization_spec())
quantizer = ModelQuantizer(QConfig(global_quant_config=layers, algo_config=[method], exclude=["lm_head"]))
model = quantizer.quantize_model(load(), torch.utils.data.DataLoader(tokens, batch_size=1))
seen = unquantized(query(model)._weight_quantizer.scale)
expect("Quark: the same", seen, seen == [1] * 8)
PY
