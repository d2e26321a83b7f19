"""The listeners that the driver gives to servers of oslo.messaging, and who of them is handed what."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence

from oslo_messaging._drivers import base

from dse.oslo.incoming import DseIncoming

__all__ = ["DseListener", "Registry"]

_log = logging.getLogger(__name__)


class DseListener(base.Listener):  # type: ignore[misc]
    """Hands messages on: one at a time on the thread that received it, batches on a thread of its own.

    addresses: what it listens on. leave: called once to end that; returns when nothing more comes.

    Lock: ``_changed`` protects ``_waiting``, ``_started``, ``_stopped`` and ``_ended``.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        pools: Sequence[tuple[str, str]],
        batch_size: int,
        batch_timeout: float | None,
        leave: Callable[[DseListener], None],
    ) -> None:
        super().__init__(batch_size or 1, batch_timeout)
        self.addresses = addresses
        self.pools = pools
        self._leave = leave
        self._changed = threading.Condition()
        self._waiting: list[DseIncoming] = []  # before the start; and for batches
        self._started = False
        self._stopped = False
        self._ended = False  # nothing more is taken
        self._thread: threading.Thread | None = None

    def put(self, incoming: DseIncoming) -> bool:
        """Hand a message on, from the threads that receive; return False when it has stopped meanwhile."""
        if not self._started or self._thread is not None:
            with self._changed:
                if not self._started or self._thread is not None:
                    if self._ended:
                        return False
                    self._waiting.append(incoming)
                    self._changed.notify()
                    return True
        return self._hand_on([incoming])

    def start(self, on_incoming_callback: Callable[[list[DseIncoming]], None]) -> None:
        super().start(on_incoming_callback)
        if self.batch_size > 1:
            self._thread = threading.Thread(target=self._batches, name="dse-oslo-batches", daemon=True)
            with self._changed:
                self._started = True
            self._thread.start()
            return
        while True:
            with self._changed:
                waiting, self._waiting = self._waiting, []
                if not waiting:
                    self._started = True
                    return
            for incoming in waiting:
                self._hand_on([incoming])

    def stop(self) -> None:
        """Listen no more; what has been received is handed on before this returns."""
        with self._changed:
            first, self._stopped = not self._stopped, True
        if not first:
            return
        self._leave(self)
        with self._changed:
            self._changed.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        super().stop()

    def cleanup(self) -> None:
        self.stop()

    def _hand_on(self, messages: list[DseIncoming]) -> bool:
        callback = self.on_incoming_callback
        if callback is None:
            return False
        try:
            callback(messages)
        except Exception:
            _log.exception("%d messages are lost: the server did not take them", len(messages))
        return True

    def _batches(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopped)
                # A batch begins with its first message, and is waited for from there.
                end = time.monotonic() + self.batch_timeout if self.batch_timeout else None
                while len(self._waiting) < self.batch_size and not self._stopped:
                    if not self._changed.wait(None if end is None else max(0.0, end - time.monotonic())):
                        break
                batch, self._waiting = self._waiting[: self.batch_size], self._waiting[self.batch_size :]
                if not batch and self._stopped:
                    self._ended = True
                    return
            if batch:
                self._hand_on(batch)


class Registry:
    """Which listeners of this driver listen on which addresses.

    Lock: ``_lock`` protects ``_listeners``, whose lists are replaced and never changed, and ``_leaving``.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: dict[str, list[DseListener]] = {}
        self._leaving: set[DseListener] = set()
        self._turn = 0

    def add(self, listener: DseListener) -> None:
        """From now on it is handed what comes."""
        with self._lock:
            for address in listener.addresses:
                self._listeners[address] = [*self._listeners.get(address, ()), listener]

    def leaving(self, listener: DseListener) -> list[str]:
        """Return the addresses on which nobody will listen without it; it is still handed what comes."""
        with self._lock:
            self._leaving.add(listener)
            return [a for a in listener.addresses if not set(self._listeners.get(a, ())) - self._leaving]

    def remove(self, listener: DseListener) -> list[str]:
        """It is handed nothing more; return the addresses on which somebody listens meanwhile."""
        with self._lock:
            self._leaving.discard(listener)
            for address in listener.addresses:
                left = [other for other in self._listeners.get(address, ()) if other is not listener]
                if left:
                    self._listeners[address] = left
                else:
                    self._listeners.pop(address, None)
            return [address for address in listener.addresses if address in self._listeners]

    def choose(self, address: str) -> Iterable[DseListener]:
        """Return who gets what came for the address: all of them by fanout, or the next in turn."""
        listeners = self._listeners.get(address, [])
        if address.startswith("f:") or len(listeners) < 2:
            return listeners
        self._turn += 1  # unlocked: a turn that is lost does no harm
        return (listeners[self._turn % len(listeners)],)

    def all(self) -> list[DseListener]:
        """Return all listeners."""
        with self._lock:
            return list({id(each): each for listeners in self._listeners.values() for each in listeners}.values())

    def addresses(self) -> list[str]:
        """Return what is listened on."""
        with self._lock:
            return list(self._listeners)

    def pools(self) -> list[tuple[str, str]]:
        """Return the pools that are listened for, each with the address of its notifications."""
        return sorted({pool for listener in self.all() for pool in listener.pools})

    def of(self, addresses: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
        """Return which of these addresses are listened on, and the pools that are listened for of them."""
        with self._lock:
            where = [a for a in addresses if set(self._listeners.get(a, ())) - self._leaving]
        return where, [pool for pool in self.pools() if pool[0] in addresses]
