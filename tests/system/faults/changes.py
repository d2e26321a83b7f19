"""Tables under constant change, and subscribers that add up what they are told."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dse import Change, DataService, PublishedTable, Replica, Table
from faults.books import Book, at_rate, read_book

__all__ = ["Changes", "Ledger", "Source", "Watch", "Watcher", "fingerprint", "source"]

Row = tuple[str, int, str]

_FEWEST, _MOST = 200, 400  # rows of a table


def fingerprint(rows: Iterable[Any]) -> str:
    """Return a digest of a set of rows, by other means than the product's."""
    return hashlib.blake2b(repr(sorted(rows)).encode(), digest_size=12).hexdigest()


class Ledger:
    """What one published table was made to be: the rows, and a book of every change it accepted."""

    def __init__(self, path: Path) -> None:
        self.lock = threading.Lock()  # held while table and ledger are changed, so that they agree whenever it is free
        self.filled = False  # the table began with these rows; registered once more, it is empty until it does again
        self.rows: set[Row] = set()
        self.accepted = 0
        for added, removed in read_book(path):
            self._apply(map(tuple, added), map(tuple, removed))
        self._book = Book(path)

    def accept(self, added: Sequence[Row], removed: Sequence[Row]) -> None:
        self._book.write([added, removed])
        self._apply(added, removed)
        self.accepted += 1

    def _apply(self, added: Iterable[Any], removed: Iterable[Any]) -> None:
        self.rows.difference_update(removed)
        self.rows.update(added)


class Source(DataService):
    """Publishes tables; begins with what their ledgers say, as a service does that keeps its data elsewhere."""

    def __init__(self, service_id: str, folder: Path, place: str) -> None:
        super().__init__(service_id)
        self.ledgers = {
            name: Ledger(folder / f"ledger-{place}-{service_id}-{name}.jsonl") for name in self.published_tables
        }

    def on_start(self) -> None:
        for name, ledger in self.ledgers.items():
            with ledger.lock:
                self.published_tables[name].replace(ledger.rows)
                ledger.filled = True

    def empty(self) -> None:
        """Make no changes until `on_start` filled the tables: registering a service again empties them."""
        for ledger in self.ledgers.values():
            with ledger.lock:
                ledger.filled = False


def source(service_id: str, tables: Sequence[str], folder: Path, place: str) -> Source:
    """Make a service that publishes tables of these names."""
    kind = type("Source", (Source,), {name: Table("key", "value", "note") for name in tables})
    made: Source = kind(service_id, folder, place)
    return made


class Changes:
    """A thread that changes the tables of sources, one after the other at random: inserts, deletes, replacements.

    seed: of the draws. rate: changes a second, over all tables. `wrong` are answers of the tables that do not fit.
    """

    def __init__(self, seed: str, rate: float) -> None:
        self.pace = at_rate(rate)
        self.note_length = 10
        self.slowest = 0.0  # seconds that one change took
        self.wrong: list[str] = []
        self._random = random.Random(seed)
        self._numbers = iter(range(1 << 60))
        self._tables: list[tuple[PublishedTable, Ledger]] = []
        self._prefix = seed
        self._thread: threading.Thread | None = None

    @property
    def accepted(self) -> int:
        return sum(ledger.accepted for _, ledger in self._tables)

    def add(self, service: Source) -> None:
        """Change the tables of a service too; it is not on a node yet, and begins with some hundred rows a table."""
        for name, ledger in service.ledgers.items():
            if not ledger.rows:
                ledger.accept([self._row() for _ in range((_FEWEST + _MOST) // 2)], ())
            self._tables.append((service.published_tables[name], ledger))

    def begin(self) -> None:
        if self._tables:
            self._thread = threading.Thread(target=self._run, name="changes", daemon=True)
            self._thread.start()

    def halt(self) -> None:
        """Make no more changes; the last one has returned."""
        self.pace.stop()
        if self._thread is not None:
            self._thread.join(30.0)
            assert not self._thread.is_alive(), "a table did not accept or refuse a change within 30 s"

    def _run(self) -> None:
        for _ in self.pace:
            table, ledger = self._random.choice(self._tables)
            with ledger.lock:
                if ledger.filled:
                    self._change(table, ledger)

    def _change(self, table: PublishedTable, ledger: Ledger) -> None:
        held = sorted(ledger.rows)
        some = self._random.sample(held, self._random.randint(1, 3))
        new = [self._row() for _ in some]
        began = time.monotonic()
        kind = self._random.choice(("insert", "delete", "apply", "replace"))
        if kind == "replace" or kind == "apply":
            added, removed = new, some
            change = table.apply(new, some) if kind == "apply" else table.replace((set(held) - set(some)) | set(new))
        elif len(held) < _MOST and (kind == "insert" or len(held) < _FEWEST):
            added, removed = new, []
            change = table.insert(new)
        else:
            added, removed = [], some
            change = table.delete(some)
        self.slowest = max(self.slowest, time.monotonic() - began)
        if change.added != set(added) or change.removed != set(removed):
            self.wrong.append(f"{table!r}: {kind} of {added}, {removed} returned {change}")
        ledger.accept(added, removed)

    def _row(self) -> Row:
        number = next(self._numbers)
        return f"{self._prefix}-{number}", self._random.randrange(1 << 40), "n" * self.note_length


class Watch:
    """One subscription: adds up the changes, and notes each that comes twice, too early or in the wrong order."""

    def __init__(self) -> None:
        self.replica: Replica
        self.sum: set[Any] = set()
        self.calls = 0
        self.wrong: list[str] = []
        self.pause = 0.0  # seconds that the callback sleeps
        self._latest: dict[str, int] = {}

    def seen(self, change: Change) -> None:
        if self.pause:
            time.sleep(self.pause)
        self.calls += 1
        where = f"{change.service_id}.{change.table} at {change.version}"
        for row in change.added & self.sum:
            self.wrong.append(f"{where}: {row} came twice")
        for row in change.removed - self.sum:
            self.wrong.append(f"{where}: {row} went without having come")
        epoch, seq = change.version
        if seq < self._latest.get(epoch, 0):
            self.wrong.append(f"{where}: after {self._latest[epoch]}")
        self._latest[epoch] = seq
        self.sum -= change.removed
        self.sum |= change.added


class Watcher(DataService):
    """Subscribes to tables, each a (service_id, table)."""

    def __init__(self, service_id: str, tables: Iterable[tuple[str, str]]) -> None:
        super().__init__(service_id)
        self.watches = {(service, table): Watch() for service, table in tables}

    def on_start(self) -> None:
        for (service, table), watch in self.watches.items():
            watch.replica = self.subscribe(service, table, watch.seen)
