"""Records on disk: written whole, found again, refused where they answer another question."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from comparisons import cell

from magr_gptq.app.comparing.cells import PROFILE, UNQUANTIZED, Cell, Store, write_atomically
from magr_gptq.app.comparing.plan import Grid, fetch_texts, list_cells, name_sources
from magr_gptq.errors import InputError

pytestmark = pytest.mark.environments("modern")

GPTQ = cell("gptq", 3, 128, 1)
SETTINGS = {"samples": 128}


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "cells")


def test_every_cell_has_a_file_of_its_own() -> None:
    cells = [
        Cell(UNQUANTIZED), Cell(PROFILE, 2, -1, 0, "prose"), GPTQ, cell("gptq", 3, -1, 1),
        cell("gptq", 3, 128, 0), cell("magr", 3, 128, 1), cell("gptq", 2, 128, 1),
        Cell("gptq", 3, 128, 1, "org/text"),
    ]  # fmt: skip
    assert len({c.name for c in cells}) == len(cells)
    assert cells[-1].name == "gptq-w3-g128-org-text-seed1"


def test_a_saved_cell_is_finished_and_a_failed_one_is_not(store: Store) -> None:
    assert not store.finished(GPTQ, SETTINGS)
    store.save(GPTQ, SETTINGS, {"error": "no memory"})
    assert not store.finished(GPTQ, SETTINGS)
    store.save(GPTQ, SETTINGS, {"perplexity": 5.0})
    assert store.finished(GPTQ, SETTINGS)
    assert store.load_all([GPTQ, cell("magr", 3)]) == {GPTQ: store.load(GPTQ)}


def test_other_settings_are_refused_by_name(store: Store) -> None:
    store.save(GPTQ, SETTINGS, {})
    with pytest.raises(InputError, match=r"made with samples = 128, now it is 64.*--force"):
        store.finished(GPTQ, {"samples": 64})


def test_records_that_do_not_tell_are_of_windows_cut_from_a_stream(store: Store) -> None:
    store.save(GPTQ, SETTINGS, {})
    assert store.finished(GPTQ, {**SETTINGS, "cut": "stream"})
    with pytest.raises(InputError, match=r"made with cut = 'stream', now it is 'tokenizer'"):
        store.finished(GPTQ, {**SETTINGS, "cut": "tokenizer"})


def test_infinity_and_nan_are_null_in_the_file(store: Store) -> None:
    store.save(GPTQ, SETTINGS, {"a": [{"b": math.nan}, math.inf, 1.5]})
    assert json.loads(store.path(GPTQ).read_text())["a"] == [{"b": None}, None, 1.5]


def test_a_damaged_record_is_named(store: Store) -> None:
    store.save(GPTQ, SETTINGS, {})
    store.path(GPTQ).write_text('{"cell": ')
    with pytest.raises(InputError, match=r"gptq-w3-g128-prose-seed1\.json is not a record"):
        store.load(GPTQ)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch) -> None:
    path = tmp_path / "record.json"
    write_atomically(path, "old")

    def fail(self, target):
        raise OSError("killed")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="killed"):
        write_atomically(path, "new")
    assert path.read_text() == "old"


def test_one_seed_comes_after_another() -> None:
    grids = [Grid("gptq", 3, -1), Grid("magr", 3, -1), Grid("gptq", 2, -1)]
    cells = list_cells(grids, ["prose"], 2)
    assert cells[:2] == [Cell(UNQUANTIZED), Cell(PROFILE, 2, -1, 0, "prose")]
    assert [c.seed for c in cells[2:]] == [0, 0, 0, 1, 1, 1]
    assert len(set(cells)) == 8


def test_texts_are_named_by_their_files_and_copied(tmp_path) -> None:
    (tmp_path / "a").mkdir()
    for folder in (".", "a"):
        (tmp_path / folder / "prose.txt").write_text(f"It is a truth, {folder}.")
    with pytest.raises(InputError, match="two texts are named prose"):
        name_sources([str(tmp_path / "prose.txt"), str(tmp_path / "a" / "prose.txt")], "--evaluate")
    sources = name_sources([str(tmp_path / "prose.txt")], "--evaluate")
    first = fetch_texts(sources, tmp_path / "texts", 9)["prose"]
    assert (Path(first.path).read_text(), first.limit) == ("It is a truth, ..", 9)
    (tmp_path / "prose.txt").write_text("Another.")
    assert fetch_texts(sources, tmp_path / "texts", 9)["prose"].sha256 != first.sha256
