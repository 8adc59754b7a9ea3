"""Processes that all tests of the commands share, as to start one takes longer than most tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
from command_line import shared
from forked_scores import ask_once

from magr_gptq.app import scoring
from magr_gptq.app.cli import quantize as quantize_module
from magr_gptq.app.planning import planner
from magr_gptq.app.processes import Child
from magr_gptq.app.quantizing.worker import Worker


@pytest.fixture(scope="session")
def quantizing_process(tmp_path_factory) -> Iterator[Worker]:
    with Worker(tmp_path_factory.mktemp("worker") / "log") as worker:
        yield worker


@pytest.fixture
def worker(quantizing_process, monkeypatch) -> Worker:
    """In place of those that `magr-gptq quantize` would start."""
    monkeypatch.setattr(quantize_module, "Worker", shared(quantizing_process))
    return quantizing_process


@pytest.fixture(scope="session")
def planning_process(tmp_path_factory) -> Iterator[Child]:
    with Child(planner.CHILD, tmp_path_factory.mktemp("planning") / "log") as child:
        yield child


@pytest.fixture
def planning(planning_process, monkeypatch) -> None:
    """In place of those that weigh a model's layers."""
    monkeypatch.setattr(planner, "Child", lambda _command, _log: nullcontext(planning_process))


@pytest.fixture(autouse=True)
def _forked_measurements(monkeypatch) -> None:
    monkeypatch.setattr(scoring, "ask_once", ask_once)
