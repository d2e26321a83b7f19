"""Where the main thread waits, for signals too."""

from __future__ import annotations

import select
import signal
import socket
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

__all__ = ["Mailbox"]

T = TypeVar("T")


class Mailbox(Generic[T]):
    """A queue whose reader wakes for a signal, whenever and on whichever thread that arrives.

    A thread that waits for a lock, as in `queue.get`, misses the signal that the system hands to another thread, or
    that arrives just before it begins to wait; then its handler does not run until something else wakes it. This one
    waits for a socket, to which the C handler writes (`signal.set_wakeup_fd`). A put may be made by any thread, and by
    a signal's handler.
    """

    def __init__(self) -> None:
        self._items: SimpleQueue[T] = SimpleQueue()
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def wake_for_signals(self) -> int:
        """Have signals wake the reader, from now on; for the main thread. Return the descriptor of before."""
        return signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)

    def put(self, item: T) -> None:
        """Add an item."""
        self._items.put(item)
        try:
            self._writer.send(b"\0")
        except BlockingIOError:
            pass  # so full that the reader wakes anyway
        except OSError:
            pass  # closed: nobody reads any more

    def get(self, timeout: float | None = None) -> T | None:
        """Return the next item, None when there was none for `timeout` seconds (or when a signal came)."""
        try:
            return self._items.get_nowait()
        except Empty:
            pass
        select.select([self._reader], [], [], timeout)
        try:
            while self._reader.recv(4096):
                pass
        except BlockingIOError:
            pass
        # Emptied before the queue is looked at: an item that comes in between wakes the next get once too often.
        try:
            return self._items.get_nowait()
        except Empty:
            return None

    def close(self) -> None:
        """Give the sockets back."""
        self._reader.close()
        self._writer.close()
