"""The demo's model over every installed road, with and without magr, scored by a vanilla process."""

from __future__ import annotations

import pytest

import magr_gptq
from eval.studies.roads import run as roads

pytestmark = pytest.mark.long

# GPTQ's loss is 8 at 2 bits, 1 at 3 bits; at 4 bits, 0.2, the sides may lie level
LEAST_GAIN = {4: -0.1, 3: 0.02, 2: 1.0}


@pytest.fixture(scope="module", params=roads.installed_roads())
def perplexities(request, tmp_path_factory) -> dict[tuple[int, bool], float]:
    """Of every checkpoint of a road, by bits and magr."""
    with pytest.MonkeyPatch.context() as patch:
        # GPTQModel writes ./logs
        patch.chdir(tmp_path_factory.mktemp("road"))
        found = roads.measure(request.param, roads.CELLS, rows=16, limit=16, log=roads.Path("log"))
    return {cell: score["perplexity"] for cell, score in found.items()}


@pytest.mark.parametrize("bits", roads.BITS)
def test_magr_is_better_on_every_road(perplexities: dict[tuple[int, bool], float], bits: int) -> None:
    assert perplexities[bits, True] < perplexities[bits, False] - LEAST_GAIN[bits]


UNKNOWN, CONFLICT = {"betta": 0.9}, {"alpha": 1e-3, "strength": 0.1}


@pytest.mark.parametrize(("setting", "named"), [(UNKNOWN, "betta"), (CONFLICT, "strength")])
@pytest.mark.parametrize("road", roads.installed_roads())
def test_what_makes_no_sense_is_refused_by_name(road: str, setting: dict, named: str, tmp_path) -> None:
    toolkit, quantize = roads.ROADS[road].toolkit, roads.ROADS[road].quantize
    with magr_gptq.enabled(toolkit), pytest.raises((ValueError, TypeError), match=named):
        quantize(roads.Task(3, setting, ["some text"], tmp_path))


def test_every_environment_has_its_roads() -> None:
    assert set(roads.installed_roads()) in ({"AutoGPTQ"}, set(roads.ROADS) - {"AutoGPTQ"})
