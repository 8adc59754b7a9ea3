"""`make test-runtimes`: what is measured again, what a dying consumer leaves, and which cells are faults."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tools.runtimes import __main__ as runner
from tools.runtimes import checkpoints, environments, table
from tools.runtimes.consumers import CONSUMERS, Consumer

sys.path.insert(0, str(runner.READERS))
import reading

CONSUMER = Consumer("none", ("numpy==2.2.6",), "fake", ("w4",))


def record(plain: dict, default: dict) -> dict:
    return {"consumer": "some", "cells": {"plain-w4": plain, "default-w4": default}}


SOME = {"divergence": 1e-5}
CELLS = {
    "as plain GPTQ's": (SOME, {"divergence": 2.9e-5}, ""),
    "worse than plain GPTQ's": (SOME, {"divergence": 3.1e-5}, "plain GPTQ 1.0e-05, the default 3.1e-05"),
    "both wrong": ({"divergence": 0.5}, {"divergence": 0.5}, "plain GPTQ 5.0e-01"),
    "both refused": ({"error": "no"}, {"error": "no"}, "plain GPTQ no, the default no"),
    "the default alone refused": (SOME, {"error": "no"}, "the default no"),
    "absent": ({}, SOME, "not measured"),
}


@pytest.mark.parametrize(("plain", "default", "said"), CELLS.values(), ids=CELLS)
def test_a_cell_must_be_as_plain_gptqs_or_have_a_named_fault(plain: dict, default: dict, said: str) -> None:
    found = table.failures(CONSUMER, record(plain, default))
    assert bool(found) == bool(said)
    assert not said or said in found[0]
    # a fault that is named must be seen
    named = table.failures(replace(CONSUMER, faults={"w4": "it is so"}), record(plain, default))
    wanted = {"": "its named fault was not seen", "not measured": "not measured"}.get(said)
    assert named == ([f"some: w4: {wanted}"] if wanted else [])


def test_divergence_of_logits_by_its_definition() -> None:
    generator = np.random.default_rng(0)
    one, other = generator.normal(size=(2, 3, 5, 7))
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (one, other))
    assert reading.divergence(one, other) == pytest.approx((p * np.log(p / q)).sum(-1).mean())
    assert reading.divergence(one, one + 3) == pytest.approx(0, abs=1e-12)
    assert reading.divergence(one, np.full_like(one, np.nan)) == 1e6
    with pytest.raises(ValueError, match=r"predictions are \(3, 5, 6\), not \(3, 5, 7\)"):
        reading.divergence(one, other[..., :6])


READER = """
print("its banner")
import os, sys
from reading import answer
def logits(folder, tokens, option):
    if "default" in folder and not os.path.exists("second"):
        open("second", "w").close()
        print("it dies here", file=sys.stderr, flush=True)
        os._exit(7)
    if "w3" in folder:
        raise ValueError("three bits are too few")
    return tokens[..., None] + [[[0.0, 1.0]]]
answer(logits, "numpy")
"""


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A consumer that dies once, and checkpoints of two kinds."""
    for kind in ("w4", "w3"):
        for method in checkpoints.METHODS:
            folder = tmp_path / "cache" / f"{method}-{kind}"
            folder.mkdir(parents=True)
            (folder / "model.safetensors").write_text(folder.name)
            np.savez(
                folder / checkpoints.PREDICTIONS, tokens=np.zeros((1, 2), int), logits=np.zeros((1, 2, 2))
            )
    (tmp_path / "read_fake.py").write_text(READER)
    (tmp_path / "reading.py").write_text(Path(reading.__file__).read_text())
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(checkpoints, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(runner, "READERS", tmp_path)
    monkeypatch.setattr(runner, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(runner, "environment", lambda *_: Path(sys.executable))
    return tmp_path


def test_a_consumer_that_dies_is_asked_about_the_rest_and_finished_cells_are_kept(place, capsys) -> None:
    consumer = replace(CONSUMER, kinds=("w4", "w3"))
    runner.run("fake", consumer)
    cells = json.loads((place / "results" / "fake.json").read_text())["cells"]
    assert cells["plain-w4"]["divergence"] > 0
    assert cells["default-w4"]["error"] == "exit status 7: it dies here"
    assert cells["plain-w3"]["error"] == cells["default-w3"]["error"] == "ValueError: three bits are too few"
    capsys.readouterr()
    runner.run("fake", consumer)
    assert not capsys.readouterr().out
    # other weights are measured again, and only they
    (place / "cache" / "default-w4" / "model.safetensors").write_text("others")
    runner.run("fake", consumer)
    assert capsys.readouterr().out.startswith("default-w4: {'divergence'")
    # other packages, and all is measured again
    runner.run("fake", replace(consumer, pins=("numpy==2.2.5",)))
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_a_consumer_whose_packages_cannot_be_had_is_listed_as_such(place, monkeypatch) -> None:
    def refuse(*_):
        raise environments.UnavailableError("ERROR: no such release")

    monkeypatch.setattr(runner, "environment", refuse)
    runner.run("fake", CONSUMER)
    assert runner.read("fake")["unavailable"] == "ERROR: no such release"
    assert not table.failures(CONSUMER, runner.read("fake"))


def test_every_consumer_has_a_reader_and_faults_of_its_kinds_alone() -> None:
    kinds: dict[str, tuple[str, ...]] = {}
    for consumer in CONSUMERS.values():
        assert consumer.skipped or (runner.READERS / f"read_{consumer.reader}.py").is_file()
        assert set(consumer.faults) <= set(consumer.kinds) <= set(checkpoints.KINDS)
        # an environment belongs to one list of packages
        assert kinds.setdefault(consumer.environment, consumer.pins) == consumer.pins


def test_the_page_is_made_of_the_records() -> None:
    assert runner.PAGE.read_text(encoding="utf-8") == table.page(
        {name: runner.read(name) for name in CONSUMERS}
    )
