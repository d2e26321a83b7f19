"""Virtual time, and an `Engine` upon it: a node's timers, queues and threads without a thread."""

from __future__ import annotations

import heapq
import itertools
import math
import random
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any

from dse.core.threads import AsyncLoop, Engine, Pool, SerialQueue, Timer, Timers

__all__ = ["Clock", "Process", "VirtualEngine"]

START = 1000.0  # where virtual time begins
BUSY = 1000  # timers of one node that come due at one moment; more is a loop that does not let time pass


class Clock:
    """Runs what is due, in the order of virtual time; what is due at the same time, in the order it was asked for."""

    def __init__(self) -> None:
        self.now = START
        self._ready: deque[Callable[[], Any]] = deque()
        self._heap: list[tuple[float, int, Callable[[Any], Any], Any]] = []
        self._number = 0

    def soon(self, job: Callable[[], Any]) -> None:
        """Run the job at this moment, after what runs now."""
        self._ready.append(job)

    def at(self, when: float, job: Callable[[Any], Any], argument: Any = None) -> None:
        """Run the job with its argument at a time."""
        self._number += 1
        heapq.heappush(self._heap, (when, self._number, job, argument))

    def run(self, until: float) -> None:
        """Let time pass."""
        heap, ready = self._heap, self._ready
        while True:
            while ready:
                ready.popleft()()
            if not heap or heap[0][0] > until:
                self.now = max(self.now, until)
                return
            when, _, job, argument = heapq.heappop(heap)
            if when > self.now:
                self.now = when
            job(argument)


class Process:
    """The operating system's process that a node lives in: it runs, is suspended, or is dead."""

    def __init__(self) -> None:
        self.alive = True
        self.suspended = False
        self.suspended_at = self.resumed_at = -math.inf
        self.held: list[Callable[[], Any]] = []

    def run(self, job: Callable[[], Any]) -> None:
        """Run the job now, or when the process runs again, or never."""
        if not self.alive:
            return
        if self.suspended:
            self.held.append(job)
        else:
            job()


class VirtualTimers(Timers):
    """Timers on a virtual clock, with the rules of the real ones."""

    def __init__(self, clock: Clock, process: Process) -> None:
        self._clock = clock
        self._process = process
        self._ended = False
        self._moment = -math.inf
        self._fired = 0

    def now(self) -> float:
        return self._clock.now

    def set(self, timer: Timer, at: float) -> None:
        timer.at = at
        if at < timer.queued_at:
            timer.queued_at = at
            self._clock.at(at, self._due, (timer, at))

    def cancel(self, timer: Timer) -> None:
        timer.cancelled = True

    def close(self) -> None:
        self._ended = True

    def _due(self, queued: tuple[Timer, float]) -> None:
        timer, at = queued
        process = self._process
        if self._ended or timer.cancelled or at != timer.queued_at or not process.alive:
            return
        if process.suspended:
            process.held.append(lambda: self._due(queued))
            return
        timer.queued_at = math.inf
        now = self._clock.now
        if timer.at > now:
            if timer.at != math.inf:
                self.set(timer, timer.at)
            return
        timer.at = math.inf
        if now != self._moment:
            self._moment, self._fired = now, 0
        self._fired += 1
        if self._fired > BUSY:
            raise RuntimeError("a busy loop: timers are due again at once, and time does not pass")
        timer.callback()


class VirtualQueue(SerialQueue):
    """A serial queue whose jobs run at once, or, where the history says so, a little later."""

    def __init__(self, engine: VirtualEngine) -> None:
        self._engine = engine
        self._waiting: deque[Callable[[], None]] = deque()
        self._scheduled = False
        self.thread = None

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, job: Callable[[], None]) -> None:
        self._waiting.append(job)
        if not self._scheduled:
            self._scheduled = True
            self._engine.later(self.drain)

    def run(self, job: Callable[[], Any], timeout: float) -> Any:
        self.drain()
        return job()

    def drain(self) -> None:
        """Run everything that waits."""
        outer, self.thread = self.thread, self._engine.thread
        waiting = self._waiting
        try:
            while waiting:
                waiting.popleft()()
        finally:
            self._scheduled = False
            self.thread = outer


class VirtualPool(Pool):
    """Threads that begin a job after some virtual time."""

    def __init__(self, engine: VirtualEngine, duration: Callable[[], float] | None = None) -> None:
        self._engine = engine
        self._duration = duration
        self._ended = False

    def submit(self, job: Callable[[], None]) -> bool:
        if self._ended:
            return False
        engine = self._engine
        if self._duration is None:
            engine.later(job)
        else:
            engine.clock.at(engine.clock.now + self._duration(), engine.process.run, job)
        return True

    def close(self, timeout: float) -> bool:
        self._ended = True
        return True


class NoLoop(AsyncLoop):
    """Simulated services have no coroutines."""

    def __init__(self) -> None:
        self._thread = None

    def submit(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        raise NotImplementedError

    def close(self, timeout: float) -> None:
        pass


class VirtualEngine(Engine):
    """Clock, chance and threads of one life of a node.

    sluggish: seconds, at most, that a queue's job waits for its thread. duration: gives the seconds that an RPC method
    takes.
    """

    def __init__(
        self, clock: Clock, process: Process, seed: int, sluggish: float, duration: Callable[[], float]
    ) -> None:
        self.clock = clock
        self.process = process
        self.random = random.Random(seed)
        self.thread = threading.current_thread()
        self.sluggish = sluggish
        self._queues: list[VirtualQueue] = []
        self.timers = VirtualTimers(clock, process)
        self.pool = VirtualPool(self)
        self.workers = VirtualPool(self, duration)
        self.loop = NoLoop()

    def queue(self) -> SerialQueue:
        queue = VirtualQueue(self)
        self._queues.append(queue)
        return queue

    def unique(self) -> str:
        return f"{self.random.getrandbits(64):016x}"

    def numbers(self) -> Iterator[int]:
        return itertools.count(1)

    def linger(self, seconds: float) -> None:
        for queue in self._queues:
            queue.drain()

    def later(self, job: Callable[[], Any]) -> None:
        """Run a job on another thread of the process."""
        if self.sluggish and self.random.random() < 0.1:
            self.clock.at(self.clock.now + self.random.random() * self.sluggish, self.process.run, job)
        else:
            self.clock.soon(lambda: self.process.run(job))
