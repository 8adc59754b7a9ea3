"""llm-compressor's kernel that can't take a negative step, and how it is left out.

On a GPU llm-compressor 0.14 rounds each block of columns by a Triton kernel (`gptq_block_update` in
`modifiers.gptq.gptq_quantize`), which raises every scale to at least 1.2e-38. On a mirrored grid, whose step
is negative, all weights would become about zero. Its eager loop, which a CPU always takes, divides by the
step as it is. Before each block llm-compressor reads an environment variable of its own, which leaves out
the kernel.

compressed-tensors' Triton kernel, which makes the codes of weights on a GPU, takes negative steps.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

SWITCH = "LLMCOMPRESSOR_DISABLE_GPTQ_TRITON"


@contextmanager
def eager_where(mirrored: bool) -> Iterator[None]:
    """Have llm-compressor round by its eager loop where steps may be negative; its variable is put back."""
    before = os.environ.get(SWITCH)
    if mirrored:
        os.environ[SWITCH] = "1"
    try:
        yield
    finally:
        if mirrored:
            _put_back(before)


def _put_back(before: str | None) -> None:
    if before is None:
        os.environ.pop(SWITCH, None)
    else:
        os.environ[SWITCH] = before
