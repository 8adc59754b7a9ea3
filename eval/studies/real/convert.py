"""A GGUF of a Llama or of Gemma 3 (text) as an ordinary Hugging Face folder.

Weights are dequantized by the package `gguf`; names and shapes are mapped here, and the tokenizer is built
from the GGUF's metadata. No loader of transformers takes part: what is measured depends on `gguf` alone.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor

ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
MLP = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
NAMES = {
    "llama": {**ATTENTION, **MLP, "ffn_norm": "post_attention_layernorm"},
    "gemma3": {
        **ATTENTION,
        **MLP,
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
}
WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
# kinds of tokens in a GGUF
NORMAL, CONTROL, ADDED = 1, 3, 4

Meta = dict[str, Any]


def convert(path: Path, out: Path, dtype: torch.dtype) -> None:
    """Write config.json, model.safetensors and the tokenizer's files into the folder `out`."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    meta: Meta = {name: field.contents() for name, field in reader.fields.items()}
    out.mkdir(parents=True, exist_ok=True)
    state = weights(reader, meta, dtype)
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    settings = config(meta, tied="lm_head.weight" not in state, dtype=dtype)
    _write(out / "config.json", settings)
    _write(out / "generation_config.json", {key: settings[key] for key in ("bos_token_id", "eos_token_id")})
    tokenizer(meta).save(str(out / "tokenizer.json"))
    _write(out / "tokenizer_config.json", tokenizer_config(meta, settings))


def weights(reader: Any, meta: Meta, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every tensor under its name in transformers, dequantized."""
    from gguf.quants import dequantize

    found = {}
    for tensor in reader.tensors:
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()).float()
        name, values = _renamed(tensor.name, values, meta)
        found[name] = values.to(dtype).contiguous()
    return found


def _renamed(name: str, values: Tensor, meta: Meta) -> tuple[str, Tensor]:
    kind = meta["general.architecture"]
    if kind == "gemma3" and name.endswith("norm.weight"):
        values = values - 1.0  # llama.cpp stores 1 + w
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if not match:
        return WHOLE[name], values
    layer, part, what = match.groups()
    if kind == "llama" and part in ("attn_q", "attn_k"):
        values = _halves_apart(values, meta[f"llama.attention.head_count{'_kv' if part == 'attn_k' else ''}"])
    return f"model.layers.{layer}.{NAMES[kind][part]}.{what}", values


def _halves_apart(matrix: Tensor, heads: int) -> Tensor:
    """llama.cpp interleaves the two halves that a rotary embedding turns; transformers keeps them apart."""
    rows, columns = matrix.shape
    return matrix.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def config(meta: Meta, *, tied: bool, dtype: torch.dtype) -> Meta:
    """config.json of a LlamaForCausalLM or a Gemma3ForCausalLM."""
    kind = meta["general.architecture"]

    def of(key: str) -> Any:
        return meta[f"{kind}.{key}"]

    common = {
        "vocab_size": len(meta["tokenizer.ggml.tokens"]),
        "hidden_size": of("embedding_length"),
        "intermediate_size": of("feed_forward_length"),
        "num_hidden_layers": of("block_count"),
        "num_attention_heads": of("attention.head_count"),
        "num_key_value_heads": of("attention.head_count_kv"),
        "max_position_embeddings": of("context_length"),
        "rms_norm_eps": round(of("attention.layer_norm_rms_epsilon"), 9),
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "tie_word_embeddings": tied,
        "attention_bias": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
        # without one, transformers 5 warns of another model's tokenizer
        "transformers_version": "4.55.0",
    }
    own = _gemma3(of) if kind == "gemma3" else _llama(of)
    return {**own, **common}


def _llama(of: Any) -> Meta:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "rope_theta": of("rope.freq_base"),
        "head_dim": of("embedding_length") // of("attention.head_count"),
    }


def _gemma3(of: Any) -> Meta:
    """As google/gemma-3-270m; GPTQModel 7.6 adds flat keys to rope_parameters unless they are there."""
    local = {"rope_type": "default", "rope_theta": 10000.0}
    whole = {"rope_type": "default", "rope_theta": of("rope.freq_base")}
    rope = {"sliding_attention": local, "full_attention": whole, "rope_type": local, "rope_theta": local}
    layers = range(1, of("block_count") + 1)
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "head_dim": of("attention.key_length"),
        "query_pre_attn_scalar": of("attention.key_length"),
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_parameters": rope,
        "sliding_window": of("attention.sliding_window"),
        "layer_types": ["full_attention" if layer % 6 == 0 else "sliding_attention" for layer in layers],
    }


def tokenizer(meta: Meta) -> Tokenizer:
    """Gemma's SentencePiece or SmolLM's bytes, by what the GGUF says."""
    return _pieces(meta) if meta["tokenizer.ggml.model"] == "llama" else _bytes(meta)


def _pieces(meta: Meta) -> Tokenizer:
    """SentencePiece BPE: merges in the order of the merged piece's score, as Gemma's is converted."""
    pieces, scores, kinds = (meta[f"tokenizer.ggml.{key}"] for key in ("tokens", "scores", "token_type"))
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    normal = {piece for piece, kind in zip(pieces, kinds, strict=True) if kind == NORMAL}
    merges: list[tuple[str, str, float]] = []
    for piece in (piece for piece in pieces if piece in normal):
        cuts = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        pairs = [pair for pair in cuts if pair[0] in normal and pair[1] in normal]
        pairs.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        merges += [(left, right, scores[vocabulary[piece]]) for left, right in pairs]
    merges.sort(key=lambda merge: merge[2], reverse=True)
    found = Tokenizer(
        models.BPE(
            vocabulary, [(left, right) for left, right, _ in merges], unk_token="<unk>", fuse_unk=True,
            byte_fallback=True,
        )
    )  # fmt: skip
    found.normalizer = normalizers.Replace(" ", "▁")
    found.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    found.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    _add_special(found, meta)
    found.add_tokens(
        [
            AddedToken(p, normalized=True, special=False)
            for p, k in zip(pieces, kinds, strict=True)
            if k == ADDED
        ]
    )
    start = meta["tokenizer.ggml.bos_token_id"]
    found.post_processor = processors.TemplateProcessing(
        single=f"{pieces[start]} $A", special_tokens=[(pieces[start], start)]
    )
    return found


def _bytes(meta: Meta) -> Tokenizer:
    """Byte-level BPE as GPT-2's, with SmolLM's splitting of digits."""
    vocabulary = {piece: number for number, piece in enumerate(meta["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]]
    found = Tokenizer(models.BPE(vocabulary, merges, fuse_unk=False))
    found.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )
    found.decoder = decoders.ByteLevel()
    found.post_processor = processors.ByteLevel(trim_offsets=True)
    _add_special(found, meta)
    return found


def _add_special(found: Tokenizer, meta: Meta) -> None:
    pairs = zip(meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"], strict=True)
    found.add_special_tokens(
        [AddedToken(p, normalized=False, special=True) for p, k in pairs if k == CONTROL]
    )


def tokenizer_config(meta: Meta, settings: Meta) -> Meta:
    """tokenizer_config.json, with the special tokens by their names."""
    pieces = meta["tokenizer.ggml.tokens"]
    keys = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {name: meta.get(f"tokenizer.ggml.{key}_token_id") for name, key in keys.items()}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": settings["max_position_embeddings"],
        **{name: pieces[number] for name, number in ids.items() if number is not None},
    }


def _write(path: Path, content: Meta) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
