#!/usr/bin/env bash
# llm-compressor with a batch_size above 1 cuts every row of a batch to the shortest one.
#
# Guess:  rows of different lengths are padded, and at worst the padding is counted; no token of the text is lost.
# Seen:   seven rows of 64 tokens and one of 12, in one batch of 8: 12 tokens of each row are used, 96 of 460. The order
#         within the data does not matter, as one batch holds them all. With batch_size=1 all 460 are used. The only
#         hint is a warning in the middle of the log. data_collator="padding" takes all rows whole, and adds the padding.
# Why:    batch_size is taken for a matter of speed. Here it decides how much text calibrates the model: one short
#         paragraph costs its whole batch four fifths of its tokens.
# Ours:   all windows of our command have one length, so that nothing can be cut (a test says so); docs for scripts.
. "$(dirname "$0")/lib.sh"
install $TOOLKITS
see <<'PY'
import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from finding import expect, llama, rows, versions
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from transformers import AutoModelForCausalLM, AutoTokenizer

versions("torch", "transformers", "llmcompressor")
llama("model", dtype="float32")
lengths = [64] * 7 + [12]
texts = [row[:length].tolist() for row, length in zip(rows(8), lengths, strict=True)]


def entered(**options):
    """How many tokens, padding included, enter the first layer in its calibration pass."""
    model, seen = AutoModelForCausalLM.from_pretrained("model", dtype=torch.float32), []
    layer = model.model.layers[0].self_attn.q_proj
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[:2].numel()))
    arguments = QuantizationArgs(num_bits=4, group_size=32, strategy="group", symmetric=True)
    scheme = {"all": QuantizationScheme(targets=["Linear"], weights=arguments)}
    modifier = GPTQModifier(ignore=["lm_head"], config_groups=scheme)
    data = Dataset.from_dict({"input_ids": texts, "attention_mask": [[1] * len(text) for text in texts]})
    tokenizer = AutoTokenizer.from_pretrained("model")
    given = {"dataset": data, "tokenizer": tokenizer, "num_calibration_samples": 8}
    oneshot(model=model, recipe=[modifier], **given, **options)
    return sum(seen) // 2  # the pass is made again with the rounded weights


expect("tokens of the text", sum(lengths), True)
alone = entered(batch_size=1, max_seq_length=64)
expect("batch_size=1: tokens used", alone, alone == 460)
together = entered(batch_size=8, max_seq_length=64)
expect("batch_size=8: tokens used", together, together == 8 * 12)
padded = entered(batch_size=8, data_collator="padding")
expect('batch_size=8, data_collator="padding": tokens used', padded, padded == 8 * 64)
PY
