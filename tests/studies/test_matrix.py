"""What the matrix of releases installs, and how it and the peers' tests read pytest's reports."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tools import matrix, outcomes, peers

REPORT = """<testsuites><testsuite>
<testcase classname="a" name="good"/>
<testcase classname="a" name="bad"><failure/></testcase>
<testcase classname="a" name="bad"><error/></testcase>
<testcase classname="b" name="left"><skipped/><system-out/></testcase>
<testcase classname="b" name="torn"/>
<testcase classname="b" name="torn"><error/></testcase>
</testsuite></testsuites>"""


def test_the_worst_outcome_of_a_test_counts(tmp_path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(REPORT)
    found = outcomes.read(report)
    assert found == {"a::good": "passed", "a::bad": "error", "b::left": "skipped", "b::torn": "error"}
    assert outcomes.counts(found) == {"passed": 1, "skipped": 1, "failed": 0, "error": 2}


@pytest.mark.parametrize("row", matrix.ROWS.values(), ids=matrix.ROWS)
def test_a_row_differs_from_the_pins_in_what_it_names(row: matrix.Row) -> None:
    pins = matrix.constraints(row._replace(other={}, pinned=True))
    kept = matrix.constraints(row)
    assert [pin for pin in kept if pin not in pins] == [f"{n}=={v}" for n, v in row.other.items() if v]
    gone = {pin.split("==")[0].lower().replace("_", "-") for pin in pins if pin not in kept}
    # a name that no pin has is a slip of the pen
    assert row.other.keys() <= gone
    assert not row.pinned or gone == row.other.keys()
    assert all((matrix.ROOT / test).is_file() for test in row.tests)
    settings = (matrix.ROOT / "pyproject.toml").read_text()
    assert all(f"\n{extra} = [" in settings for extra in row.extras.split(","))


def test_rows_that_were_not_run_are_shown_as_such() -> None:
    ran = {"versions": {"torch": "2.5.0"}, "passed": 7, "failed": 1, "error": 2, "skipped": 3}
    lines = matrix.table({"ran": ran, "gone": {"unavailable": "pip says\nno"}, "never": {}}).splitlines()
    assert lines[2:] == [
        "| ran | torch 2.5.0 | 7 | 3 | 3 |",
        "| gone | no | | | |",
        "| never | never run here | | | |",
    ]


def test_a_peers_test_that_passes_in_one_run_only_is_named(monkeypatch, tmp_path) -> None:
    plain = {"a": "passed", "b": "passed", "c": "failed", "d": "skipped"}
    enabled = {"a": "passed", "b": "failed", "c": "skipped", "e": "passed"}
    said = {"enabled": (enabled, "magr_gptq had changed 9 symbols"), "plain": (plain, "")}
    monkeypatch.setattr(peers, "run", lambda _source, _tests, folder, _settings: said[folder.name])
    name = next(iter(peers.PEERS))
    monkeypatch.setitem(peers.TOOLKITS, name, replace(peers.TOOLKITS[name], distribution="pytest"))
    record = peers.compare(name, peers.PEERS[name], Path("sources"), tmp_path)
    assert record["differ"] == {"b": ["passed", "failed"], "e": [None, "passed"]}
    assert record["passed_in_neither"] == {"c": "failed", "d": "skipped"}
    assert record["symbols_changed"] == 9
    said["enabled"] = (plain, "nothing")
    with pytest.raises(RuntimeError, match="was not enabled"):
        peers.compare(name, peers.PEERS[name], Path("sources"), tmp_path)
