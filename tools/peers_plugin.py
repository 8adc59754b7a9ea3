"""A pytest plugin for tools/peers.py: enables a toolkit before its own tests are collected; `magr` is off."""

from __future__ import annotations

import os

import magr_gptq

touched: tuple[str, ...] = ()


def pytest_configure() -> None:
    global touched
    touched = magr_gptq.enable(os.environ["MAGR_PEER"])


def pytest_terminal_summary(terminalreporter) -> None:
    terminalreporter.write_line(f"magr_gptq had changed {len(touched)} symbols")
