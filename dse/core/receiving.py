"""Whose turn it is to receive on one connection: leader and followers.

One thread at a time receives and hands on what came. To hand a request over to another thread, or an answer to the
thread that waits for it, costs as much as a hop over the network; so the turn moves instead of the messages:

- A handler that will take its time is *relieved*: another thread goes on receiving, and the relieved one leaves when
  its handler returns.
- A thread that waits for an answer *leads*: it receives itself until the answer has come. The connection's own thread
  steps back for that, and is back as soon as others wait too, as a wait gets long, or when nobody has led for a moment.

Source: D. C. Schmidt, C. O'Ryan, M. Kircher, I. Pyarali, F. Buschmann, "Leader/Followers", PLoP 2000.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from threading import get_ident
from typing import Protocol

__all__ = ["Awaited", "Turn", "leads"]

_STEP_BACK = 0.002  # seconds without a leader after which the connection's own thread receives again
_LEAD = 0.02  # seconds that a waiting thread leads at most: heartbeats and the like are the own thread's


_leading: set[int] = set()  # idents of the threads that receive only while they wait


def leads() -> bool:
    """Whether the calling thread, which runs a handler, only receives while it waits: it cannot be relieved."""
    return get_ident() in _leading


class Awaited(Protocol):
    """An answer that one thread waits for."""

    done: bool
    """The answer is there; set before `wait` returns."""

    def wait(self, timeout: float) -> bool:
        """Wait so many seconds for the answer; return whether it is there."""
        ...


class Turn:
    """The right to receive on one connection.

    step: receives something and hands it on, within `timeout` seconds (None: as long as it likes); returns whether more
    has been received that waits. After a handler that it called it touches nothing unless the turn is still `mine`.
    failed: told the exception that ended receiving, by whichever thread it hit; never more than once.
    spawn: starts a thread of the driver.
    led: told by the own thread that waiting threads receive from now on (True), or it itself again (False).

    Lock: ``_lock`` protects ``_free``, ``_led``, ``_waiting``, ``_over``, ``_pinned`` and ``threads``. `holder` is
    written by whoever has the turn, and by `relieve` in its place.
    """

    def __init__(
        self,
        name: str,
        step: Callable[[float | None], bool],
        failed: Callable[[BaseException], None],
        spawn: Callable[[Callable[[], None], str], threading.Thread],
        led: Callable[[bool], None] | None = None,
    ) -> None:
        self.holder = 0  # the ident of the thread that receives
        self.threads: list[threading.Thread] = []  # the connection's own: the latest, and those relieved before it
        self._name = name
        self._step, self._failed, self._spawn, self._tell_led = step, failed, spawn, led
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._free = False  # the own thread has stepped back, and nobody leads
        self._led = 0  # how often somebody has led
        self._waiting = 0  # threads in `wait`
        self._wanted: Awaited | None = None  # whoever waits for it would rather have led
        self._over = False  # receiving has failed
        self._pinned = False  # the holder's handler receives by itself

    @property
    def mine(self) -> bool:
        """Whether the calling thread has the turn."""
        return self.holder == get_ident()

    def start(self) -> None:
        """Begin to receive on a thread of the connection's own."""
        with self._lock:
            self.threads = [thread for thread in self.threads if thread.is_alive()]
        thread = self._spawn(self._run, self._name)
        with self._lock:
            self.threads.append(thread)

    def relieve(self, thread: int) -> bool:
        """Let another thread go on; the caller makes sure that the one with this ident stays in its handler meanwhile.

        Returns False when that thread does not receive here, or cannot be relieved now.
        """
        with self._lock:
            if self.holder != thread or self._pinned or all(own.ident != thread for own in self.threads):
                return False
            self.holder = 0
        self.start()
        return True

    def pin(self) -> bool:
        """When called by a handler in whose thread the turn is: keep it there until `unpin`, for it receives itself."""
        with self._lock:
            self._pinned = self.holder == get_ident()
            return self._pinned

    def unpin(self) -> None:
        """End what `pin` began."""
        with self._lock:
            self._pinned = False

    def wait(self, answer: Awaited, timeout: float) -> bool:
        """Wait so many seconds for an answer that may come over this connection; return whether it is there."""
        with self._lock:
            waiting = self._waiting = self._waiting + 1
            if waiting == 1:
                if leads := self._free:
                    self._free = False
                    self._led += 1
                else:
                    self._wanted = answer
            else:
                leads = False
        try:
            if not leads:
                return answer.wait(timeout)
            began = time.monotonic()
            self._lead(answer, began + (timeout if timeout < _LEAD else _LEAD))
            return answer.done or answer.wait(max(0.0, began + timeout - time.monotonic()))
        finally:
            with self._lock:
                self._waiting -= 1

    def _lead(self, answer: Awaited, end: float) -> None:
        step = self._step
        me = self.holder = get_ident()
        _leading.add(me)
        more = False
        try:
            while not answer.done:
                left = end - time.monotonic()
                if left <= 0 or self._over:
                    break
                more = step(left)
        except BaseException as error:
            self._fail(error)
        finally:
            self.holder = 0
            _leading.discard(me)
            with self._lock:
                self._free = True
                if more or self._waiting > 1 or self._over or not answer.done:
                    self._changed.notify_all()

    def _run(self) -> None:
        me = self.holder = get_ident()
        step = self._step
        try:
            while not self._over:
                step(None)
                if self.holder != me:
                    return
                wanted = self._wanted
                if wanted is not None and wanted.done:
                    self._step_back(me)
        except BaseException as error:
            if self.holder == me:
                self._fail(error)

    def _step_back(self, me: int) -> None:
        """Leave the turn to those who wait for answers, until they have not used it for a moment."""
        self._wanted = None
        if self._waiting > 1:
            return
        if self._tell_led is not None:
            self._tell_led(True)
        with self._changed:
            self.holder = 0
            self._free = True
            while True:
                led = self._led
                notified = self._changed.wait(_STEP_BACK)
                if self._free and (notified or led == self._led or self._over):
                    break
            self._free = False
            self.holder = me
        if self._tell_led is not None:
            self._tell_led(False)

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            first, self._over = not self._over, True
            self._changed.notify_all()
        if first:
            self._failed(error)
