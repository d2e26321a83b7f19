"""Brief methods run on the thread that received the request: to hand one over costs more than most of them take.

Which methods are brief is learned from how long they took. A method that turns out to block costs the node a moment
once: a timer notices, the receiving thread is relieved (`dse.core.transport.Transport.relieve`), and the method goes to
the worker threads until it has been brief often enough again. A method that calls another node is relieved at once.

A run takes the place of a worker: it begins only where one is free, and once relieved it keeps one from other work.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from threading import get_ident
from typing import ParamSpec

from dse.core.threads import Pool, Timers
from dse.core.transport import Transport

__all__ = ["BRIEF", "Briefness", "InlineRuns"]

BRIEF = 0.001
"""Seconds that a brief method takes at most."""

_PROVED = 16  # brief runs before a method is trusted
_MOST = 64
_LONG_RUN = 32  # brief runs that one long run weighs as much as
_BLOCKED = 1024  # ... and one for which the thread had to be relieved
_PATIENCE = 0.005  # seconds until the receiving thread is relieved


P = ParamSpec("P")


class Briefness:
    """What is known of how long one method takes. Written by any thread without a lock: a lost count does no harm."""

    __slots__ = ("_score", "proved")

    def __init__(self) -> None:
        self._score = 0
        self.proved = False
        """Whether the method may run on a receiving thread."""

    def took(self, seconds: float) -> None:
        """Learn how long a run took."""
        score = self._score
        if seconds > BRIEF:
            self._score = min(score, _PROVED) - _LONG_RUN
            self.proved = False
        elif score < _MOST:
            self._score = score + 1
            self.proved = score + 1 >= _PROVED

    def blocked(self) -> None:
        """Learn that a run held up a receiving thread."""
        self._score = -_BLOCKED
        self.proved = False


class _Run:
    relief: threading.Event | None = None  # set once the relief under way is done
    relieved = False  # the thread receives no more
    ended: threading.Event | None = None  # for the worker whose place a relieved run takes

    def __init__(self, thread: int, briefness: Briefness, began: float) -> None:
        self.thread = thread
        self.briefness = briefness
        self.began = began


class InlineRuns:
    """The runs under way on receiving threads, and the timer that watches them.

    Lock: ``_lock`` makes that no run ends between the decision to relieve it and its being marked so. A `_Run` is its
    thread's, but for `relief` and `relieved`, which ``_lock`` protects. ``_runs`` is changed without it: each thread
    has an entry of its own.
    """

    def __init__(self, transport: Transport, timers: Timers, workers: Pool) -> None:
        self.possible = transport.relieves
        self._transport = transport
        self._workers = workers
        self._timers = timers
        self._timer = timers.timer(self._watch)
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)
        self._draining = False
        self._runs: dict[int, _Run] = {}  # by thread
        self._watching = False

    def run(self, briefness: Briefness, now: float, job: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Run a job on the calling thread, which the transport called `TransportEvents.received` on."""
        thread = get_ident()
        run = self._runs[thread] = _Run(thread, briefness, now)
        if not self._watching:
            self._watching = True
            self._timers.set(self._timer, now + _PATIENCE)
        try:
            job(*args, **kwargs)
        finally:
            with self._lock:
                del self._runs[thread]
                relief, ended = run.relief, run.ended
                if self._draining:
                    self._ended.notify_all()
            if ended is not None:
                ended.set()
            if relief is not None:
                relief.wait()

    def relieve_caller(self) -> None:
        """The calling thread is about to wait for something that may come over the transport: free it for that."""
        run = self._runs.get(get_ident())
        if run is not None:
            self._relieve(run)

    def drain(self, deadline: float) -> None:
        """Wait until the runs of other threads have ended."""
        me = get_ident()
        with self._lock:
            self._draining = True
            self._ended.wait_for(lambda: not self._runs.keys() - {me}, max(0.0, deadline - time.monotonic()))

    def _watch(self) -> None:
        self._watching = False  # first: a run that begins now sees it, or is seen below
        due = self._timers.now() - _PATIENCE
        runs = [run for run in list(self._runs.values()) if not run.relieved]
        for run in runs:
            if run.began <= due:
                self._relieve(run)
        if runs:
            self._watching = True
            self._timers.set(self._timer, self._timers.now() + _PATIENCE)

    def _relieve(self, run: _Run) -> None:
        relief = threading.Event()
        with self._lock:
            if self._runs.get(run.thread) is not run or run.relief is not None or run.relieved:
                return
            run.relief = relief
        run.briefness.blocked()
        relieved = False
        try:
            relieved = self._transport.relieve(run.thread)
        finally:
            with self._lock:
                run.relieved, run.relief = relieved, None
                if relieved and self._runs.get(run.thread) is run:
                    run.ended = threading.Event()
            relief.set()
        if run.ended is not None:
            self._workers.submit(_wait_for(run.ended))


def _wait_for(ended: threading.Event) -> Callable[[], None]:
    def wait() -> None:
        ended.wait()

    return wait
