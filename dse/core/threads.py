"""The runtime's threads: a pool, serial queues upon it, a timer thread, an event loop; each is ended by its owner."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import os
import random
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any

__all__ = ["AsyncLoop", "Engine", "Pool", "SerialQueue", "Timer", "Timers"]

_log = logging.getLogger("dse.node")

_POOL = 10_000  # bounded by what it serves: one thread for each serial queue and periodic task at most
_IDLE = 30.0  # seconds an idle thread is kept


class Pool:
    """Threads that run jobs, started when needed, at most `limit`, ended when idle for long.

    Jobs wait in a queue when all threads are busy; whoever submits bounds how many there can be. A job goes to the
    thread that became idle last: were they to take turns, a few jobs a second would keep all the threads of a busy
    moment for ever.
    """

    def __init__(self, name: str, limit: int) -> None:
        self._name = name
        self._limit = limit
        self._lock = threading.RLock()  # protects all below
        self._jobs: deque[Callable[[], None]] = deque()
        self._idle: list[threading.Condition] = []  # what idle threads that were not woken wait for, the latest last
        self._threads: set[threading.Thread] = set()
        self._numbers = itertools.count(1)
        self._closed = False

    @property
    def waiting(self) -> int:
        """Jobs that no thread has begun."""
        return len(self._jobs)

    @property
    def has_room(self) -> bool:
        """Whether a job would begin at once; read without the lock, so it may be just wrong."""
        return not self._jobs and len(self._threads) - len(self._idle) < self._limit

    def submit(self, job: Callable[[], None]) -> bool:
        """Run the job on a thread of the pool; return False once the pool is closed."""
        with self._lock:
            if self._closed:
                return False
            self._jobs.append(job)
            if self._idle:
                self._idle.pop().notify()
                return True
            if len(self._threads) >= self._limit:
                return True
            thread = threading.Thread(target=self._work, name=f"{self._name}-{next(self._numbers)}", daemon=True)
            self._threads.add(thread)
        thread.start()
        return True

    def close(self, timeout: float) -> bool:
        """Let the jobs that wait or run finish, for `timeout` seconds at most; say whether all did."""
        deadline = time.monotonic() + timeout
        with self._lock:
            self._closed = True
            while self._idle:
                self._idle.pop().notify()
            threads = list(self._threads)
        for thread in threads:
            if thread is not threading.current_thread() and thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        with self._lock:
            self._jobs.clear()
        return not any(t.is_alive() for t in threads if t is not threading.current_thread())

    def _work(self) -> None:
        wake = threading.Condition(self._lock)
        try:
            while (job := self._next(wake)) is not None:
                try:
                    job()
                except Exception:
                    _log.exception("%s: a job raised", self._name)
                del job
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _next(self, wake: threading.Condition) -> Callable[[], None] | None:
        with self._lock:
            while not self._jobs:
                if self._closed:
                    return None
                self._idle.append(wake)
                if not wake.wait(_IDLE) and wake in self._idle:
                    self._idle.remove(wake)
                    return None
            return self._jobs.popleft()


class SerialQueue:
    """Runs jobs one at a time, in order, on a thread of a pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._lock = threading.Lock()  # protects _jobs and _running
        self._jobs: deque[Callable[[], None]] = deque()
        self._running = False
        self.thread: threading.Thread | None = None  # the one that runs a job now

    def __len__(self) -> int:
        return len(self._jobs)

    def put(self, job: Callable[[], None]) -> None:
        """Run the job after those before it."""
        with self._lock:
            self._jobs.append(job)
            if self._running:
                return
            self._running = True
        if not self._pool.submit(self._run):
            with self._lock:
                self._jobs.clear()
                self._running = False

    def run(self, job: Callable[[], Any], timeout: float) -> Any:
        """Run the job in turn and return or raise what it does; raise `TimeoutError` when its turn takes too long."""
        if self.thread is threading.current_thread():
            return job()
        future: Future[Any] = Future()

        def resolve() -> None:
            try:
                future.set_result(job())
            except BaseException as error:
                future.set_exception(error)

        self.put(resolve)
        return future.result(timeout)

    def _run(self) -> None:
        self.thread = threading.current_thread()
        while True:
            with self._lock:
                if not self._jobs:
                    self._running = False
                    self.thread = None
                    return
                job = self._jobs.popleft()
            try:
                job()
            except Exception:
                _log.exception("a job raised")


def _nothing() -> None: ...


def _unguessable(count: int) -> list[int]:
    return [1 + (number >> 2) for number in struct.unpack(f"={count}Q", os.urandom(8 * count))]


class Timer:
    """Something that is due at a time; made by `Timers`."""

    __slots__ = ("at", "callback", "cancelled", "queued_at")

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback = callback
        self.at = float("inf")
        self.queued_at = float("inf")
        self.cancelled = False


class Timers:
    """One thread that calls short callbacks when they are due. A callback never blocks: it hands work on."""

    def __init__(self, name: str) -> None:
        self._changed = threading.Condition()  # protects all below and the fields of every Timer
        self._heap: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    now = staticmethod(time.monotonic)
    """Returns the time of the clock that timers are set by, in seconds."""

    def timer(self, callback: Callable[[], None]) -> Timer:
        """Return a timer that is not set."""
        return Timer(callback)

    def set(self, timer: Timer, at: float) -> None:
        """Make the timer due at a time of the monotonic clock, instead of any earlier setting."""
        with self._changed:
            timer.at = at
            if at < timer.queued_at:
                # One that was queued for earlier is left in the heap and re-queued when it comes up.
                timer.queued_at = at
                heapq.heappush(self._heap, (at, next(self._numbers), timer))
                if self._heap[0][2] is timer:
                    self._changed.notify()

    def cancel(self, timer: Timer) -> None:
        """Never call the timer again."""
        with self._changed:
            timer.cancelled = True
            timer.callback = _nothing  # what it holds on to goes now, not when the timer would have been due

    def close(self) -> None:
        """End the thread; no callback runs after this returned, unless it is called from one."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join(10.0)

    def _run(self) -> None:
        while (timer := self._next()) is not None:
            try:
                timer.callback()
            except Exception:
                _log.exception("a timer raised")

    def _next(self) -> Timer | None:
        with self._changed:
            while not self._closed:
                if not self._heap:
                    self._changed.wait()
                    continue
                at, _, timer = self._heap[0]
                if timer.cancelled or at != timer.queued_at:
                    heapq.heappop(self._heap)
                    continue
                now = time.monotonic()
                if at > now:
                    self._changed.wait(min(at - now, 3600.0))
                    continue
                heapq.heappop(self._heap)
                timer.queued_at = float("inf")
                if timer.at <= now:
                    timer.at = float("inf")
                    return timer
                if timer.at != float("inf"):
                    timer.queued_at = timer.at
                    heapq.heappush(self._heap, (timer.at, next(self._numbers), timer))
            return None


class AsyncLoop:
    """One asyncio event loop on a thread of its own, started when first needed."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()  # protects _loop, _thread and _closed
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def is_current(self) -> bool:
        """Whether the calling thread is the loop's."""
        return self._thread is threading.current_thread()

    def submit(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Run a coroutine on the loop."""
        with self._lock:
            if self._closed:
                coroutine.close()
                raise RuntimeError("the event loop is closed")
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=self._run, args=(self._loop,), name=f"{self._name}-asyncio", daemon=True
                )
                self._thread.start()
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def close(self, timeout: float) -> None:
        """Cancel what still runs and end the thread."""
        with self._lock:
            self._closed = True
            loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        loop.call_soon_threadsafe(loop.stop)
        if thread is not threading.current_thread():
            thread.join(timeout)

    @staticmethod
    def _run(loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task.cancel()
            if tasks:
                loop.run_until_complete(asyncio.wait(tasks, timeout=2.0))
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            loop.close()


class Engine:
    """What one life of a node runs on: its clock and timers, threads and chance. The simulation has a virtual one."""

    def __init__(self, name: str, workers: int) -> None:
        self.timers = Timers(f"{name}-timers")
        self.pool = Pool(f"{name}-pool", _POOL)
        self.workers = Pool(f"{name}-worker", workers)
        self.loop = AsyncLoop(name)
        self.random = random.Random()

    def queue(self) -> SerialQueue:
        """Return a serial queue upon the pool."""
        return SerialQueue(self.pool)

    def unique(self) -> str:
        """Return a name that nobody else has: 128 random bits, from a generator that the system seeded."""
        return f"{self.random.getrandbits(128):032x}"

    def numbers(self) -> Iterator[int]:
        """Return numbers from 1 to 2**62 that nobody can guess, without end; for any threads: no generator is."""
        return itertools.chain.from_iterable(map(_unguessable, itertools.repeat(512)))

    def linger(self, seconds: float) -> None:
        """Give the other threads time."""
        time.sleep(seconds)
