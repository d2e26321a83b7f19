"""`Source`: a service that fills tables from something outside of the bus, one `Feed` a table.

What all sources have in common stands here: a thread for each feed that is at work, polling, waking up early, back-off,
working only while somebody subscribes (`lazy`), and an honest `status` table. A feed only says how to read.

Rules:

1. A table is *pending* until its feed was read for the first time: nobody takes what is not known for empty.
2. A feed that fails keeps the last rows. It is DEGRADED with the reason, tries again with growing, jittered pauses, and
   recovers by itself. So it is with rows that do not fit: the others are published, and the reason says which not.
3. With `lazy` a feed is at work from its first subscriber to its last; then it is IDLE, and its table pending again.
4. When `on_stop` returns no thread of the source is left, but for one whose `Feed.read` ignores `Feed.interrupt`.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar

from dse.core.info import identifier
from dse.core.methods import rpc
from dse.core.service import DataService
from dse.core.table import PublishedTable
from dse.errors import ConfigError

__all__ = ["Feed", "Problem", "Reading", "Source", "SourceState"]

_log = logging.getLogger("dse.source")

_PROBLEMS = 100  # kept of each feed
_REASON = 500  # characters of a reason
_JOIN = 5.0  # seconds that stopping gives a read that was interrupted


class SourceState(StrEnum):
    """How one table of a source is."""

    IDLE = "IDLE"  # nobody subscribes, and it is lazy; or the service does not run
    STARTING = "STARTING"  # not read yet
    RUNNING = "RUNNING"
    DEGRADED = "DEGRADED"  # the rows are the last that could be read, or some are left out


@dataclass(frozen=True, slots=True)
class Problem:
    """A row that was left out. place: where it stands, as in ``machines.csv:17``; what: what is wrong with it."""

    place: str
    what: str

    def __str__(self) -> str:
        return f"{self.place}: {self.what}" if self.place else self.what


@dataclass(frozen=True, slots=True)
class Reading:
    """What one look gave.

    rows: all that the table holds now. problems: rows that were left out, the first hundred or so. left_out: how many.
    """

    rows: Collection[Any]
    problems: Sequence[Problem] = ()
    left_out: int = 0


class Feed(ABC):
    """Where the rows of one table come from. Its methods are called by one thread at a time, but for `interrupt`.

    name: of the table. columns: their names. interval: seconds from one look to the next; None: only when `changed` is
    called, or after a failure. Whatever a method raises is a failure of the feed, with the exception's text as the
    reason: it should name the culprit (a file, a URL without its password) and say what is wrong.

    reopen: whether `close` and `open` are called after a `read` that failed. False for one whose `open` outlasts it, as
    a watcher that tells when what it watches is back.
    """

    reopen: ClassVar[bool] = True

    def __init__(self, name: str, columns: Sequence[str], *, interval: float | None) -> None:
        self.name = name
        self.columns = tuple(columns)
        self.interval = interval
        self._wake: _Worker | None = None

    def open(self) -> None:  # noqa: B027 - optional, as the next two
        """Begin to work: connect, watch. Called before the first `read`, and again after `close`."""

    @abstractmethod
    def read(self) -> Reading | None:
        """Return what the table holds now, or None if that is what it held the last time. May block, with a timeout."""

    def close(self) -> None:  # noqa: B027
        """End what `open` began; also called when `open` or `read` raised. Must not raise."""

    def interrupt(self) -> None:  # noqa: B027
        """Make a `read` that blocks return or raise soon. Called from another thread, when the source stops."""

    def changed(self) -> None:
        """Have `read` called soon. For watchers; from any thread."""
        worker = self._wake
        if worker is not None:
            worker.wake()

    @property
    def interrupted(self) -> bool:
        """Whether the source stops: a long `read` may look here."""
        worker = self._wake
        return worker is None or not worker.wanted


class Source(DataService):
    """See the rules at the top of this file.

    feeds: one for each table. lazy: work only while somebody subscribes. max_backoff: the longest pause after failures,
    in seconds. Besides the feeds' tables there is one named ``status`` with the columns table, state and reason. Raises
    `ConfigError` for a table that is named so, or twice.
    """

    def __init__(
        self, service_id: str, feeds: Iterable[Feed], *, lazy: bool = False, max_backoff: float = 60.0
    ) -> None:
        super().__init__(service_id)
        if not max_backoff > 0:
            raise ConfigError(f"max_backoff is a positive number of seconds, not {max_backoff!r}", key=("max_backoff",))
        self.lazy = lazy
        self._workers: dict[str, _Worker] = {}
        for feed in feeds:
            name = identifier("table name", feed.name)
            if name == "status":
                raise ConfigError("status is the table in which a source says how it is: name yours differently")
            if feed.interval is not None and not feed.interval > 0:
                raise ConfigError(f"{name}: interval is a positive number of seconds, not {feed.interval!r}")
            table = self.add_table(name, *feed.columns, pending=True)
            self._workers[name] = _Worker(self, feed, table, max_backoff)
        self._states = self.add_table(
            "status", "table", "state", "reason", rows=[(name, SourceState.IDLE.value, "") for name in self._workers]
        )
        self._states_lock = threading.Lock()  # one at a time compares and publishes a state

    @property
    def status(self) -> str:
        """As `DataService.status`, but ``degraded`` while it runs and a table of it is DEGRADED."""
        status = super().status
        if status == "running" and any(worker.state is SourceState.DEGRADED for worker in self._workers.values()):
            return "degraded"
        return status

    @rpc(idempotent=True)
    def problems(self, table: str) -> list[str]:
        """Return what was wrong at the last look: rows that were left out, by place, or why nothing could be read."""
        worker = self._workers.get(table)
        if worker is None:
            raise LookupError(f"{self.service_id} fills no table {table!r}; it fills: {', '.join(self._workers)}")
        return list(worker.problems)

    def on_start(self) -> None:
        """Begin to work, unless lazy."""
        if not self.lazy:
            for worker in self._workers.values():
                worker.start()

    def on_stop(self) -> None:
        """End the work; no thread is left."""
        deadline = time.monotonic() + _JOIN
        for worker in self._workers.values():
            worker.stop()
        for worker in self._workers.values():
            worker.join(deadline)

    def on_first_subscriber(self, table: str) -> None:
        """Begin to work on the table, if lazy."""
        if self.lazy and table in self._workers:
            self._workers[table].start()

    def on_last_unsubscribe(self, table: str) -> None:
        """End the work on the table, if lazy."""
        if self.lazy and table in self._workers:
            self._workers[table].stop()

    def _tell(self, table: str, state: SourceState, reason: str) -> None:
        with self._states_lock:
            old = [row for row in self._states.rows if row[0] == table]
            self._states.apply([(table, state.value, reason)], old)


@dataclass(eq=False)
class _Worker:
    """Works on one feed, in a thread of its own while it is wanted.

    Lock: ``_changed`` protects ``wanted``, ``_woken`` and ``_thread``.
    """

    source: Source
    feed: Feed
    table: PublishedTable
    max_backoff: float
    state: SourceState = SourceState.IDLE
    reason: str = ""
    problems: Sequence[str] = ()
    wanted: bool = False
    _found: tuple[SourceState, str, Sequence[str]] = (SourceState.RUNNING, "", ())  # what the last reading came to
    _woken: bool = False
    _thread: threading.Thread | None = None
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def start(self) -> None:
        """Work from now on."""
        with self._changed:
            self.wanted, self._woken = True, True
            self.feed._wake = self
            if self._thread is not None:
                self._changed.notify_all()  # it was about to end, and goes on
                return
            name = f"{self.source.service_id}-{self.feed.name}"
            thread = self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        thread.start()

    def stop(self) -> None:
        """Work no more; the thread ends soon."""
        with self._changed:
            self.wanted = False
            self._changed.notify_all()
            running = self._thread is not None
        if running:
            self.feed.interrupt()

    def join(self, deadline: float) -> None:
        """Wait until the thread has ended, or the deadline."""
        with self._changed:
            thread = self._thread
        if thread is None:
            return
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            _log.warning("%s.%s: a read does not end; left behind", self.source.service_id, self.feed.name)

    def wake(self) -> None:
        """Look soon."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    # The thread

    def _run(self) -> None:
        while True:
            self._work()
            with self._changed:
                if not self.wanted:
                    self._thread = None
                    return

    def _work(self) -> None:
        """Open, read as long as it is wanted, close; after a failure close, pause and open again."""
        failures, opened, ready = 0, False, False
        self._turn(SourceState.STARTING)
        while self.wanted:
            with self._changed:
                self._woken = False
            try:
                if not opened:
                    opened, ready = True, False
                    self.feed.open()
                    ready = True
                reading = self.feed.read()
                if reading is not None:
                    self.table.replace(reading.rows)
                    self._found = _verdict(reading)
                else:
                    self.table.apply()  # as it was: who waits for it may have it
                failures = 0
                self._turn(*self._found)
            except Exception as error:
                if not self.wanted:
                    break  # it was interrupted
                failures += 1
                self._failed(error, failures)
                if self.feed.reopen or not ready:
                    self.feed.close()
                    opened = False
            self._wait(self._pause(failures))
        if opened:
            self.feed.close()
        self.table.suspend()
        self._turn(SourceState.IDLE)

    def _wait(self, seconds: float | None) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._woken or not self.wanted, seconds)

    def _pause(self, failures: int) -> float | None:
        if not failures:
            return self.feed.interval
        first = min(self.feed.interval or 1.0, self.max_backoff)
        return min(self.max_backoff, first * 2.0 ** min(failures - 1, 30)) * random.uniform(0.5, 1.0)

    def _failed(self, error: Exception, failures: int) -> None:
        reason = str(error) or type(error).__name__
        if failures == 1:
            _log.warning("%s.%s: %s", self.source.service_id, self.feed.name, _short(reason))
        _log.debug("%s.%s: failed", self.source.service_id, self.feed.name, exc_info=error)
        self._turn(SourceState.DEGRADED, reason, [reason])

    def _turn(self, state: SourceState, reason: str = "", problems: Sequence[str] = ()) -> None:
        self.problems = problems
        reason = _short(reason)
        if (state, reason) == (self.state, self.reason):
            return
        if self.state is SourceState.DEGRADED and state is SourceState.RUNNING:
            _log.info("%s.%s: recovered", self.source.service_id, self.feed.name)
        self.state, self.reason = state, reason
        self.source._tell(self.feed.name, state, reason)


def _verdict(reading: Reading) -> tuple[SourceState, str, Sequence[str]]:
    problems = [str(problem) for problem in reading.problems[:_PROBLEMS]]
    left_out = max(reading.left_out, len(reading.problems))
    if not left_out:
        return SourceState.RUNNING, "", ()
    rows = "a row is" if left_out == 1 else f"{left_out} rows are"
    return SourceState.DEGRADED, f"{rows} left out: {'; '.join(problems[:3])}", problems


def _short(reason: str) -> str:
    line = " ".join(reason.split())
    return line if len(line) <= _REASON else line[:_REASON] + "…"
