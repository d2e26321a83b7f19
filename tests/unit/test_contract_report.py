"""Reports of several runs of the contract make one; see test_contract_kit.py for those that pytest makes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dse.errors import ConfigError
from dse.testing.contract.guarantees import GUARANTEES
from dse.testing.report import Claims, DriverReport, Report, State, TestReport, judge, load_report, merge
from dse.testing.report.__main__ import main
from dse.testing.report.model import driver_report, functions_of
from dse.testing.report.render import markdown, text

PASSED, FAILED = TestReport("f::T::a", "passed"), TestReport("f::T::b", "failed", "AssertionError")
UNCLAIMED = TestReport("f::T::c", "not claimed", "driver does not claim it")
UNTRIED = TestReport("f::T::d", "not tried", "broker cannot be stopped from here")


def whole(name: str, *but: TestReport) -> list[TestReport]:
    """Every test of a guarantee: passed, but for some."""
    given = {test.function: test for test in but}
    return [given.get(each, TestReport(f"f::T::{each}", "passed")) for each in sorted(functions_of(name))]


def on(driver: str, results: dict[str, list[TestReport]], version: str = "1.0") -> Report:
    claims = Claims(undeliverable=True, survives_broker_restart=True, relieves=False, max_frame=1 << 20)
    return Report(1, [driver_report(driver, results, driver_class=f"m:{driver}", version=version, claims=claims)])


def states(report: Report) -> dict[tuple[str, str], State]:
    return {(driver.driver, each.name): each.state for driver in report.drivers for each in driver.guarantees}


@pytest.mark.parametrize(
    ("tests", "not_run", "state"),
    [
        ([PASSED], [], "kept"),
        ([PASSED, UNTRIED, UNCLAIMED], [], "kept"),
        ([PASSED, FAILED], [], "broken"),
        ([PASSED, FAILED], ["e"], "broken"),
        ([PASSED], ["e"], "incomplete"),
        ([UNCLAIMED], [], "not claimed"),
        ([UNCLAIMED, UNTRIED], [], "not tried"),
        ([UNTRIED], [], "not tried"),
    ],
)
def test_what_the_tests_of_a_guarantee_prove(tests: list[TestReport], not_run: list[str], state: State) -> None:
    assert judge(tests, not_run) == state


def test_reports_on_several_drivers_are_one_table() -> None:
    report = merge([on("b", {"size": whole("size")}), on("a", {"ttl": whole("ttl")})])
    assert [driver.driver for driver in report.drivers] == ["a", "b"]
    assert states(report) == {("a", "ttl"): "kept", ("b", "size"): "kept"}
    page = markdown(report)
    assert "| 6 TTL | kept | not run |" in page
    assert "| 8 Size | not run | kept |" in page


def test_parts_of_a_run_make_a_whole_and_the_worst_of_a_test_counts() -> None:
    half = len(functions_of("size")) // 2
    parts = [on("a", {"size": whole("size")[:half]}), on("a", {"size": whole("size")[half:]})]
    assert states(parts[0]) == {("a", "size"): "incomplete"}
    assert states(merge(parts)) == {("a", "size"): "kept"}
    some = sorted(functions_of("size"))[0]
    failed, skipped = TestReport(f"f::T::{some}", "failed", "why"), TestReport(f"f::T::{some}", "not tried", "why")
    assert states(merge([*parts, on("a", {"size": [failed]})])) == {("a", "size"): "broken"}
    assert states(merge([on("a", {"size": [failed]}), *parts])) == {("a", "size"): "broken"}
    assert states(merge([on("a", {"size": [skipped]}), *parts])) == {("a", "size"): "kept"}


def test_reports_on_two_versions_are_not_mixed() -> None:
    with pytest.raises(ConfigError, match=r"the reports on 'a' are of two: version is 1\.0 and 2\.0"):
        merge([on("a", {"ttl": [PASSED]}), on("a", {"ttl": [PASSED]}, version="2.0")])


def test_json_reads_back_and_is_the_same_for_the_same_results(tmp_path: Path) -> None:
    tests = whole("ttl", TestReport("f::T::" + sorted(functions_of("ttl"))[0], "failed", 'it | is "so"'))
    report = on("a", {"ttl": tests})
    (tmp_path / "r.json").write_bytes(report.to_json())
    assert load_report(tmp_path / "r.json") == report
    assert on("a", {"ttl": tests[::-1]}).to_json() == report.to_json()
    assert merge([report]) == report


def test_a_wide_table_is_shown_in_blocks_that_fit() -> None:
    report = merge(on(f"driver-{n}", {each.name: whole(each.name) for each in GUARANTEES}) for n in range(9))
    shown = "".join(piece for piece, _ in text(report, 80)).splitlines()
    assert max(map(len, shown)) <= 80
    assert sum(line.count("driver-") for line in shown) == 9
    assert sum(line.count("kept") for line in shown) == 9 * len(GUARANTEES)


def test_a_driver_that_could_not_be_asked_is_in_the_table_too() -> None:
    failed = TestReport("f::T::a", "failed", "in set-up: no server")
    report = Report(1, [DriverReport("a", "", "", "", "0.1.0", None, on("a", {"ttl": [failed]}).drivers[0].guarantees)])
    assert "| a |  | not installed | ? | ? | ? | ? | 0.1.0 |" in markdown(report)


def test_the_command_puts_files_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other, both, page = (str(tmp_path / name) for name in ("a.json", "b.json", "both.json", "page.md"))
    Path(one).write_bytes(on("a", {"ttl": whole("ttl")}).to_json())
    Path(other).write_bytes(on("b", {"ttl": [FAILED]}).to_json())
    assert main([one]) == 0
    assert "6 TTL" in capsys.readouterr().out
    assert main([one, other, "--markdown", page, "--json", both]) == 1  # one is broken
    assert "b, 6 TTL: `f::T::b: AssertionError`" in Path(page).read_text()
    assert [driver["driver"] for driver in json.loads(Path(both).read_text())["drivers"]] == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: No such file"),
        ("{", "is no report of the contract"),
        ('{"format": 1}', "is no report of the contract: Object missing required field `drivers`"),
        ('{"format": 2, "drivers": []}', "has format 2; this version of DSE reads format 1"),
    ],
)
def test_a_file_that_is_no_report_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, said: str
) -> None:
    file = tmp_path / "r.json"
    if content is not None:
        file.write_text(content)
    assert main([str(file)]) == 2
    assert f"{file} {said}" in capsys.readouterr().err
