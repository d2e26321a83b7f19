"""How the demo is shown: `LinesView` in a pipe, `LiveView` in a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, TextIO

from dse.cli.demo_model import Entry, Model, Violation, show_service, show_version
from dse.cli.demo_policy import POLICY, RULE
from dse.cli.text import clean
from dse.errors import MissingExtra

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

__all__ = ["LinesView", "LiveView", "Unread", "View", "choose_view", "show_entry", "write_lines"]

_STYLES = {"good": "green", "bad": "red", "quiet": "dim", "": ""}
_STATES = {"JOINED": "green", "LIVE": "green", "SUSPECT": "yellow", "SYNCING": "yellow", "STALE": "yellow"}
_STALE_REPORT = 3.0  # seconds after which the auditor's report counts as old
_WIDE = 100  # columns from which changes and calls stand side by side
_WIDER = 130  # columns from which nodes and tables do
_LINES = 8  # of a panel, at most, under its column names
_VIOLATIONS = 3  # lines of theirs, however many there are: nothing jumps when one comes
_NEWS = 8  # lines that are left to changes and calls


class Unread(Exception):
    """Nobody reads what is shown any more: the pipe was closed, the terminal is gone."""


class View(Protocol):
    """Shows the demo while entered. Raises `Unread`."""

    period: float | None
    """Seconds after which it wants to be shown the model again, None if only news matter."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None: ...
    def show(self, model: Model, news: Sequence[Entry], now: float) -> None: ...


def choose_view(out: TextIO, title: str) -> View:
    """Return the live view for a terminal, lines for anything else. Raises `MissingExtra` when rich is missing."""
    if not out.isatty():
        return LinesView(out, title)
    try:
        from rich.console import Console
    except ImportError as error:
        raise MissingExtra(
            "the live view lacks its package (rich cannot be imported); install it with: pip install 'dse[demo]', "
            "or pipe the output through cat for plain lines",
            extra="demo",
        ) from error
    console = Console(file=out, highlight=False, markup=False, emoji=False)
    if console.is_dumb_terminal:
        return LinesView(out, title)
    return LiveView(console, title)


class LinesView:
    """A line for each piece of news."""

    period: float | None = None

    def __init__(self, out: TextIO, title: str) -> None:
        self._out = out
        write_lines(out, [title])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None: ...

    def show(self, model: Model, news: Sequence[Entry], now: float) -> None:
        """Write the news."""
        write_lines(self._out, map(show_entry, news))


def show_entry(entry: Entry) -> str:
    """Return a piece of news as a line."""
    return f"{entry.at:7.1f}  {entry.topic:<9}  {entry.text}"


def write_lines(out: TextIO, lines: Iterable[str]) -> None:
    """Write lines at once; raise `Unread`."""
    text = "".join(f"{line}\n" for line in lines)
    try:
        out.write(text)
        out.flush()
    except OSError as error:
        raise Unread from error


class LiveView:
    """The whole terminal, drawn again at every change, at most some times a second."""

    period: float | None = 0.25

    def __init__(self, console: Console, title: str) -> None:
        from rich.live import Live

        self._console = console
        self._title = title
        self._live = Live(console=console, screen=True, auto_refresh=False, transient=True)
        self._drawn = 0.0

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            self._live.stop()
        except OSError:
            pass  # the terminal is gone, with what there was to restore

    def show(self, model: Model, news: Sequence[Entry], now: float) -> None:
        """Draw the model, unless it was drawn just now."""
        assert self.period is not None
        if time.monotonic() - self._drawn < self.period * 0.8:
            return
        width, height = self._console.size
        try:
            self._live.update(draw(model, self._title, now, width, height), refresh=True)
        except OSError as error:
            raise Unread from error
        self._drawn = time.monotonic()


def draw(model: Model, title: str, now: float, width: int, height: int) -> RenderableType:
    """Return the screen of that size."""
    from rich.layout import Layout

    changes = Layout(_entries("changes, latest first", model.changes, topics=True))
    calls = Layout(_entries("calls, latest first", model.calls))
    news = Layout(ratio=1, minimum_size=4)
    if width >= _WIDE:
        news.split_row(changes, calls)
    else:
        news.split_column(changes, calls)
    nodes = Layout(_nodes(model, now), size=_size(len(model.nodes)))
    violations = Layout(_violations(model, now), size=_size(_VIOLATIONS))
    tables = Layout(_tables(model), size=_size(len(model.tables)))
    services = Layout(_services(model), size=_size(sum(len(node.services) for node in model.nodes.values())))
    wanted = [violations, nodes, tables, services]
    if width >= _WIDER:
        beside = Layout(size=max(nodes.size or 0, tables.size or 0))
        beside.split_row(nodes.renderable, tables.renderable)
        wanted[1:3] = [beside]
    room = height - 2 - _NEWS
    shown = []
    for panel in wanted:  # the most important first: each has a place if it fits
        lines = panel.size or 0
        if lines <= room:
            shown.append(panel)
            room -= lines
    shown.sort(key=lambda panel: [wanted[1], violations, *wanted[2:]].index(panel))  # the nodes are on top
    screen = Layout()
    header, footer = Layout(_header(model, title, now, width), size=1), Layout(_footer(model), size=1)
    screen.split_column(header, *shown, news, footer)
    return screen


def _size(count: int) -> int:
    """Return the height of a panel with so many lines, at most `_LINES`, under its column names."""
    return max(1, min(count, _LINES)) + 3


def _header(model: Model, title: str, now: float, width: int) -> RenderableType:
    from rich.text import Text

    right = f"{now:4.0f} s" if model.connected else "NOT CONNECTED"
    left = Text(title, style="bold", no_wrap=True, overflow="ellipsis")
    left.truncate(max(0, width - len(right) - 1), overflow="ellipsis", pad=True)
    left.append(" ")
    left.append(right, style="bold" if model.connected else "bold red")
    return left


def _nodes(model: Model, now: float) -> RenderableType:
    since = now - model.reported_at if model.reported_at is not None else 0.0
    old = f", {since:.0f} s ago: the auditor is silent" if since > _STALE_REPORT else ""
    rows = []
    for name, node in model.nodes.items():
        # The auditor always hears itself.
        heard = "itself" if node.heard == 0.0 else f"{node.heard + since:.1f} s ago"
        services = ", ".join(service["service_id"] for service in node.services) or "-"
        rows.append([_text(name), _state(node.state), _text(heard), _text(services)])
    return _grid(f"nodes, as the auditor sees them{old}", ("node", "state", "last heard", "services"), rows)


def _violations(model: Model, now: float) -> RenderableType:
    table = model.tables.get(f"{POLICY}.{RULE}")
    old = "" if table is None or table.state == "LIVE" else f"; the auditor's copy is {table.state}"
    present = reversed(model.violations.values())
    recent = [*present, *reversed(model.past)]
    rows = [[*_violation(violation, now)] for violation in islice(recent, _VIOLATIONS)]
    now_there = len(model.violations)
    title = f"violations: {now_there} now, {model.violated - now_there} over{old}"
    return _grid(title, ("rule", "since", "for", "paged", "what"), rows, gap=2)


def _violation(violation: Violation, now: float) -> Iterable[Text]:
    over = violation.until is not None
    lasted = (violation.until if violation.until is not None else now) - violation.since
    paged = {0: "no", 1: "once"}.get(violation.pages, f"{violation.pages} times")
    cells = (violation.key[0], f"{violation.since:.1f}", f"{lasted:.1f} s{', over' if over else ''}", paged)
    return [_text(cell, "dim" if over else "bold red") for cell in (*cells, violation.text)]


def _services(model: Model) -> RenderableType:
    rows = [
        [_text(service["service_id"]), _text(name), _text(show_service(service))]
        for name, node in model.nodes.items()
        for service in node.services
    ]
    return _grid("services", ("service", "node", "what it does"), rows)


def _tables(model: Model) -> RenderableType:
    rows = [
        [_text(name), _state(table.state), _text(str(table.rows)), _text(show_version(table))]
        for name, table in model.tables.items()
    ]
    return _grid("tables, the auditor's replicas", ("table", "replica", "rows", "version"), rows)


def _entries(title: str, entries: Iterable[Entry], *, topics: bool = False) -> RenderableType:
    from rich.table import Table

    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(no_wrap=True, justify="right", min_width=6)
    if topics:
        grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    for entry in reversed(list(entries)):
        cells = [_text(f"{entry.at:.1f}", "dim")]
        if topics:
            cells.append(_text(entry.topic, "dim"))
        grid.add_row(*cells, _text(entry.text, _STYLES[entry.tone]))
    return _panel(title, grid)


def _footer(model: Model) -> RenderableType:
    from rich.text import Text

    text = Text("Ctrl-C ends  ", style="dim", no_wrap=True, overflow="ellipsis")
    trouble = next((entry for entry in reversed(model.notes) if entry.tone == "bad"), None)
    if trouble is not None:
        text.append(f"{trouble.at:.1f} {trouble.text}", style="not dim red")
    else:
        text.append(model.summary())
    return text


def _grid(title: str, columns: Sequence[str], rows: Sequence[Sequence[Text]], *, gap: int = 3) -> RenderableType:
    from rich.table import Table

    table = Table(box=None, expand=True, padding=(0, gap, 0, 0), header_style="dim", pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=True, overflow="ellipsis", ratio=1 if column == columns[-1] else None)
    for row in rows:
        table.add_row(*row)
    return _panel(title, table)


def _panel(title: str, content: RenderableType) -> RenderableType:
    from rich.panel import Panel

    return Panel(content, title=_text(title), title_align="left", border_style="dim", padding=(0, 1))


def _state(state: str) -> Text:
    return _text(state, _STATES.get(state, "red"))


def _text(text: str, style: str = "") -> Text:
    from rich.text import Text

    return Text(clean(text), style=style, no_wrap=True, overflow="ellipsis")
