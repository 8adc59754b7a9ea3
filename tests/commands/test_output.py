"""The output folder appears when it is complete, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from magr_gptq.app.quantizing.output import PublishError, leftovers, output_folder


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_fault_output_taken_meanwhile() -> None:
    out = Path("out").absolute()

    def finish_too_late() -> None:
        with output_folder(out) as folder:
            (folder / "weights").write_text("of many hours")
            out.mkdir()
            (out / "other").write_text("")

    with pytest.raises(PublishError, match="the finished checkpoint is in"):
        finish_too_late()
    (kept,) = leftovers(out)
    assert (kept / "weights").read_text() == "of many hours"
    assert (out / "other").exists()


def test_an_empty_output_folder_is_filled() -> None:
    out = Path("out").absolute()
    out.mkdir()
    with output_folder(out) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "weights").write_text("")
        assert not any(out.iterdir())
    assert (out / "sub" / "weights").exists()
    assert not leftovers(out)


def test_another_failure_leaves_nothing() -> None:
    def fail() -> None:
        with output_folder(Path("out").absolute()) as folder:
            (folder / "half").write_text("")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not list(Path().iterdir())
