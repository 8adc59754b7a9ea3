"""Mutations have their place in the package of today: one that had moved would end a run of all."""

from __future__ import annotations

from pathlib import Path

import pytest

import magr_gptq
from tools.mutations import MUTATIONS, Mutation, broken

PACKAGE = Path(magr_gptq.__file__).parent


@pytest.mark.parametrize("file", sorted({mutation.file for mutation in MUTATIONS}))
def test_every_mutation_changes_one_place(file: str) -> None:
    text = (PACKAGE / file).read_text(encoding="utf-8")
    for mutation in MUTATIONS:
        if mutation.file == file:
            assert broken(text, mutation) != text


def test_a_text_that_has_moved_is_told() -> None:
    with pytest.raises(RuntimeError, match="holds 0 times: nowhere"):
        broken("text", Mutation("a.py", "nowhere", "", "prox"))
