#!/usr/bin/env bash
# lm-eval adds up log-likelihoods in the model's dtype: in bfloat16 a sum near 800 moves in steps of 4.
#
# Guess:  a log-likelihood is summed in float32, whatever the model's dtype, or the difference is some 1e-3.
# Seen:   both log_softmax and sum are in bfloat16: sums of 150 tokens are multiples of 4; differences of less than half
#         a percent between two quantized models vanish or double. softmax_dtype="float32" cures it.
# Why:    answers of multiple-choice tasks tie or flip by rounding, and a small gain in perplexity cannot be seen.
# Ours:   our scorer sums in float32 and more; comparisons with lm-eval pass softmax_dtype="float32".
. "$(dirname "$0")/lib.sh"
install $TOOLKITS
see <<'PY'
from finding import expect, llama, rows, versions
from lm_eval.models.huggingface import HFLM

versions("torch", "transformers", "lm-eval")
llama("model", dtype="bfloat16")
requests = [(("", ""), row[:2].tolist(), row[2:].tolist()) for row in rows(8, 152)]


def sums(**options):
    model = HFLM(pretrained="model", dtype="bfloat16", device="cpu", batch_size=1, **options)
    return [answer[0] for answer in model._loglikelihood_tokens(requests, disable_tqdm=True)]


plain, exact = sums(), sums(softmax_dtype="float32")
expect("as it is: sums", plain, all(value % 4 == 0 for value in plain))
expect('softmax_dtype="float32": sums', [round(value, 3) for value in exact], any(value % 4 != 0 for value in exact))
off = max(abs(a - b) for a, b in zip(plain, exact, strict=True))
expect("largest difference", off, off > 0.5)
PY
