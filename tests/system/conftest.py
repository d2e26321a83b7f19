"""What the tests of whole systems counted, said at the end of a run that names them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print how often each scenario ran on each driver (`make scenarios`)."""
    done: Counter[tuple[str, str]] = Counter()
    wanted: Counter[tuple[str, str]] = Counter()
    reports: list[pytest.TestReport] = [
        report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, ())
    ]
    for report in reports:
        for name, value in report.user_properties:
            if name == "scenario" and report.when == "call":
                driver, scenario, ran, runs = value  # type: ignore[misc]
                done[driver, scenario] += ran
                wanted[driver, scenario] += runs
    if wanted:
        terminalreporter.section("scenarios: runs without a failure, of those wanted")
        for driver, scenario in wanted:
            counts = f"{done[driver, scenario]:6} of {wanted[driver, scenario]}"
            terminalreporter.write_line(f"{driver:8} {scenario:24} {counts}")
