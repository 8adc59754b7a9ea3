"""What later layers undo of an error, where each comes near the unquantized model's output.

Measured in eval/studies/bits.
"""

from __future__ import annotations

import re

# of what an error that goes into attention would cost alone, what is left: the layer after attention has the
# error in its input
LEFT_BEFORE_ATTENTION = 0.7
# tokens of a window whose errors are undone: the first sees itself alone, so its state is loud and nearly the
# same in all windows, and its error is one direction
FIRST = 1
# but for its key: every query is compared with it, and finds another error
KEY = r"\b(?:k_proj|key|key_proj|wk)$"
AFTER_ATTENTION = r"\b(?:o_proj|out_proj|c_proj|proj|dense|wo)$"


def goes_into_attention(layer: str) -> bool:
    """Whether the layer's outputs are queries, keys or values, by its name."""
    return bool(re.search(r"attn|attention", layer) and not re.search(AFTER_ATTENTION, layer))


def first_undone(layer: str) -> int:
    """The first tokens of a window that count nothing in this layer, by its name."""
    return 0 if re.search(KEY, layer) else FIRST
