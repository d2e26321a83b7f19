"""The pytest plugin of DSE: proves a transport driver from the outside, and says which guarantees drivers keep.

    pytest --pyargs dse.testing.contract --dse-transport mybus://localhost

pytest loads this module in every run on a machine where DSE is installed. So it lies outside the package, whose import
costs time, and hands over to `dse.testing` only where the contract is at work: it costs nobody else anything.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from dse.testing.report import Report
    from dse.testing.report.gather import Gatherer

__all__: list[str] = []

_CONTRACT = "dse.testing.contract"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("dse", "contract of DSE's transport drivers")
    group.addoption(
        "--dse-transport",
        action="append",
        default=[],
        metavar="URL",
        help=f"with --pyargs {_CONTRACT}: run the contract on the driver of this URL; may be given several times. "
        "A bare scheme (mybus://) asks for a private broker, where the driver's distribution offers one.",
    )
    group.addoption(
        "--dse-report",
        action="append",
        default=[],
        metavar="FILE",
        help="write the table of guarantees by driver to FILE.md or FILE.json; may be given several times",
    )


def pytest_configure(config: pytest.Config) -> None:
    files = [Path(file) for file in config.option.dse_report]
    for file in files:
        if file.suffix not in (".md", ".json"):
            raise pytest.UsageError(f"--dse-report {file}: the name of a report ends in .md or .json")
        if not file.parent.is_dir():
            raise pytest.UsageError(f"--dse-report {file}: there is no folder {file.parent}")
    wanted = config.option.pyargs and any(_is_contract(arg) for arg in config.args)
    if config.option.dse_transport and wanted:
        from dse.testing.outside import Outside

        config.pluginmanager.register(Outside(config), "dse-outside")
    elif config.option.dse_transport:
        raise pytest.UsageError(f"--dse-transport says on what to run the contract: add --pyargs {_CONTRACT}")
    elif wanted:
        raise pytest.UsageError(
            f"{_CONTRACT} is run on a driver: add --dse-transport URL, as in --dse-transport redis://localhost"
        )
    if not hasattr(config, "workerinput"):  # what the workers of xdist run comes to the process that started them
        config.pluginmanager.register(_Reporter(files), "dse-report")


def _is_contract(arg: str) -> bool:
    module = arg.partition("::")[0]
    return module == _CONTRACT or module.startswith(f"{_CONTRACT}.")


def pytest_itemcollected(item: pytest.Item) -> None:
    fixtures = sys.modules.get(f"{_CONTRACT}.fixtures")
    kind = getattr(item, "cls", None)
    if fixtures is not None and isinstance(kind, type) and issubclass(kind, fixtures.Contract):
        item.user_properties.append(("dse_contract", getattr(kind, "guarantee", None)))


class _Reporter:
    """Gathers the tests of the contract, if there are any; then prints the table, and writes it to files."""

    def __init__(self, files: list[Path]) -> None:
        self._files = files
        self._gatherer: Gatherer | None = None
        self._unknown: list[pytest.TestReport] = []  # of workers that died, and cannot say whose test it was
        self._report: Report | None = None
        self._said: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        ours = any(name == "dse_contract" for name, _ in report.user_properties)
        if ours and self._gatherer is None:
            from dse.testing.report.gather import Gatherer

            self._gatherer = Gatherer()
        if ours and self._gatherer is not None:
            self._gatherer.add(report)
        elif report.when not in ("setup", "call", "teardown"):
            self._unknown.append(report)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._gatherer is not None:
            for report in self._unknown:
                self._gatherer.add(report)
            self._report = self._gatherer.report()
        for file in self._files:
            try:
                self._said.append(self._write(file))
            except OSError as error:
                self._said.append(f"{file} could not be written: {error.strerror}")
                session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED

    def _write(self, file: Path) -> str:
        if self._report is None:
            return f"no test of the contract was run: {file} is not written"
        if file.suffix == ".json":
            file.write_bytes(self._report.to_json())
        else:
            from dse.testing.report.render import markdown

            file.write_text(markdown(self._report), encoding="utf-8")
        return f"written to {file}"

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._report is None and not self._said:
            return
        terminalreporter.section("guarantees by driver")
        if self._report is not None:
            from dse.testing.report.render import text

            colours = {"kept": {"green": True}, "broken": {"red": True, "bold": True}}
            for piece, state in text(self._report, terminalreporter._tw.fullwidth):
                markup = colours.get(state, {"yellow": True}) if state else {}
                terminalreporter.write(piece, **markup)
        for line in self._said:
            terminalreporter.write_line(line)
