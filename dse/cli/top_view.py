"""How `dse top` is drawn: columns, their order and their widths; as plain lines, and for a terminal with rich."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dse.cli.text import clean
from dse.cli.top_model import Board, NodeLine, TableLine

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

__all__ = ["NODES", "TABLES", "Order", "draw", "lines"]

NAME = 40  # characters of a name at most; the last column takes what is left
_STATES = {"JOINED": "green", "SUSPECT": "yellow", "JOINING": "yellow"}


@dataclass(frozen=True)
class Column:
    """head: its name. show: the cell of a line. key: what lines are sorted by. width: of numbers; 0 is that of text.

    rank: columns of a higher one are left out first where the terminal is narrow.
    """

    head: str
    show: Callable[[Any], str]
    key: Callable[[Any], Any]
    width: int = 0
    rank: int = 0


def _rate(name: str) -> tuple[Callable[[NodeLine], str], Callable[[NodeLine], float]]:
    return (lambda line: count(line.rates.get(name))), (lambda line: line.rates.get(name, -1.0))


def _known(value: float | None) -> float:
    return -1.0 if value is None else value


NODES: tuple[Column, ...] = (
    Column("node", lambda n: n.node_id, lambda n: n.node_id),
    Column("state", lambda n: n.state, lambda n: n.state, 7),
    Column("heard", lambda n: age(n.last_heard), lambda n: n.last_heard, 5, 4),
    Column("up", lambda n: age(n.uptime), lambda n: _known(n.uptime), 5, 5),
    Column("served/s", *_rate("calls_served"), 8, 1),
    Column("err/s", *_rate("serve_errors"), 5, 3),
    Column("median", lambda n: span(n.median), lambda n: _known(n.median), 7, 2),
    Column("p99", lambda n: span(n.p99), lambda n: _known(n.p99), 7, 2),
    Column("made/s", *_rate("calls_made"), 6, 3),
    Column("fail/s", *_rate("call_errors"), 6, 6),
    Column("chg/s", *_rate("changes"), 5, 1),
    Column("in/s", *_rate("messages_in"), 5, 4),
    Column("out/s", *_rate("messages_out"), 5, 4),
    Column("queue", lambda n: count(n.waiting), lambda n: _known(n.waiting), 5, 3),
    Column("open", lambda n: count(n.pending), lambda n: _known(n.pending), 5, 6),
    Column("reconn", lambda n: count(n.reconnects), lambda n: _known(n.reconnects), 6, 5),
    Column("denied", lambda n: count(n.denied), lambda n: _known(n.denied), 6, 6),
    Column("services", lambda n: ", ".join(n.services) or "-", lambda n: len(n.services)),
)

TABLES: tuple[Column, ...] = (
    Column("table", lambda t: t.table, lambda t: t.table),
    Column("rows", lambda t: count(t.rows), lambda t: t.rows, 8),
    Column("chg/s", lambda t: count(t.changes), lambda t: _known(t.changes), 6),
    Column("followers", lambda t: count(t.followers), lambda t: t.followers, 9),
    Column("published by", lambda t: t.node_id, lambda t: t.node_id),
)


@dataclass
class Order:
    """What nodes are sorted by: the place of a column; numbers begin with the largest, text with the first."""

    place: int = 0
    reverse: bool = False

    def apply(self, nodes: Sequence[NodeLine]) -> list[NodeLine]:
        """Return the nodes in order, equal ones by name."""
        column = NODES[self.place]
        falling = bool(column.width and column.head != "state") != self.reverse
        return sorted(sorted(nodes, key=lambda n: n.node_id), key=column.key, reverse=falling)

    def key(self, pressed: str) -> bool:
        """Take a key; say whether it meant something."""
        if pressed in (">", "s", "\x1b[C"):
            self.place = (self.place + 1) % len(NODES)
        elif pressed in ("<", "\x1b[D"):
            self.place = (self.place - 1) % len(NODES)
        elif pressed == "r":
            self.reverse = not self.reverse
        else:
            return False
        return True


def count(value: float | None) -> str:
    """Return a number in five characters at most: 7, 0.5, 12.3k, 4.0M; "-" for None."""
    if value is None:
        return "-"
    if value < 9.95 and value != int(value):
        return f"{value:.1f}"
    for unit in ("", "k", "M", "G"):
        if value < 999.5:
            return f"{value:.0f}{unit}" if not unit or value >= 99.95 else f"{value:.1f}{unit}"
        value /= 1000
    return f"{value:.0f}T" if value < 1e4 else ">9e15"


def span(seconds: float | None) -> str:
    """Return a short time: 85us, 1.2ms, 3.4s."""
    if seconds is None:
        return "-"
    if seconds < 0.0009995:
        return f"{seconds * 1e6:.0f}us"
    return f"{seconds * 1000:.1f}ms" if seconds < 0.9995 else age(seconds)


def age(seconds: float | None) -> str:
    """Return a long time: 4s, 3m, 5h, 12d."""
    if seconds is None:
        return "-"
    if seconds < 99.5:
        return f"{seconds:.1f}s" if seconds < 9.95 else f"{seconds:.0f}s"
    if seconds < 99 * 60:
        return f"{seconds / 60:.0f}m"
    return f"{seconds / 3600:.0f}h" if seconds < 99 * 3600 else f"{seconds / 86400:.0f}d"


def summary(board: Board) -> str:
    """Return what there is, in a line."""
    nodes = len(board.nodes)
    served = sum(node.rates.get("calls_served", 0.0) for node in board.nodes)
    changes = sum(node.rates.get("changes", 0.0) for node in board.nodes)
    text = f"{nodes} node{'s' * (nodes != 1)}, {count(served)} calls/s, {count(changes)} changes/s"
    return text if board.connected else f"NOT CONNECTED to the broker; {text}"


def troubles(board: Board) -> list[str]:
    """Return a line for each table of a source that is DEGRADED."""
    return [clean(f"DEGRADED {each.service}:{each.table}: {each.reason}", 300) for each in board.troubles]


def lines(board: Board, order: Order) -> list[str]:
    """Return everything as plain lines."""
    shown = [clean(summary(board)), *troubles(board)]
    for columns, entries in ((NODES, order.apply(board.nodes)), (TABLES, board.tables)):
        if not entries:
            continue
        cells = [[column.head for column in columns]]
        cells += [[clean(column.show(entry), 200) for column in columns] for entry in entries]
        widths = [max(len(row[place]) for row in cells) for place in range(len(columns))]
        for row in cells:
            aligned = [
                cell.rjust(width) if column.width else cell.ljust(width)
                for column, cell, width in zip(columns, row, widths, strict=True)
            ]
            shown.append("  ".join(aligned).rstrip())
    return shown


def fitting(columns: Sequence[Column], width: int) -> list[Column]:
    """Return the columns that a terminal of that width has room for."""
    left = list(columns)
    while len(left) > 2 and sum(max(column.width or 14, len(column.head)) + 1 for column in left) > width:
        worst = max(column.rank for column in left)
        if not worst:
            break
        left.remove(next(column for column in reversed(left) if column.rank == worst))
    return left


def draw(board: Board, title: str, order: Order, width: int, height: int) -> RenderableType:
    """Return the screen of that size."""
    from rich.console import Group

    parts: list[RenderableType] = [_line(f"{title}  {summary(board)}", "bold" if board.connected else "bold red")]
    parts += [_line(text, "yellow") for text in troubles(board)[: max(0, height // 4)]]
    left = height - len(parts) - 1
    tables = min(len(board.tables), max(0, left // 2 - 2)) if left >= 8 else 0
    room = left - (tables + 2 if tables else 0)  # a head and an empty line
    parts += _grid(NODES, order.apply(board.nodes), width, room, order.place)
    if tables:
        parts.append(_line("", ""))
        busiest = sorted(board.tables, key=lambda line: (-_known(line.changes), line.table))
        parts += _grid(TABLES, busiest, width, tables + 1, None)
    parts = parts[: height - 1]
    parts += [_line("", "")] * (height - 1 - len(parts))
    sort = NODES[order.place].head + (", reversed" if order.reverse else "")
    parts.append(_line(f"q quit  < > sort by: {sort}  r reverse", "dim"))
    return Group(*parts)


def _grid(
    columns: Sequence[Column], entries: Sequence[NodeLine | TableLine], width: int, room: int, sorted_by: int | None
) -> list[RenderableType]:
    """Return at most `room` lines: a head, and as many entries as fit; the last says how many are left out."""
    if room < 1:
        return []
    shown = list(entries[: room - 1])
    if len(shown) < len(entries) and shown:
        shown.pop()
    chosen = fitting(columns, width)
    cells = [[clean(column.show(entry), 200) for column in chosen] for entry in shown]
    from rich.cells import cell_len

    widths = []
    for place, column in enumerate(chosen):
        longest = max([len(column.head), column.width, *(cell_len(row[place]) for row in cells)])
        widths.append(longest if column.width else min(longest, NAME))
    fixed = sum(widths) - widths[0] - widths[-1] + len(chosen) - 1
    # Names share what the numbers leave.
    for_names = max(2, width - fixed)
    widths[0] = min(widths[0], max(for_names - len(chosen[-1].head), for_names // 2, 1))
    widths[-1] = max(1, for_names - widths[0])
    heads = [_row(chosen, [c.head for c in chosen], widths, "dim", None if sorted_by is None else columns[sorted_by])]
    rows = [_row(chosen, row, widths, "", None) for row in cells]
    if len(shown) < len(entries):
        rows.append(_line(f"… and {len(entries) - len(shown)} more", "dim"))
    return [*heads, *rows]


def _row(
    columns: Sequence[Column], cells: Sequence[str], widths: Sequence[int], style: str, marked: Column | None
) -> RenderableType:
    row = _line("", "")
    for column, cell, width in zip(columns, cells, widths, strict=True):
        if len(row):
            row.append(" ")
        part = _line(cell, "reverse" if column is marked else (style or _style(column, cell)))
        if column.width:
            part.align("right", width)
        else:
            part.truncate(width, overflow="ellipsis", pad=True)
        row.append_text(part)
    return row


def _style(column: Column, cell: str) -> str:
    if column.head == "state":
        return _STATES.get(cell, "red")
    if column.head in ("err/s", "fail/s", "queue", "reconn") and cell not in ("0", "-"):
        return "yellow"
    return ""


def _line(text: str, style: str) -> Text:
    from rich.text import Text

    return Text(clean(text), style=style, no_wrap=True, overflow="ellipsis", end="\n")
