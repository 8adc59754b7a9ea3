"""A config or tokenizer that cannot be saved is found before the work."""

from __future__ import annotations

import pytest

from magr_gptq.app.quantizing.savable import require_savable
from magr_gptq.errors import InputError


class Spoilt:
    def save_pretrained(self, _: str) -> None:
        raise AttributeError("'str' object has no attribute 'get'")


def test_what_cannot_be_saved_names_the_engine_and_the_cause() -> None:
    with pytest.raises(InputError, match=r"with optimum the Spoilt .* \(AttributeError: 'str' object has no"):
        require_savable(Spoilt(), "optimum")
