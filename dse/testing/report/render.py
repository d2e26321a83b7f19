"""The table of guarantees by driver, as text for a terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from dse.testing.contract.guarantees import GUARANTEES
from dse.testing.report.model import DriverReport, GuaranteeReport, Report, State

__all__ = ["Cell", "Table", "markdown", "text"]

_NOT_RUN = "some tests of the guarantee were left out of this run"

_STATES: tuple[tuple[State, str], ...] = (
    ("kept", "all its tests passed, but for those that a note excepts"),
    ("not claimed", "the driver says that it does not have it, and DSE does without"),
    ("broken", "a test failed"),
    ("not tried", "no test could be run, for the reason in the note"),
    ("incomplete", "none failed, but not all were run"),
)


@dataclass(frozen=True)
class Cell:
    """What a driver's cell says; no state when no test of the guarantee was run."""

    text: str
    state: State | None


@dataclass
class Table:
    """The cells, and the notes that they refer to by letter."""

    report: Report
    drivers: list[str] = field(default_factory=list)
    rows: list[tuple[str, list[Cell]]] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)
    """Reason to letter."""

    def __post_init__(self) -> None:
        self.drivers = [each.driver for each in self.report.drivers]
        for guarantee in GUARANTEES:
            found = [driver.guarantee(guarantee.name) for driver in self.report.drivers]
            if any(found):
                self.rows.append((str(guarantee), [self._cell(each) for each in found]))

    def _cell(self, result: GuaranteeReport | None) -> Cell:
        if result is None:
            return Cell("not run", None)
        if result.state == "incomplete":
            return Cell(f"incomplete ({self._letter(_NOT_RUN)})", result.state)
        words: list[str] = [result.state]
        reasons: list[str] = []
        for outcome in ("not tried", "not claimed"):
            skipped = result.having(outcome)
            if skipped and outcome != result.state:
                words.append(f"{len(skipped)} of {len(result.tests)} {outcome}")
            reasons += [test.reason for test in skipped]
        letters = [self._letter(reason) for reason in dict.fromkeys(reasons)]
        return Cell(", ".join(words) + (f" ({', '.join(letters)})" if letters else ""), result.state)

    def _letter(self, reason: str) -> str:
        number = len(self.notes)
        return self.notes.setdefault(reason, "abcdefghijklmnopqrstuvwxyz"[number % 26] * (number // 26 + 1))

    def blocks(self, width: int) -> Iterator[list[int]]:
        """Yield the drivers, by index, that fit side by side into a terminal."""
        free, block = width - self.title_width, list[int]()
        for index in range(len(self.drivers)):
            needed = self.column_width(index) + 2
            if block and needed > free:
                yield block
                free, block = width - self.title_width, []
            block.append(index)
            free -= needed
        yield block

    @property
    def title_width(self) -> int:
        return max(len(title) for title, _ in self.rows) + 1

    def column_width(self, index: int) -> int:
        return max(len(self.drivers[index]), *(len(cells[index].text) for _, cells in self.rows))


def broken(driver: DriverReport) -> Iterator[tuple[GuaranteeReport, str]]:
    """Yield each failed test of a driver, with the guarantee that it breaks."""
    for guarantee in driver.guarantees:
        for test in guarantee.having("failed"):
            yield guarantee, f"{test.test}: {test.reason}" if test.reason else test.test


def text(report: Report, width: int = 100) -> Iterator[tuple[str, State | None]]:
    """Yield the table as pieces of text, each with the state that it shows, if it shows one."""
    table = Table(report)
    for block in table.blocks(width):
        heads = [table.drivers[index].ljust(table.column_width(index)) for index in block]
        yield f"{'':{table.title_width}}  {'  '.join(heads)}".rstrip() + "\n", None
        for title, cells in table.rows:
            shown = title if title[1].isdigit() or not title[0].isdigit() else f" {title}"
            yield f"{shown:{table.title_width}}", None
            for index in block:
                last = index == block[-1]
                yield "  ", None
                yield cells[index].text.ljust(0 if last else table.column_width(index)), cells[index].state
            yield "\n", None
        yield "\n", None
    for reason, letter in table.notes.items():
        yield f"({letter}) {reason}\n", None
    for driver in report.drivers:
        for guarantee, failed in broken(driver):
            yield f"{driver.driver} breaks {guarantee}: {failed}\n", "broken"


def markdown(report: Report) -> str:
    """Return the report as a page."""
    table = Table(report)
    lines = [
        "# Guarantees by driver",
        "",
        "What a run of DSE's contract showed (`dse.testing.contract`), written by that run. The numbers are those of",
        "the guarantees in DSE's `docs/transports.md`; *Bus* is level 2 of the contract, a whole bus on the driver.",
        "",
        *_grid(["", *table.drivers], [[title, *(cell.text for cell in cells)] for title, cells in table.rows]),
        "",
    ]
    lines += [f"({letter}) {reason}.  " for reason, letter in table.notes.items()]
    lines += [""] * bool(table.notes)
    shown = {cell.state for _, cells in table.rows for cell in cells}
    lines += [f"- *{state}*: {meaning}" for state, meaning in _STATES if state in shown]
    failures = [(driver.driver, *each) for driver in report.drivers for each in broken(driver)]
    if failures:
        lines += ["", "## Broken", ""]
        lines += [
            f"- {driver}, {guarantee}: `{failed.replace('`', chr(39))}`" for driver, guarantee, failed in failures
        ]
    lines += ["", "## What the drivers claim", "", *_claims(report), ""]
    return "\n".join(lines)


def _claims(report: Report) -> list[str]:
    rows = []
    for driver in report.drivers:
        claims = driver.claims
        cells = ["?"] * 4
        if claims is not None:
            flags = (claims.undeliverable, claims.survives_broker_restart, claims.relieves)
            cells = [*("yes" if flag else "no" for flag in flags), f"{claims.max_frame:,}"]
        installed = f"{driver.distribution} {driver.version}".strip() or "not installed"
        kind = f"`{driver.driver_class}`" if driver.driver_class else ""
        rows.append([driver.driver, kind, installed, *cells, driver.dse])
    heads = ["driver", "class", "of", "undeliverable", "survives a restart", "relieves", "longest frame, bytes", "dse"]
    return _grid(heads, rows)


def _grid(heads: list[str], rows: list[list[str]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines]
