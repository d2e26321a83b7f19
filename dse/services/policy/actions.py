"""Calls what rules name for their new rows: in order for each rule, a bounded number at once, written down beforehand.

Rules:

1. A row is written down as WAITING when it appears, as CALLED before the call is made, as DONE or FAILED after it. When
   it goes it is forgotten: one that comes back is new.
2. Without `retry` a row that is CALLED, DONE or FAILED is never called for again, whatever happened since. With it all
   but DONE are.
3. A call that surely did not run (no such service or method, arguments that do not fit, a node that is overloaded)
   leaves the row WAITING, and is made again with growing pauses, also without `retry`.
4. The calls of one rule are made one after the other; of all rules, at most `AT_ONCE`.

Locks: ``_changed`` protects all that is here. ``_order`` is held while the store is written to and what is here
follows: one of the two is never changed without the other.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from dse.core import tracing
from dse.core.messages import Row
from dse.errors import (
    ConfigError,
    DseError,
    InvalidArguments,
    NoSuchMethod,
    NoSuchService,
    Overloaded,
)
from dse.services.policy.store import ActionOptions, Progress, Store

__all__ = ["ActionRunner"]

_log = logging.getLogger("dse.policy")

AT_ONCE = 16
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 60.0
_NOT_RUN = (NoSuchService, NoSuchMethod, InvalidArguments, Overloaded)

Call = Callable[..., "Future[Any]"]
Key = tuple[str, str]
"""(policy, rule)"""


@dataclass
class _Work:
    """The calls of one rule."""

    key: Key
    action: ActionOptions
    columns: tuple[str, ...]
    waiting: dict[Row, Any] = field(default_factory=dict)  # in the order in which they came; row -> its trace
    running: Row | None = None
    gone: bool = False  # the row that is called for went meanwhile
    failures: int = 0
    due: float = 0.0
    done: int = 0
    failed: int = 0
    error: str = ""


class ActionRunner:
    """See the top of this file.

    call: `Node.call_async`. tell: called with (key, waiting, done, failed, error) when that of a rule has changed.
    """

    def __init__(
        self, name: str, store: Store, call: Call, tell: Callable[[Key, tuple[int, int, int, str]], None]
    ) -> None:
        self._store = store
        self._call = call
        self._tell = tell
        self._order = threading.Lock()
        self._changed = threading.Condition()
        self._works: dict[Key, _Work] = {}
        self._news: dict[Key, None] = {}
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Make no more calls; what is under way is CALLED for good, unless it is told to be retried."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(10.0)

    def begin(self, key: Key, action: ActionOptions, columns: tuple[str, ...], rows: Collection[Row]) -> None:
        """A rule knows its rows, for the first time since it was inserted or this service started."""
        known = self._store.called(*key)
        new = {row: Progress.WAITING for row in rows if row not in known}
        self._store.mark(*key, new, [row for row in known if row not in set(rows)])
        again = {Progress.WAITING} if not action.retry else {Progress.WAITING, Progress.CALLED, Progress.FAILED}
        work = _Work(key, action, columns)
        trace = tracing.current()
        work.waiting = {row: trace if row in new else None for row in rows if row in new or known[row] in again}
        with self._changed:
            self._works[key] = work
            self._news[key] = None
            self._changed.notify_all()

    def end(self, key: Key) -> None:
        """A rule is no more; its rows are forgotten by whoever deletes it from the store."""
        with self._changed:
            self._works.pop(key, None)

    def differ(self, key: Key, added: Collection[Row], removed: Collection[Row]) -> None:
        """Rows of a rule came and went."""
        with self._changed:
            work = self._works.get(key)
        if work is None:
            return
        trace = tracing.current()
        with self._order:
            self._store.mark(*key, dict.fromkeys(added, Progress.WAITING), removed)
            with self._changed:
                for row in removed:
                    work.waiting.pop(row, None)
                    work.gone = work.gone or row == work.running
                work.waiting.update(dict.fromkeys(added, trace))
                self._news[key] = None
                self._changed.notify_all()

    # The thread

    def _run(self) -> None:
        while True:
            with self._changed:
                work, row = self._next()
                while work is None and not self._news and not self._closed:
                    due = min((w.due for w in self._works.values() if w.waiting and w.running is None), default=None)
                    self._changed.wait(None if due is None or self._full() else max(0.0, due - time.monotonic()))
                    work, row = self._next()
                if self._closed:
                    return
                trace = None
                if work is not None and row is not None:
                    work.running, work.gone = row, False
                    trace = work.waiting.get(row)
                news, self._news = self._news, {}
                states = [(key, _state(self._works[key])) for key in news if key in self._works]
            for key, state in states:
                self._tell(key, state)
            if work is not None and row is not None:
                with tracing.within(trace):
                    self._start(work, row)

    def _full(self) -> bool:
        return sum(work.running is not None for work in self._works.values()) >= AT_ONCE

    def _next(self) -> tuple[_Work | None, Row | None]:
        """The rule whose turn it is, and its next row (the lock is held)."""
        if self._closed or self._full():
            return None, None
        now = time.monotonic()
        ready = [w for w in self._works.values() if w.waiting and w.running is None and w.due <= now]
        if not ready:
            return None, None
        work = min(ready, key=lambda w: w.due)
        return work, next(iter(work.waiting))

    def _start(self, work: _Work, row: Row) -> None:
        action = work.action
        try:
            self._store.mark(*work.key, {row: Progress.CALLED})
            future = self._call(
                action.service, action.method, action.arguments(work.columns, row), timeout=action.timeout
            )
        except (DseError, ConfigError) as error:
            future = Future()
            future.set_exception(error)
        future.add_done_callback(lambda done: self._finish(work, row, done.exception()))

    def _finish(self, work: _Work, row: Row, error: BaseException | None) -> None:
        again = error is not None and (work.action.retry or isinstance(error, _NOT_RUN))
        progress = Progress.DONE if error is None else Progress.WAITING if again else Progress.FAILED
        with self._order:
            with self._changed:
                gone = work.gone
            if not gone:
                try:
                    self._store.mark(*work.key, {row: progress})
                except ConfigError as problem:  # the disk is full, or we are closed: it stays CALLED
                    _log.warning("%s.%s: %s", *work.key, problem)
            with self._changed:
                work.running = None
                work.failures = work.failures + 1 if again and not gone else 0
                work.due = time.monotonic() + (_pause(work.failures) if work.failures else 0.0)
                if not again and not gone:
                    work.waiting.pop(row, None)  # one that is gone and there again is another one
                work.done += error is None
                work.failed += error is not None
                work.error = "" if error is None else " ".join(f"{type(error).__name__}: {error}".split())[:300]
                self._news[work.key] = None
                self._changed.notify_all()


def _pause(failures: int) -> float:
    return min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(failures - 1, 10)) * random.uniform(0.7, 1.0)


def _state(work: _Work) -> tuple[int, int, int, str]:
    return len(work.waiting), work.done, work.failed, work.error
