#!/usr/bin/env bash
# auto-round's enable_alg_ext changes nothing where grids are asymmetric, bit for bit.
#
# Guess:  the extended algorithm is another way to tune, so it changes both kinds of grids, most of all at 2 bits.
# Seen:   of symmetric grids it changes the start: scales lie between 0.4 and 1.6 times the one that just covers the
#         largest weight, without it between 0.6 and 1. With sym=False the weights are those of a run without it, to the
#         last bit, and the log doesn't say so.
# Why:    auto-round's best results at 2 bits have this switch, and asymmetric grids are what many take at 2 bits. Both
#         together are the ordinary result under the better one's name.
# Ours:   our comparison with auto-round is on symmetric grids, with its own settings otherwise, so without this switch.
. "$(dirname "$0")/lib.sh"
install $PEERS
see <<'PY'
import torch
from auto_round import AutoRound
from finding import expect, llama, rows, versions
from transformers import AutoModelForCausalLM, AutoTokenizer

versions("torch", "transformers", "auto-round")
llama("model", dtype="float32")
tokenizer = AutoTokenizer.from_pretrained("model")
data = [{"input_ids": row[None], "attention_mask": torch.ones(1, 64, dtype=torch.long)} for row in rows(16)]


def load():
    return AutoModelForCausalLM.from_pretrained("model", dtype=torch.float32)


largest = load().model.layers[0].self_attn.q_proj.weight.detach().view(-1, 32).abs().amax(1)


def tuned(sym, extended):
    """q_proj's weight after 10 steps at 2 bits in groups of 32, and its scales over those of the largest weight."""
    run = AutoRound(
        load(), tokenizer, bits=2, group_size=32, sym=sym, iters=10, nsamples=16, seqlen=64, batch_size=4,
        dataset=data, enable_alg_ext=extended, device_map="cpu",
    )
    layer = run.quantize()[0].model.layers[0].self_attn.q_proj
    return layer.weight.detach(), layer.scale.flatten().abs() / (largest / 2)


def span(scales):
    return f"{float(scales.min()):.2f} to {float(scales.max()):.2f}"


plain, extended = tuned(True, False), tuned(True, True)
expect("symmetric, without it: scales, one covers the largest weight", span(plain[1]), float(plain[1].max()) < 1.05)
expect("symmetric, with it: the same", span(extended[1]), float(extended[1].max()) > 1.2)
same = torch.equal(tuned(False, False)[0], tuned(False, True)[0])
expect("asymmetric: the same weights with it and without", same, same)
PY
