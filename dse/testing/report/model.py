"""The report as data. Every figure in it follows from the tests, so reports can be merged: see `merge`."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import msgspec

import dse
from dse.errors import ConfigError
from dse.testing.contract.guarantees import GUARANTEES, Guarantee, find_guarantee

__all__ = [
    "Claims",
    "DriverReport",
    "GuaranteeReport",
    "Outcome",
    "Report",
    "State",
    "TestReport",
    "driver_report",
    "functions_of",
    "judge",
    "load_report",
    "merge",
]

FORMAT = 1
"""Grows when a reader of the JSON would have to change."""

Outcome = Literal["passed", "failed", "not claimed", "not tried"]
State = Literal["kept", "broken", "not claimed", "not tried", "incomplete"]

_WORST_FIRST: tuple[Outcome, ...] = ("failed", "passed", "not claimed", "not tried")


class TestReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """One test. test: the file, the class, the function with its parameters. reason: why it failed or was skipped."""

    __test__ = False

    test: str
    outcome: Outcome
    reason: str = ""

    @property
    def function(self) -> str:
        return self.test.partition("[")[0].rpartition("::")[2]


class GuaranteeReport(msgspec.Struct, frozen=True):
    """What a driver's tests of one guarantee came to.

    state: see `judge`. passed, failed, not_claimed, not_tried: how many tests. not_run: the contract's tests of this
    guarantee that the run left out.
    """

    number: int | None
    name: str
    title: str
    state: State
    passed: int
    failed: int
    not_claimed: int
    not_tried: int
    not_run: list[str]
    tests: list[TestReport]

    def having(self, outcome: Outcome) -> list[TestReport]:
        """Return the tests with an outcome."""
        return [test for test in self.tests if test.outcome == outcome]

    def __str__(self) -> str:
        return str(Guarantee(self.name, self.title, self.number))


class Claims(msgspec.Struct, frozen=True):
    """What the driver declares: its `Capabilities` (max_frame in bytes), and whether it relieves its threads."""

    undeliverable: bool
    survives_broker_restart: bool
    relieves: bool
    max_frame: int


class DriverReport(msgspec.Struct, frozen=True):
    """One driver. driver: its name in the report. driver_class: ``module:name``. distribution, version: what it was
    installed with, if it was. dse: the version of DSE whose contract this is.

    A driver that could not even be asked has no class and no claims.
    """

    driver: str
    driver_class: str
    distribution: str
    version: str
    dse: str
    claims: Claims | None
    guarantees: list[GuaranteeReport]

    def guarantee(self, name: str) -> GuaranteeReport | None:
        """Return the report on one guarantee; None when none of its tests was run."""
        return next((each for each in self.guarantees if each.name == name), None)


class Report(msgspec.Struct, frozen=True):
    """All that was run: the drivers by name."""

    format: int
    drivers: list[DriverReport]

    def to_json(self) -> bytes:
        """Return it as JSON, indented, the same for the same results."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


def judge(tests: Iterable[TestReport], not_run: Sequence[str] = ()) -> State:
    """Say what the tests of a guarantee prove.

    broken: one failed. incomplete: none failed, but the run left some out. kept: all that were tried passed, and some
    were. not claimed, not tried: none were; for a capability that the driver does not claim, or for other reasons too.
    """
    outcomes = {test.outcome for test in tests}
    if "failed" in outcomes:
        return "broken"
    if not_run:
        return "incomplete"
    if "passed" in outcomes:
        return "kept"
    return "not claimed" if outcomes == {"not claimed"} else "not tried"


def guarantee_report(guarantee: Guarantee, tests: Iterable[TestReport]) -> GuaranteeReport:
    """Count and judge the tests of one guarantee."""
    listed = sorted(tests, key=lambda each: each.test)
    count = {outcome: sum(test.outcome == outcome for test in listed) for outcome in _WORST_FIRST}
    not_run = sorted(functions_of(guarantee.name) - {test.function for test in listed})
    return GuaranteeReport(
        number=guarantee.number,
        name=guarantee.name,
        title=guarantee.title,
        state=judge(listed, not_run),
        passed=count["passed"],
        failed=count["failed"],
        not_claimed=count["not claimed"],
        not_tried=count["not tried"],
        not_run=not_run,
        tests=listed,
    )


def driver_report(
    driver: str,
    results: dict[str, list[TestReport]],
    *,
    driver_class: str = "",
    distribution: str = "",
    version: str = "",
    claims: Claims | None = None,
) -> DriverReport:
    """Report on a driver. results: the tests by the name of their guarantee."""
    return DriverReport(
        driver=driver,
        driver_class=driver_class,
        distribution=distribution,
        version=version,
        dse=dse.__version__,
        claims=claims,
        guarantees=[guarantee_report(each, results[each.name]) for each in GUARANTEES if results.get(each.name)],
    )


@functools.cache
def functions_of(name: str) -> frozenset[str]:
    """Return the test functions that the contract has for a guarantee."""
    import dse.testing.contract as contract

    classes = [each for each in map(vars(contract).get, contract.__all__) if isinstance(each, type)]
    proving = [each for each in classes if find_guarantee(getattr(each, "guarantee", "")).name == name]
    return frozenset(function for each in proving for function in dir(each) if function.startswith("test_"))


def merge(reports: Iterable[Report]) -> Report:
    """Put reports together. Of a test that several have, the worst outcome counts: a failure, then a pass.

    Raises `ConfigError` where they have different versions of the same driver, or of DSE for it.
    """
    drivers: dict[str, DriverReport] = {}
    for driver in (driver for report in reports for driver in report.drivers):
        known = drivers.get(driver.driver)
        drivers[driver.driver] = driver if known is None else _both(known, driver)
    return Report(FORMAT, [drivers[name] for name in sorted(drivers)])


def _both(one: DriverReport, other: DriverReport) -> DriverReport:
    for what in ("driver_class", "distribution", "version", "dse", "claims"):
        values = [getattr(each, what) for each in (one, other)]
        if values[0] and values[1] and values[0] != values[1]:
            raise ConfigError(f"the reports on {one.driver!r} are of two: {what} is {values[0]} and {values[1]}")
    results: dict[str, list[TestReport]] = {}
    for each in (*one.guarantees, *other.guarantees):
        results.setdefault(each.name, []).extend(each.tests)
    return driver_report(
        one.driver,
        {name: _worst(tests) for name, tests in results.items()},
        driver_class=one.driver_class or other.driver_class,
        distribution=one.distribution or other.distribution,
        version=one.version or other.version,
        claims=one.claims or other.claims,
    )


def _worst(tests: Iterable[TestReport]) -> list[TestReport]:
    worst: dict[str, TestReport] = {}
    for test in tests:
        known = worst.get(test.test)
        if known is None or _WORST_FIRST.index(test.outcome) < _WORST_FIRST.index(known.outcome):
            worst[test.test] = test
    return list(worst.values())


def load_report(file: Path) -> Report:
    """Read a report that was written as JSON; raises `ConfigError` that says what is wrong with which file."""
    try:
        report = msgspec.json.decode(file.read_bytes(), type=Report)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise ConfigError(f"{file} is no report of the contract: {error}") from error
    if report.format != FORMAT:
        raise ConfigError(f"{file} has format {report.format}; this version of DSE reads format {FORMAT}")
    return report
