"""What `setup_colab.sh test` knows from before this run of pytest, shown above pytest's closing line.

Two environment variables carry it: TRAINBOOK_FAILED_PARTS names the parts that failed before the test suite, and
TRAINBOOK_FAILED_FIRST, one node id a line, the tests that failed in the whole suite and are run again alone.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

_PARTS = pytest.StashKey[str]()
_TESTS = pytest.StashKey[list[str]]()


def remember_failures(config: pytest.Config) -> None:
    """Keep both for the end of the run; the tests themselves do not see these variables."""
    config.stash[_PARTS] = os.environ.get("TRAINBOOK_FAILED_PARTS", "")
    config.stash[_TESTS] = os.environ.get("TRAINBOOK_FAILED_FIRST", "").splitlines()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Name the parts that failed, and the tests that failed at first and have passed now."""
    if parts := config.stash[_PARTS]:
        terminalreporter.section("failed before the test suite", red=True, bold=True)
        terminalreporter.line(parts)
    failed = {report.nodeid for kind in ("failed", "error") for report in terminalreporter.stats.get(kind, [])}
    passed = {report.nodeid for report in terminalreporter.stats.get("passed", [])}
    if unstable := [test for test in config.stash[_TESTS] if test in passed - failed]:
        terminalreporter.section("UNSTABLE TESTS", red=True, bold=True)
        terminalreporter.line(
            "Failed in the whole suite and passed alone. That is a fault of the test or of the code: mend it."
        )
        for test in unstable:
            terminalreporter.line(f"unstable: {test}", red=True, bold=True)
