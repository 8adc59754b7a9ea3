"""vLLM's build for CPUs: log-probabilities of the whole vocabulary at every place of the prompt."""

import gc
import os

os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}

import numpy as np
from reading import answer
from vllm import LLM, SamplingParams


def logits(folder, tokens, _):
    model = LLM(
        folder, max_model_len=2 * tokens.shape[1], enforce_eager=True, max_logprobs=-1,
        enable_prefix_caching=False,
    )  # fmt: skip
    wanted = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=-1, logprobs=-1)
    rows = model.generate([{"prompt_token_ids": row.tolist()} for row in tokens], wanted)
    # the first token of a prompt has no prediction; what follows the last is the generated one's
    seen = np.stack(
        [[_row(at) for at in (*row.prompt_logprobs[1:], row.outputs[0].logprobs[0])] for row in rows]
    )
    del model
    gc.collect()
    return seen


def _row(found):
    row = np.empty(len(found))
    row[list(found)] = [entry.logprob for entry in found.values()]
    return row


if __name__ == "__main__":
    answer(logits, "vllm-cpu", "compressed-tensors", "transformers", "torch")
