"""Tiny models on disk: random weights, whose first rows drive zero points to both ends."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.pytorch_utils import Conv1D

LENGTH = 64
SHAPES = {
    "llama": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 2},
    "two-blocks": {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
    # 192 = 128 + 64: the last group of 128 is short
    "tail": {"hidden_size": 192, "intermediate_size": 320, "num_hidden_layers": 1, "num_attention_heads": 2},
    # 160 = 2·64 + 32: padded by GPTQModel for tensor parallelism
    "padded": {
        "hidden_size": 160,
        "intermediate_size": 320,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    },
    "gpt2": {"n_embd": 128, "n_layer": 1, "n_head": 2},
}


def save_tiny_model(shape: str, folder: Path, seed: int = 0, begins: bool = False) -> Path:
    """A float16 model folder with a byte tokenizer, which transformers 4 and 5 both read.

    begins: the tokenizer puts a token before every text, and one after it.
    """
    torch.manual_seed(seed)
    kind = "gpt2" if shape == "gpt2" else "llama"
    tokenizer = byte_tokenizer(begins)
    config = AutoConfig.for_model(
        kind, vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, pad_token_id=0, **SHAPES[shape]
    )
    model = AutoModelForCausalLM.from_config(config)
    for module in model.model.modules() if kind == "llama" else model.transformer.modules():
        if isinstance(module, (torch.nn.Linear, Conv1D)):
            _spread(module.weight.data.t() if isinstance(module, Conv1D) else module.weight.data)
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _rewrite(folder / "config.json", torch_dtype="float16")
    _rewrite(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    return folder


def byte_tokenizer(begins: bool = False) -> PreTrainedTokenizerFast:
    """One token a byte, and an end-of-text token, which may stand before and after every text, too."""
    alphabet = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
        )
    end = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "<|endoftext|>")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **end)


def calibration_rows(count: int = 8, length: int = LENGTH) -> torch.Tensor:
    """Token ids [count, length]."""
    return torch.randint(1, 257, (count, length), generator=torch.Generator().manual_seed(7))


def _spread(weight: torch.Tensor) -> None:
    """A few outliers everywhere; row 0 never negative, row 1 never positive."""
    outliers = torch.rand_like(weight) > 0.98
    weight.mul_(torch.where(outliers, 5.0, 1.0))
    weight[0].abs_()
    weight[1].abs_().neg_()


def _rewrite(path: Path, **changes: str) -> None:
    settings = json.loads(path.read_text())
    settings.pop("dtype", None)
    path.write_text(json.dumps({**settings, **changes}))
