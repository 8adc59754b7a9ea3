"""Runs pytest in some environment, and reads what became of every test."""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

KINDS = ("passed", "skipped", "failed", "error")
TAGS = {"skipped": "skipped", "failure": "failed", "error": "error"}


def run_pytest(
    python: Path, arguments: list[str], folder: Path, environment: dict[str, str], report: Path
) -> tuple[dict[str, str], str]:
    """Every test's name with its outcome, and what pytest said.

    Raises:
        RuntimeError: pytest ended before it could write a report, or found no test.
    """
    command = [str(python), "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
    # a file that cannot be imported is an error like others, and the rest is run
    command += ["--continue-on-collection-errors", f"--junit-xml={report}"]
    done = subprocess.run(
        [*command, *arguments],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    found = read(report) if report.exists() else {}
    if not found:
        raise RuntimeError(f"pytest ended with {done.returncode} and no test:\n{done.stdout[-3000:]}")
    return found, done.stdout


def read(report: Path) -> dict[str, str]:
    """What `--junit-xml` wrote; a test whose teardown failed, too, stands there twice: the worse counts."""
    found: dict[str, str] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        kinds = [TAGS[child.tag] for child in case if child.tag in TAGS]
        found[name] = max([*kinds, found.get(name, "passed")], key=KINDS.index)
    return found


def counts(outcomes: dict[str, str]) -> dict[str, int]:
    """How many tests had each outcome."""
    counter = Counter(outcomes.values())
    return {kind: counter[kind] for kind in KINDS}
