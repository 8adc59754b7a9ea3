"""mlx-lm on a CPU."""

import mlx.core as mx
import numpy as np
from mlx_lm import load
from reading import answer


def logits(folder, tokens, _):
    model, _tokenizer = load(folder)
    return np.array(model(mx.array(tokens)).astype(mx.float32))


answer(logits, "mlx-lm", "mlx")
