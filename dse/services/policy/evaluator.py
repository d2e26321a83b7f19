"""One thread that owns the rules: what is heard of tables and what is asked by RPC waits for it in one queue."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from dse.errors import DseError

__all__ = ["Evaluator"]

_log = logging.getLogger("dse.policy")

_WAITING = 1_000  # jobs; whoever brings more waits
_TOGETHER = 200  # jobs that are done before what follows from them is worked out
_LONGEST = 0.1  # seconds, likewise


class Evaluator:
    """Runs jobs one after the other, and `settle` once those that wait are done, or now and then if they do not end.

    Lock: ``_changed`` protects ``_jobs`` and ``_closed``.
    """

    def __init__(self, name: str, settle: Callable[[], None], *, period: float, tick: Callable[[], None]) -> None:
        self._settle = settle
        self._period = period
        self._tick = tick
        self._changed = threading.Condition()
        self._jobs: deque[Callable[[], None]] = deque()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, job: Callable[[], None]) -> bool:
        """Have a job done; wait while too many wait. False if the evaluator is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._jobs) < _WAITING)
            if self._closed:
                return False
            self._jobs.append(job)
            self._changed.notify_all()
        return True

    def ask(self, job: Callable[[], Any], timeout: float) -> Any:
        """Have a job done and settled, and return what it returned; raises what it raised, and `TimeoutError`."""
        future: Future[Any] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = job()
                self._settle()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        if not self.put(run):
            raise DseError("the policy service has stopped")
        try:
            return future.result(timeout)
        except TimeoutError:
            if future.cancel():
                raise TimeoutError(f"the policy service was busy for {timeout:g} s; it was not done") from None
            return future.result(timeout)  # it is being done

    def close(self) -> None:
        """Do what waits, and end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(30.0)

    def _run(self) -> None:
        ticked = time.monotonic()
        while True:
            with self._changed:
                left = self._period - (time.monotonic() - ticked)
                self._changed.wait_for(lambda: self._jobs or self._closed, max(0.0, left))
                if self._closed and not self._jobs:
                    return
            if time.monotonic() - ticked >= self._period:
                ticked = time.monotonic()
                self._guard(self._tick)
            self._work()
            self._guard(self._settle)

    def _work(self) -> None:
        began = time.monotonic()
        for _ in range(_TOGETHER):
            with self._changed:
                if not self._jobs:
                    return
                job = self._jobs.popleft()
                self._changed.notify_all()
            self._guard(job)
            if time.monotonic() - began > _LONGEST:
                return

    def _guard(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception:
            _log.exception("policy: evaluation failed")
