"""Whose work a sampled stack is."""

from __future__ import annotations

import pytest

from eval.studies.profile.table import owner, samples

LOOP = "loop (gptqmodel/looper/module_looper.py:1524)"
STEP = "settle (magr_gptq/rounding/settle.py:57)"
PRODUCT = "einsum (torch/functional.py:372)"
LAYER = "Linear.forward (torch/nn/modules/linear.py:134)"
MODEL = "LlamaMLP.forward (transformers/models/llama/modeling_llama.py:90)"


@pytest.mark.parametrize(
    ("frames", "whose"),
    [
        ([LOOP, PRODUCT], "gptqmodel"),
        ([LOOP, STEP, PRODUCT], "`magr_gptq/rounding/settle.py`, `settle`"),
        ([STEP, LOOP], "gptqmodel"),
        (
            [LOOP, MODEL, "HookedLinear.forward (gptqmodel/nn_modules/hooked_linear.py:334)", LAYER],
            "forward passes",
        ),
        (
            [LOOP, "Original.run (magr_gptq/toolkits/original.py:60)", MODEL, LAYER],
            "`the unquantized chain's forward passes`",
        ),
        (["_call (<frozen importlib._bootstrap>:241)"], "imports"),
        (['process 12:"python"', PRODUCT], "everything else"),
    ],
)
def test_it_is_that_of_the_innermost_function_that_has_an_owner(frames: list[str], whose: str) -> None:
    assert owner(frames) == whose


def test_every_line_is_a_stack_and_how_often_it_was_seen() -> None:
    assert list(samples(f"{LOOP};{PRODUCT} 12\n{LAYER} 3\n")) == [([LOOP, PRODUCT], 12), ([LAYER], 3)]
