"""Every recipe follows the rules; what breaks one is named."""

from __future__ import annotations

import copy
import json

import pytest
from places import ROOT

from magr_gptq.app.comparing.recipe import load_recipe
from magr_gptq.errors import InputError

FOLDER = ROOT / "eval" / "recipes"
NAMES = ("llama1-13b", "llama1-30b", "llama1-65b", "llama1-7b", "llama2-13b", "llama2-70b", "llama2-7b")


def test_the_recipes_are_all_here() -> None:
    assert tuple(sorted(path.stem for path in FOLDER.glob("*.json"))) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_valid_and_orderly(name: str) -> None:
    recipe = load_recipe(FOLDER / f"{name}.json")
    unquantized = recipe.published["unquantized", 16, -1]
    for key, published in recipe.published.items():
        for text in ("wikitext2", "c4"):
            value = published.get(text)
            # a number out of line was typed wrong: nothing beats the unquantized model
            assert value is None or value >= unquantized[text], key
        for task in recipe.tasks:
            assert published.get(task, 0) <= unquantized[task], key
    for bits in (2, 3, 4):
        for text in ("wikitext2", "c4"):
            plain = recipe.published["gptq", bits, -1].get(text)
            method = "paper+30" if bits == 2 else "paper"
            assert plain is None or recipe.published[method, bits, -1][text] < plain
    assert recipe.ranks is not None
    # the paper's windows are those of GPTQ's code
    assert recipe.cut == "stream"
    assert list(recipe.ranks.values()) == sorted(recipe.ranks.values())


def test_some_numbers_of_the_paper() -> None:
    seven = load_recipe(FOLDER / "llama2-7b.json")
    assert seven.published["paper", 3, 128] == {"wikitext2": 6.00, "c4": 7.77}
    assert seven.published["gptq", 2, -1] == {"wikitext2": 7700.0, "c4": None}
    assert seven.published["paper", 4, -1]["piqa"] == 78
    assert seven.published["paper+30", 2, -1]["wikitext2"] == 16.73
    first = load_recipe(FOLDER / "llama1-65b.json")
    assert first.published["paper+rtn", 3, -1] == {"wikitext2": 4.79, "c4": 6.87}
    assert first.tasks == []


def _without(key: str):
    return lambda values: values.pop(key)


def _cell(**changes: object):
    return lambda values: values["cells"][1].update(changes)


BROKEN = {
    "lacks": (_without("model"), "the recipe lacks 'model'"),
    "unknown": (lambda v: v.update(bits=3), "the recipe has the unknown key 'bits'"),
    "type": (lambda v: v.update(samples="128"), "the recipe has samples = '128', of the wrong kind"),
    "cut": (lambda v: v.update(cut="words"), "the recipe has cut = 'words', not one of tokenizer, stream"),
    "bool": (lambda v: v.update(samples=True), "the recipe has samples = True, of the wrong kind"),
    "method": (_cell(method="awq"), "cells[1] has the method 'awq'"),
    "bits": (_cell(bits=5), "cells[1] has 5 bits"),
    "group": (_cell(group_size=0), "cells[1] has the group size 0"),
    "text": (_cell(published={"ptb": 5.0}), "cells[1].published has 'ptb', which no run evaluates"),
    "number": (_cell(published={"c4": -1}), "cells[1].published has c4 = -1"),
    "repeated": (lambda v: v["cells"].append(v["cells"][1]), "repeats gptq 2 -1"),
    "empty": (lambda v: v.update(cells=v["cells"][:1]), "cells has nothing to quantize"),
    "runs": (lambda v: v.update(runs=[]), "runs needs a run"),
    "twice": (lambda v: v["runs"][1].update(evaluate=["wikitext2"]), "runs[1] repeats"),
    "names": (lambda v: v.update(tasks=[1]), "tasks is [1], not a list of strings"),
    "ranks": (lambda v: v["fraction_rank"].pop("mean"), "fraction_rank lacks 'mean'"),
    "object": (lambda v: v.update(cells=[7]), "cells[0] is 7, not an object"),
}


@pytest.mark.parametrize(("spoil", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_recipe_is_refused(spoil, message: str, tmp_path) -> None:
    values = copy.deepcopy(json.loads((FOLDER / "llama2-7b.json").read_text()))
    spoil(values)
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(values))
    with pytest.raises(InputError) as caught:
        load_recipe(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_that_is_no_json_is_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_recipe(tmp_path / "absent.json")
