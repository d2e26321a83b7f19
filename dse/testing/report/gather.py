"""From pytest's reports to ours. Runs in the process that has the terminal; workers of xdist send it their reports."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import pytest

import dse.testing.contract
from dse.testing.contract.guarantees import find_guarantee
from dse.testing.report.model import FORMAT, Claims, Outcome, Report, TestReport, driver_report

__all__ = ["Gatherer"]


_PASSWORD = re.compile(r"(://[^:@/\s]*):[^@/\s]+@")


@dataclass
class _Test:
    """What is known of a test so far: it reports its set-up, its call, and its end."""

    name: str
    outcome: Outcome | None = None
    reason: str = ""
    properties: dict[str, Any] = field(default_factory=dict)

    @property
    def file(self) -> str:
        return self.name.partition("::")[0]

    @property
    def guarantee(self) -> str | None:
        """The name of the guarantee; from the name of the class when the test did not come to say it."""
        which = self.properties.get("dse_contract")
        if which is None:
            found = self.name.partition("[")[0].split("::")[1:2]
            which = getattr(getattr(dse.testing.contract, found[0], None), "guarantee", None) if found else None
        try:
            return None if which is None else find_guarantee(which).name
        except LookupError:  # one of somebody's own
            return None


class Gatherer:
    """Collects the tests of the contract as they are run."""

    def __init__(self) -> None:
        self._tests: dict[str, _Test] = {}

    def add(self, report: pytest.TestReport) -> None:
        """Take a report on a phase of a test, of the contract or not."""
        test = self._tests.setdefault(report.nodeid, _Test(_name(report)))
        test.properties.update(report.user_properties)
        if report.outcome == "failed" or hasattr(report, "wasxfail"):
            # Expected or not: what fails is not kept.
            if hasattr(report, "wasxfail") and report.outcome == "passed":
                test.outcome = test.outcome or "passed"
                return
            if test.outcome != "failed":
                test.outcome, test.reason = "failed", _failure(report)
        elif test.outcome == "failed":
            return  # run more than once, or at its end
        elif report.outcome == "skipped":
            if "not_claimed" in test.properties:
                test.outcome, test.reason = "not claimed", str(test.properties["not_claimed"])
            else:
                test.outcome, test.reason = "not tried", _skip(report)
        elif report.when == "call":
            test.outcome = "passed"

    def report(self) -> Report | None:
        """Return the report on all that was gathered; None when nothing was."""
        tests = [test for test in self._tests.values() if test.outcome is not None and test.guarantee is not None]
        known = {str(test.properties["driver"]) for test in tests if "driver" in test.properties}
        by_file = {test.file: str(test.properties["driver"]) for test in tests if "driver" in test.properties}
        details: dict[str, dict[str, Any]] = {}
        results: dict[str, dict[str, list[TestReport]]] = defaultdict(lambda: defaultdict(list))
        for test in tests:
            driver = test.properties.get("driver") or _driver(test, known, by_file)
            details.setdefault(driver, {}).update(test.properties.get("driver_details", {}))
            assert test.guarantee is not None
            assert test.outcome is not None
            results[driver][test.guarantee].append(TestReport(test.name, test.outcome, test.reason))
        if not results:
            return None
        drivers = []
        for driver in sorted(results):
            claims = details[driver].pop("claims", None)
            told = {key: str(value) for key, value in details[driver].items()}
            drivers.append(driver_report(driver, results[driver], claims=claims and Claims(**claims), **told))
        return Report(FORMAT, drivers)


def _driver(test: _Test, known: set[str], by_file: dict[str, str]) -> str:
    """Whose a test is that could not say it: its worker died, or there was no broker."""
    parameters = test.name.partition("[")[2]
    named = [name for name in known if parameters.startswith((f"{name}]", f"{name}-"))]
    return max(named, key=len, default="") or by_file.get(test.file) or test.file


def _name(report: pytest.TestReport) -> str:
    """The test's name without what xdist adds to it."""
    path, _, domain = report.location
    file = report.nodeid.partition("::")[0]
    if file in ("", "."):  # the module of the contract was the only argument
        file = "driver.py"
    if domain == path:  # a worker died
        return re.sub(r"@[^@\]]*\Z", "", report.nodeid)
    head, bracket, parameters = domain.partition("[")
    return f"{file}::{head.replace('.', '::')}{bracket}{parameters}"


def _failure(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    said = (str(crash.message) if crash is not None else str(report.longrepr)).strip().splitlines()
    phase = {"setup": "in set-up: ", "teardown": "at the end: "}.get(str(report.when), "")
    # A URL that a test compared may have a password.
    return phase + _PASSWORD.sub(r"\1:***@", said[0][:200]) if said else phase


def _skip(report: pytest.TestReport) -> str:
    said = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return said.removeprefix("Skipped: ")
