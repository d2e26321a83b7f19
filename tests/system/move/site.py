"""One process of the site: a node that publishes, works or watches. It is told what to do over stdin.

A request is a line of JSON: ``[method, arguments]``, with a public method of `Site`. So is its answer:
``[true, result]`` or ``[false, error]``.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import logging
import os
import signal
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from faults.books import Book, at_rate, read_book

from dse import Change, DataService, DseError, Node, Replica, Table, rpc

__all__ = ["WINDOW", "Site"]

WINDOW = 400
"""Rows of a table: each change adds one and removes the oldest."""

_TIMEOUT = 8.0  # of a call: longer than it takes to notice that a node is dead
_PR_SET_PDEATHSIG = 1


class Feed(DataService):
    """Publishes tables of numbered rows. What it published last is in a ledger, which the next life begins with."""

    a = Table("number", "text")
    b = Table("number", "text")

    def __init__(self, service_id: str, folder: Path, rate: float) -> None:
        super().__init__(service_id)
        self._latest: dict[str, int] = {}
        self._paths = {name: folder / f"ledger-{service_id}-{name}.jsonl" for name in self.published_tables}
        self._books = {name: Book(path) for name, path in self._paths.items()}
        self._pace = at_rate(rate)
        self._thread = threading.Thread(target=self._run, name="changes", daemon=True)

    def on_start(self) -> None:
        for name, table in self.published_tables.items():
            latest = self._latest[name] = max(read_book(self._paths[name]), default=WINDOW)
            table.replace(self._row(name, number) for number in range(latest - WINDOW + 1, latest + 1))

    def begin(self) -> None:
        self._thread.start()

    def halt(self) -> None:
        self._pace.stop()
        if self._thread.ident is not None:
            self._thread.join(20.0)

    def _run(self) -> None:
        for name, _ in zip(itertools.cycle(self.published_tables), self._pace, strict=False):
            number = self._latest[name] = self._latest[name] + 1
            self._books[name].write(number)
            self.published_tables[name].apply([self._row(name, number)], [self._row(name, number - WINDOW)])

    def _row(self, name: str, number: int) -> tuple[int, str]:
        return number, f"{self.service_id}.{name} {number}"


class Work(DataService):
    """Writes down what runs."""

    def __init__(self, service_id: str, folder: Path, who: str) -> None:
        super().__init__(service_id)
        self._who = who
        self._book = Book(folder / "ran.jsonl")

    @rpc
    def once(self, key: str, pause: float) -> str:
        """Must never run twice."""
        self._book.write([key, self.service_id, self._who])
        time.sleep(pause)
        return key


class Watch(DataService):
    """Follows tables and writes down every change; calls services and writes down how the calls ended."""

    def __init__(
        self, service_id: str, folder: Path, life: str, tables: list[tuple[str, str]], rate: float, targets: list[str]
    ) -> None:
        super().__init__(service_id)
        self._life = life
        self._tables = tables
        self._targets = targets
        self._changes = Book(folder / "changes.jsonl")
        self._calls = Book(folder / "calls.jsonl")
        self._pace = at_rate(rate)
        self._lock = threading.Condition()  # protects _open
        self._open = 0  # calls that have not ended
        self._thread = threading.Thread(target=self._run, name="calls", daemon=True)
        self.replicas: dict[str, Replica] = {}
        self.highest: dict[str, int] = {}

    def on_start(self) -> None:
        for service, table in self._tables:
            self.replicas[f"{service}.{table}"] = self.subscribe(service, table, self._seen, patient=True)

    def begin(self) -> None:
        self._thread.start()

    def halt(self) -> int:
        """Make no more calls; return how many have not ended in time."""
        self._pace.stop()
        if self._thread.ident is not None:
            self._thread.join(20.0)
        with self._lock:
            self._lock.wait_for(lambda: not self._open, _TIMEOUT + 5.0)
            return self._open

    def _seen(self, change: Change) -> None:
        table = f"{change.service_id}.{change.table}"
        added = sorted(number for number, _ in change.added)
        removed = sorted(number for number, _ in change.removed)
        self._changes.write([self._life, table, _ranges(added), _ranges(removed), *change.version])
        self.highest[table] = max(self.highest.get(table, 0), *added, 0)

    def _run(self) -> None:
        targets = itertools.cycle(self._targets)
        for number, _ in enumerate(self._pace):
            key = f"{self._life}:{os.getpid()}:{number}"
            entry = {"key": key, "life": self._life, "service": next(targets), "began": time.monotonic()}
            pause = 0.3 if number % 10 == 0 else 0.005
            with self._lock:
                self._open += 1
            future = self.node.call_async(entry["service"], "once", {"key": key, "pause": pause}, timeout=_TIMEOUT)
            future.add_done_callback(lambda ended, entry=entry: self._ended(entry, ended))  # type: ignore[misc]

    def _ended(self, entry: dict[str, Any], future: Future[Any]) -> None:
        error = future.exception()
        self._calls.write(
            entry
            | {
                "seconds": time.monotonic() - entry["began"],
                "error": type(error).__name__ if error else "",
                "message": str(error) if error else "",
                "typed": isinstance(error, DseError),
                "right": error is None and future.result() == entry["key"],
            }
        )
        with self._lock:
            self._open -= 1
            self._lock.notify_all()


def _ranges(numbers: list[int]) -> list[list[int]]:
    """Return sorted numbers as ranges, first and last."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return found


class Site:
    """What one process is (`mover.Role` as a dict, with url and life); every public method may be asked for."""

    def __init__(self, folder: Path, plan: dict[str, Any]) -> None:
        self.feeds = [Feed(name, folder, plan["change_rate"]) for name in plan["feeds"]]
        work = [Work(name, folder, plan["life"]) for name in plan["work"]]
        tables = [(service, table) for service, table in plan["follows"]]
        self.watches = (
            [Watch(f"watch_{plan['role']}", folder, plan["life"], tables, plan["call_rate"], plan["calls"])]
            if tables
            else []
        )
        services = [*self.feeds, *work, *self.watches]
        self._node = Node(plan["url"], bus=plan["bus"], node_id=plan["role"], services=services,
                          heartbeat_interval=plan["interval"])  # fmt: skip

    def start(self) -> None:
        self._node.start()

    def begin(self) -> None:
        """Begin the load."""
        for each in (*self.feeds, *self.watches):
            each.begin()

    def wait_for(self, services: list[str]) -> None:
        for service in services:
            self._node.wait_for(service, 20.0)

    def standing(self) -> dict[str, list[Any]]:
        """Return table -> state and highest row of each replica."""
        return {
            table: [replica.state.value, watch.highest.get(table, 0)]
            for watch in self.watches
            for table, replica in watch.replicas.items()
        }

    def contents(self) -> dict[str, list[list[int]]]:
        return {
            table: _ranges(sorted(number for number, _ in replica.rows))
            for watch in self.watches
            for table, replica in watch.replicas.items()
        }

    def halt_changes(self) -> None:
        for feed in self.feeds:
            feed.halt()

    def halt_calls(self) -> int:
        """Make no more calls, and return how many hang."""
        return sum(watch.halt() for watch in self.watches)

    def stop(self) -> int:
        """End the load, then the node; return how many calls hang."""
        self.halt_changes()
        hanging = self.halt_calls()
        self._node.stop()
        return hanging


def main(folder: str, plan: str) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s.%(msecs)03d %(levelname)s %(message)s", datefmt="%T")
    answers, sys.stdout = sys.stdout, sys.stderr
    site = Site(Path(folder), json.loads(plan))
    print(json.dumps([True, "ready"]), file=answers, flush=True)
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            answer = [True, getattr(site, name)(**arguments)]
        except Exception as error:
            logging.exception("%s failed", name)
            answer = [False, f"{type(error).__name__}: {error}"]
        print(json.dumps(answer), file=answers, flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
