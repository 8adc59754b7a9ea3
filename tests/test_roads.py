"""The demo's model over every installed road, with and without magr, scored by a vanilla process."""

from __future__ import annotations

from pathlib import Path

import pytest
import roads

# 64 of the default's 128 windows, and 64 scored ones, tell the sides apart: GPTQ's loss at 2 bits
# is 9, at 3 bits 1; at 4 bits, 0.2, they may lie level
SMALLER = {4: -0.1, 3: 0.02, 2: 1.0}


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch) -> Path:
    """GPTQModel writes ./logs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("bits", roads.BITS)
@pytest.mark.parametrize("road", roads.installed_roads())
def test_magr_is_better_on_every_road(road: str, bits: int, scratch: Path) -> None:
    plain, reduced = (
        roads.measure(road, bits, magr, rows=64, limit=64, log=scratch / "log")["perplexity"]
        for magr in (False, True)
    )
    assert reduced < plain - SMALLER[bits]


def test_every_environment_has_its_roads() -> None:
    found = set(roads.installed_roads())
    assert found in ({"AutoGPTQ"}, set(roads.ROADS) - {"AutoGPTQ"})
