"""Builds beside one another: which runs count, and a measurement in a process of its own."""

from __future__ import annotations

import itertools
import threading

import pytest

from eval.studies.builds.run import HERE, at_the_same_time, seconds


def test_what_ends_after_all_have_run_so_often_is_left_out() -> None:
    begun, may_end = threading.Event(), threading.Event()
    numbers = itertools.count()

    def quick() -> float:
        number = next(numbers)
        if number == 1:
            begun.set()
            assert may_end.wait(5)
        return float(number)

    def slow() -> float:
        # ends when a second quick one has begun, which may end only some time after it
        assert begun.wait(5)
        threading.Timer(0.2, may_end.set).start()
        return 7.0

    assert at_the_same_time({"quick": quick, "slow": slow}, 1) == {"quick": [0.0], "slow": [7.0]}


def test_where_one_fails_all_end() -> None:
    def fails() -> float:
        raise RuntimeError("no such build")

    with pytest.raises(RuntimeError, match="no such build"):
        at_the_same_time({"good": lambda: 1.0, "bad": fails}, 3)


def test_a_measurement_is_of_the_checkouts_package(tmp_path) -> None:
    assert seconds(HERE, "reduce", 16) > 0
    other = tmp_path / "magr_gptq" / "__init__.py"
    other.parent.mkdir()
    other.write_text("def reduce(*_, **__):\n    raise ValueError('of another build')\n")
    with pytest.raises(RuntimeError, match="of another build"):
        seconds(tmp_path, "reduce", 16)


def test_a_failed_measurement_tells_what_was_printed() -> None:
    with pytest.raises(RuntimeError, match="KeyError"):
        seconds(HERE, "nothing", 0)
