"""Constant calls, each with a key of its own: the callee writes the key down, the caller how the call ended."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from dse import DataService, DseError, Node, rpc
from faults.books import Book, at_rate

__all__ = ["Calls", "Work"]

_THREADS = 64  # blocking calls that may wait at once
_GRACE = 5.0  # seconds after its timeout until a call that has not ended counts as hung


class Work(DataService):
    """Methods that write down that they ran: ``[method, key, node_id]``."""

    def __init__(self, service_id: str, node_id: str, book: Book) -> None:
        super().__init__(service_id)
        self._node_id = node_id
        self._book = book

    @rpc
    def once(self, key: str, pause: float) -> str:
        """Takes `pause` seconds; must never run twice."""
        return self._ran("once", key, pause)

    @rpc(idempotent=True)
    def again(self, key: str, pause: float) -> str:
        """May run again."""
        return self._ran("again", key, pause)

    @rpc
    async def soon(self, key: str, pause: float) -> str:
        """On the event loop; must never run twice."""
        self._book.write(["soon", key, self._node_id])
        await asyncio.sleep(pause)
        return key

    def _ran(self, method: str, key: str, pause: float) -> str:
        self._book.write([method, key, self._node_id])
        time.sleep(pause)
        return key


class Calls:
    """Calls at a rate from one process, half of them blocking.

    targets: (service_id, node_id or None) pairs. Every call that ended is in the book, as a dict: key, service, node_id
    (or None), method, tag, began (monotonic), timeout and seconds, error (the type's name, "" if none), message, typed
    (a DseError), right (the result was the one asked for).
    """

    def __init__(
        self, node: Node, seed: str, rate: float, targets: Sequence[tuple[str, str | None]], book: Book
    ) -> None:
        self.pace = at_rate(rate)
        self._node = node
        self._random = random.Random(seed)
        self._targets = targets
        self._book = book
        self._numbers = itertools.count(1)
        self._prefix = f"{node.node_id}:{os.getpid()}"
        self._threads = ThreadPoolExecutor(_THREADS)
        self._lock = threading.Condition()  # protects _open
        self._open: dict[str, float] = {}  # calls that have not ended, and when they must have
        self._thread = threading.Thread(target=self._run, name="calls", daemon=True)

    def begin(self) -> None:
        self._thread.start()

    def end(self) -> list[str]:
        """Make no more calls and wait for those under way; return the keys of those that hang."""
        self.pace.stop()
        self._thread.join(30.0)
        assert not self._thread.is_alive(), "call_async did not return within 30 s"
        with self._lock:
            self._lock.wait_for(lambda: not self._open, max(self._open.values(), default=0.0) - time.monotonic())
            return sorted(self._open)

    def start(
        self, service: str, node_id: str | None, method: str, pause: float, timeout: float, blocking: bool, tag: str
    ) -> str:
        """Begin one call and return its key."""
        key = f"{self._prefix}:{next(self._numbers)}"
        entry = {"key": key, "service": service, "node_id": node_id, "method": method, "tag": tag, "timeout": timeout}
        entry |= {"began": time.monotonic()}
        with self._lock:
            self._open[key] = time.monotonic() + timeout + _GRACE
        call: dict[str, Any] = {"service_id": service, "method": method, "args": {"key": key, "pause": pause}}
        if blocking:
            self._threads.submit(self._block, entry, call, timeout, node_id)
        else:
            future = self._node.call_async(**call, timeout=timeout, node_id=node_id)
            future.add_done_callback(lambda ended: self._ended(entry, ended))
        return key

    def _run(self) -> None:
        draw = self._random
        for _ in self.pace:
            service, node_id = draw.choice(self._targets)
            method = draw.choices(("once", "again", "soon"), (5, 2, 3))[0]
            pause = 1.0 if draw.random() < 0.1 else draw.uniform(0.0, 0.05)
            self.start(service, node_id, method, pause, draw.uniform(2.0, 5.0), draw.random() < 0.5, "")

    def _block(self, entry: dict[str, Any], call: dict[str, Any], timeout: float, node_id: str | None) -> None:
        future: Future[Any] = Future()
        entry["began"] = time.monotonic()
        try:
            future.set_result(self._node.call(**call, timeout=timeout, node_id=node_id))
        except BaseException as error:
            future.set_exception(error)
        self._ended(entry, future)

    def _ended(self, entry: dict[str, Any], future: Future[Any]) -> None:
        seconds = time.monotonic() - entry["began"]
        error = future.exception()
        self._book.write(
            entry
            | {
                "seconds": seconds,
                "error": type(error).__name__ if error else "",
                "message": str(error) if error else "",
                "typed": isinstance(error, DseError),
                "right": error is None and future.result() == entry["key"],
            }
        )
        with self._lock:
            self._open.pop(entry["key"], None)
            self._lock.notify_all()
