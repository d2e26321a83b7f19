"""What the demo knows, made from its nodes' events; what is new in an event, as entries. No I/O, no clock."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from dse.cli.demo_nodes import Event
from dse.cli.text import clean

__all__ = ["Entry", "Model", "NodeLine", "TableLine", "Violation", "show_row", "show_violation"]

KEPT = 200
"""Entries of a kind that are kept."""

ROWS_SHOWN = {"sockets": 20}
FEW_ROWS = 8
"""Rows of one change that get a line each, by table; the first copy of a table may have thousands."""

LATENCIES = 10_000

EARLY = 100
"""Calls of the pager that are remembered until the violation is heard of that they are about."""


ViolationKey = tuple[str, tuple[Any, ...]]
"""(rule, row)"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of news. tone: ``good``, ``bad``, ``quiet`` or ''. at: seconds since the demo began."""

    at: float
    topic: str
    text: str
    tone: str = ""


@dataclass(slots=True)
class NodeLine:
    """A node as last reported."""

    state: str
    heard: float
    services: list[Event]


@dataclass(slots=True)
class TableLine:
    """A replica as last reported."""

    state: str
    rows: int
    epoch: str
    seq: int


@dataclass(slots=True)
class Violation:
    """A row of a rule's table. since, until: seconds since the demo began. pages: calls of the pager for it."""

    key: ViolationKey
    text: str
    since: float
    until: float | None = None
    pages: int = 0


@dataclass
class Model:
    """The state of the demo. reported_at: when the auditor last told the state of the bus, None before the first."""

    nodes: dict[str, NodeLine] = field(default_factory=dict)
    tables: dict[str, TableLine] = field(default_factory=dict)
    changes: deque[Entry] = field(default_factory=lambda: deque(maxlen=KEPT))
    calls: deque[Entry] = field(default_factory=lambda: deque(maxlen=KEPT))
    violations: dict[ViolationKey, Violation] = field(default_factory=dict)
    past: deque[Violation] = field(default_factory=lambda: deque(maxlen=KEPT))
    notes: deque[Entry] = field(default_factory=lambda: deque(maxlen=KEPT))
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=LATENCIES))
    connected: bool = True
    reported_at: float | None = None
    seen: int = 0
    violated: int = 0
    called: int = 0
    failed_calls: int = 0
    own_ports: set[str] = field(default_factory=set)
    failed: str = ""
    lost: int = 0
    _early: deque[ViolationKey] = field(default_factory=lambda: deque(maxlen=EARLY))

    def apply(self, event: Event, at: float) -> list[Entry]:
        """Take an event in; return what is worth a line of its own."""
        match event["kind"]:
            case "change":
                entries = list(self._change(event, at))
                self.changes.extend(entries)
            case "call":
                entries = [self._call(event, at)]
                self.calls.extend(entries)
            case "violation":
                entries = list(self._judged(event, at))
            case "page":
                entries = [self._paged(event, at)]
            case "status":
                entries = list(self._status(event, at))
                self.notes.extend(entries)
            case _:
                entries = [self._trouble(event, at)]
                self.notes.extend(entries)
        return entries

    def summary(self) -> str:
        """Return what happened, in one line."""
        violations = f"{self.violated} violation{'s' if self.violated != 1 else ''}"
        text = f"{self.seen} row changes seen, {violations}, {self.called} calls"
        if self.latencies:
            text += f" (median {statistics.median(self.latencies):.1f} ms)"
        return text + (f", {self.failed_calls} failed" if self.failed_calls else "")

    def _change(self, event: Event, at: float) -> Iterator[Entry]:
        table = event["table"]
        self.seen += len(event["added"]) + len(event["removed"])
        for sign, rows, tone in (("-", event["removed"], "bad"), ("+", event["added"], "good")):
            own = [row for row in rows if self._is_own(table, row)]
            rows = own + [row for row in rows if row not in own]
            shown = ROWS_SHOWN.get(table, FEW_ROWS)
            for row in rows[:shown]:
                yield Entry(at, table, f"{sign} {show_row(table, row, own=row in own)}", tone)
            if len(rows) > shown:
                yield Entry(at, table, f"{sign} … and {len(rows) - shown} more rows", tone)

    def _is_own(self, table: str, row: Sequence[Any]) -> bool:
        return table == "sockets" and str(row[0]) in self.own_ports

    def _judged(self, event: Event, at: float) -> Iterator[Entry]:
        rule = clean(event["rule"])
        for row in event["went"]:
            gone = self.violations.pop((rule, tuple(row)), None)
            if gone is not None:
                gone.until = at
                self.past.append(gone)
                yield Entry(at, "over", f"{rule}: {gone.text}, after {at - gone.since:.1f} s", "good")
        for row in event["came"]:
            key = (rule, tuple(row))
            new = self.violations[key] = Violation(key, show_violation(event["columns"], row), at)
            self.violated += 1
            while key in self._early:
                self._early.remove(key)
                new.pages += 1
            yield Entry(at, "violation", f"{rule}: {new.text}", "bad")

    def _paged(self, event: Event, at: float) -> Entry:
        key = clean(event["rule"]), tuple(event["row"])
        # The policy tells its subscribers and the pager at once: either may be heard first, and late.
        late = (violation for violation in reversed(self.past) if violation.key == key and not violation.pages)
        violation = self.violations.get(key) or next(late, None)
        if violation is not None:
            violation.pages += 1
        else:
            self._early.append(key)
        return Entry(at, "paged", f"{key[0]}: {show_violation(event['columns'], event['row'])}")

    def _call(self, event: Event, at: float) -> Entry:
        self.called += 1
        if event["ok"]:
            if event["call"].startswith("door.open("):
                self.own_ports.add(event["result"])
            self.latencies.append(event["ms"])
        else:
            self.failed_calls += 1
        text = f"{event['call']} -> {event['result']}"
        return Entry(at, "call", f"{event['ms']:7.1f} ms  {clean(text, 400)}", "" if event["ok"] else "bad")

    def _status(self, event: Event, at: float) -> Iterator[Entry]:
        self.reported_at = at
        if event["connected"] != self.connected:
            self.connected = event["connected"]
            text = "connected again" if self.connected else "the connection to the broker is lost"
            yield Entry(at, "bus", text, "good" if self.connected else "bad")
        yield from self._nodes(event["nodes"], at)
        for told in event["tables"]:
            name, line = told["name"], TableLine(told["state"], told["rows"], told["epoch"], told["seq"])
            before = self.tables.get(name)
            self.tables[name] = line
            if before is None or (before.state, before.epoch) != (line.state, line.epoch):
                held = f", {line.rows} rows, version {show_version(line)}" if line.epoch else ""
                yield Entry(at, "table", f"{name} {line.state}{held}", "good" if line.state == "LIVE" else "")

    def _nodes(self, told: Sequence[Event], at: float) -> Iterator[Entry]:
        for node in told:
            name = clean(node["node_id"])
            before = self.nodes.get(name)
            line = self.nodes[name] = NodeLine(node["state"], node["heard"], node["services"])
            if before is None or before.state != line.state:
                tone = {"JOINED": "good", "SUSPECT": "bad", "DEAD": "bad"}.get(line.state, "")
                yield Entry(at, "node", f"{name} {line.state}", tone)
            # A service may have more to offer later: a rule's table is there once its columns are known.
            known = before.services if before else []
            for service in line.services:
                if service not in known and line.state == "JOINED":
                    yield Entry(at, "service", f"{service['service_id']} on {name}: {show_service(service)}")
        gone = self.nodes.keys() - {clean(node["node_id"]) for node in told}
        for name in gone:  # forgotten, a while after it left
            del self.nodes[name]

    def _trouble(self, event: Event, at: float) -> Entry:
        text = clean(event["text"])
        if event["kind"] == "failed":
            self.failed = self.failed or text
        elif event["kind"] == "exit":
            self.lost += 1
        return Entry(at, "node" if event["kind"] != "log" else "log", f"{event['node']}: {text}", "bad")


def show_row(table: str, row: Sequence[Any], *, own: bool = False) -> str:
    """Return a row of the host's tables as text that is safe to show. own: it is the port that the demo opened."""
    if table == "sockets" and len(row) == 6:
        port, address, protocol, pid, process, user = row
        where = f"[{address}]" if ":" in str(address) else address
        mark = " (the demo's own)" if own else ""
        owner = f"{process or '?'} (pid {pid}, {user or '?'})" if pid is not None else "owner not shown to this user"
        return clean(f"{where}:{port} {protocol}{mark}  {owner}", 300)
    if table == "processes" and len(row) == 4:
        pid, name, user, _ = row
        return clean(f"{pid} {name or '?'} ({user or '?'})", 300)
    return clean(", ".join(map(str, row)), 300)  # another program's service of that name, on a shared bus


def show_violation(columns: Sequence[str], row: Sequence[Any]) -> str:
    """Return a row of a rule as text that is safe to show: the name of each column, and its value."""
    parts = []
    for column, value in zip(columns, row, strict=False):
        if column == "started" and isinstance(value, float):
            with contextlib.suppress(ValueError, OverflowError, OSError):  # another program's rule
                value = time.strftime("%H:%M:%S", time.localtime(value))
        parts.append(f"{column} {'?' if value is None else value}")
    return clean(", ".join(parts), 300)


def show_service(service: Event) -> str:
    """Return what a service offers and follows."""
    parts = [
        f"{label} {', '.join(service[key])}"
        for label, key in (("publishes", "tables"), ("follows", "follows"), ("methods", "methods"))
        if service[key]
    ]
    return clean("; ".join(parts) or "makes calls", 300)


def show_version(line: TableLine) -> str:
    """Return a replica's version in short: the start of the epoch, and the number of the change within it."""
    return f"{line.epoch[:4]}/{line.seq}" if line.epoch else "-"
