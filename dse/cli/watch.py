"""`dse watch SERVICE:TABLE`: the rows of a table as they come and go."""

from __future__ import annotations

import argparse
import contextlib
import queue
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from dse.cli.bus import FAILED, observing, print_json
from dse.cli.hints import among, did_you_mean
from dse.cli.progress import Bar, progress
from dse.cli.text import clean
from dse.core.observer import Observer
from dse.core.replica import ReplicaState
from dse.core.table import Change
from dse.errors import ConfigError, NoSuchTable

__all__ = ["run_watch"]

BAR_EVERY = 0.1  # seconds between two looks at how much of a large table has come, while somebody sees the bar


class _Printer:
    """Prints changes, on the thread that brings them: a reader that is slow slows only them down.

    `happened` gets each state of the replica, and None when nobody reads any more.
    """

    def __init__(self, bar: Bar, *, as_json: bool) -> None:
        self._bar = bar
        self.happened: queue.SimpleQueue[ReplicaState | None] = queue.SimpleQueue()
        self.columns: Sequence[str] = ()
        self._as_json = as_json
        self._unread = threading.Event()

    def change(self, change: Change) -> None:
        if self._unread.is_set():
            return
        self._bar.close()  # it is in the way of the rows
        try:
            for sign, rows in (("-", change.removed), ("+", change.added)):
                for row in sorted(rows, key=repr):
                    self._row(sign, row)
            sys.stdout.flush()
        except (BrokenPipeError, ValueError):  # ValueError: stdout was closed
            self._unread.set()
            self.happened.put(None)

    def _row(self, sign: str, row: Sequence[Any]) -> None:
        if self._as_json:
            print_json({"change": sign, "row": dict(zip(self.columns, row, strict=False))}, lines=True)
        else:
            cells = " ".join(f"{column}={_cell(cell)}" for column, cell in zip(self.columns, row, strict=False))
            print(clean(f"{sign} {cells}"))


def _cell(cell: object) -> str:
    if isinstance(cell, str) and cell and " " not in cell:
        return cell
    return repr(cell[:1000] if isinstance(cell, str | bytes) else cell)


def run_watch(options: argparse.Namespace) -> int:
    """Print the rows, and each that comes or goes, until it is ended; return the exit code."""
    service_id, colon, table = options.table.partition(":")
    if not (colon and service_id and table):
        raise ConfigError(f"a table is named SERVICE:TABLE, as in host:sockets, not {options.table!r}")
    ends = time.monotonic() + options.seconds if options.seconds else float("inf")
    with observing(options) as observer, progress() as bar:
        _say_if_missing(observer, service_id)
        printer = _Printer(bar, as_json=options.json)

        subscribed = threading.Event()

        def show(change: Change) -> None:
            subscribed.wait()
            printer.columns = replica.columns
            printer.change(change)

        try:
            replica = observer.subscribe(service_id, table, show, on_state=printer.happened.put)
        except NoSuchTable as error:
            infos = [info for node in observer.status().peers.values() for info in node.services]
            tables = {name for info in infos if info.service_id == service_id for name in info.published_tables}
            print(clean(f"dse watch: NoSuchTable: {error}{did_you_mean(table, tables)}"), file=sys.stderr)
            return FAILED
        subscribed.set()
        with contextlib.suppress(KeyboardInterrupt):
            while time.monotonic() < ends:
                if (refused := replica.error) is not None:
                    bar.close()
                    print(clean(f"dse watch: Untrusted: {refused}"), file=sys.stderr)
                    return FAILED
                wait = min(BAR_EVERY if replica.state is ReplicaState.SYNCING else 3600.0, ends - time.monotonic())
                try:
                    state = printer.happened.get(timeout=max(0.0, wait))
                except queue.Empty:
                    loading = replica.loading
                    if loading is not None:
                        bar(f"{options.table}: rows", *loading)
                    continue
                if state is None:
                    return 0
                if state is not ReplicaState.SYNCING:
                    bar.close()
                _say_state(options.table, state, len(replica), known=bool(replica.columns))
        if not replica.columns:
            print(clean(f"{options.table}: nobody published it"), file=sys.stderr)
            return FAILED
    return 0


def _say_state(table: str, state: ReplicaState, rows: int, *, known: bool) -> None:
    what = {
        ReplicaState.SYNCING: "catching up" if known else "waiting for it",
        ReplicaState.LIVE: f"live, {rows} rows",
        ReplicaState.STALE: "stale: its publisher is gone, or the connection; these are the last rows",
    }[state]
    print(clean(f"{table}: {what}"), file=sys.stderr, flush=True)


def _say_if_missing(observer: Observer, service_id: str) -> None:
    services = {info.service_id for node in observer.status().peers.values() for info in node.services}
    if service_id not in services:
        print(
            clean(
                f"no node offers the service {service_id!r} now, waiting for one; "
                f"there are: {among(services)}{did_you_mean(service_id, services)}"
            ),
            file=sys.stderr,
            flush=True,
        )
