#!/usr/bin/env bash
# What a layer's Hessian has seen of the layers before it: three toolkits, three answers.
#
# Guess:  a Hessian is of the inputs that the quantized model gives, as in GPTQ's own code: a layer sees every block
#         before its own quantized, and the layers before it in its block too ("true sequential").
# Seen:   Quark: both. neural-compressor: the blocks before, not the block's own layers. ModelOpt: neither, all
#         Hessians are of the unquantized model; layerwise={"enable": True} gives it the blocks before.
# Why:    errors pile up where no layer makes up for those before it, and "GPTQ, 4 bits, the same text" of
#         three toolkits are three methods. A method that aims at the unquantized model's output has a different part
#         left to do in each.
# Ours:   we extend none of the three; in those that we extend, target="model" makes up for the layers before, from the
#         inputs of both chains.
. "$(dirname "$0")/lib.sh"
install $PEERS
see <<'PY'
import modelopt.torch.quantization as mtq
import torch
from finding import expect, llama, rows, versions
from neural_compressor.torch.quantization import GPTQConfig, convert, prepare
from quark.torch import ModelQuantizer
from quark.torch.quantization.config.config import GPTQConfig as QuarkGPTQ
from quark.torch.quantization.config.config import Int4PerGroupSpec, Int8PerGroupSpec, QConfig, QLayerConfig
from transformers import AutoModelForCausalLM

versions("torch", "neural-compressor-pt", "nvidia-modelopt", "amd-quark")
llama("model", layers=2, dtype="float32")
tokens = rows(8)
# earlier layers, and one behind them whose codes tell whether their width mattered to it
NEIGHBOURS = ([f"model.layers.0.mlp.{n}_proj" for n in ("gate", "up")], "model.layers.0.mlp.down_proj")
attention = [f"model.layers.0.self_attn.{n}_proj" for n in "qkvo"]
BLOCK = ([*attention, *NEIGHBOURS[0], NEIGHBOURS[1]], "model.layers.1.self_attn.q_proj")


def load():
    return AutoModelForCausalLM.from_pretrained("model", dtype=torch.float32)


def calibrate(model):
    for row in tokens:
        model(row[None])


def by_neural_compressor(finer):
    config = GPTQConfig(bits=4, group_size=32)
    for name in finer:
        config.set_local(name, GPTQConfig(bits=8, group_size=32))
    model = prepare(load(), config)
    calibrate(model)
    layers = dict(convert(model).named_modules())
    return lambda name: layers[name].qweight


def by_modelopt(finer, **options):
    four, eight = ({"num_bits": bits, "block_sizes": {-1: 32}} for bits in (4, 8))
    settings = [{"quantizer_name": "*", "enable": False}, {"quantizer_name": "*weight_quantizer", "cfg": four}]
    settings += [{"quantizer_name": f"{name}.weight_quantizer", "cfg": eight} for name in finer]
    settings += [{"quantizer_name": "*lm_head*", "enable": False}]
    config = {"quant_cfg": settings, "algorithm": {"method": "gptq", **options}}
    layers = dict(mtq.quantize(load(), config, calibrate).named_modules())
    return lambda name: layers[name].weight


def by_quark(finer):
    def layer(grid):
        spec = grid(symmetric=True, ch_axis=-1, is_dynamic=False, scale_type="float", group_size=32)
        return QLayerConfig(weight=spec.to_quantization_spec())

    names = ["self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj", "self_attn.o_proj"]
    names += ["mlp.up_proj", "mlp.gate_proj", "mlp.down_proj"]
    method = QuarkGPTQ(desc_act=False, inside_layer_modules=names, model_decoder_layers="model.layers")
    finer = {name: layer(Int8PerGroupSpec) for name in finer}
    widths = {"global_quant_config": layer(Int4PerGroupSpec), "layer_quant_config": finer}
    quantizer = ModelQuantizer(QConfig(**widths, algo_config=[method], exclude=["lm_head"]))
    model = quantizer.quantize_model(load(), torch.utils.data.DataLoader(tokens, batch_size=1))
    layers = dict(model.named_modules())
    return lambda name: layers[name].weight


def seen(quantize, earlier, layer):
    """Whether the layer's codes depend on how finely the earlier ones were rounded."""
    coarse, fine = quantize([]), quantize(earlier)
    assert not torch.equal(coarse(earlier[0]), fine(earlier[0]))
    return not torch.equal(coarse(layer), fine(layer))


def layerwise(finer):
    return by_modelopt(finer, layerwise={"enable": True})


KNOWN = [("Quark", by_quark, True, True), ("neural-compressor", by_neural_compressor, True, False)]
KNOWN += [("ModelOpt", by_modelopt, False, False), ("ModelOpt, layerwise", layerwise, True, False)]
for name, quantize, blocks, neighbours in KNOWN:
    found = seen(quantize, *BLOCK)
    expect(f"{name}: sees the block before quantized", found, found == blocks)
    found = seen(quantize, *NEIGHBOURS)
    expect(f"{name}: sees the layers before it in its block quantized", found, found == neighbours)
PY
