"""The runtime around `dse.oslo.held`: the thread that sends again what found nobody."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable

from dse.oslo.addresses import is_notification
from dse.oslo.held import Held, Parcel

__all__ = ["Keeper"]

_log = logging.getLogger(__name__)


class Keeper:
    """Keeps messages and sends them when somebody listens.

    send: sends a parcel, or returns False when that cannot be done now. expired: told what has been given up.
    connected: whether anything can be sent. The thread starts with the first message that is kept, and is ended by
    `close`.

    Lock: ``_changed`` protects ``_held``, ``_thread``, ``_closed`` and ``_lost``.
    """

    def __init__(
        self,
        messages: int,
        size: int,
        send: Callable[[Parcel], bool],
        expired: Callable[[Parcel], None],
        connected: Callable[[], bool],
    ) -> None:
        self._send, self._expired, self._connected = send, expired, connected
        self._changed = threading.Condition()
        self._held = Held(messages, size)
        self._thread: threading.Thread | None = None
        self._closed = False
        self._lost: dict[str, int] = {}

    def follow(self, parcel: Parcel) -> bool | None:
        """Keep a new message if older ones to its address are kept: True; None when there is no room for it."""
        if not self._held.holds_for(parcel.address):  # looked at without the lock: nearly always there is nothing
            return False
        with self._changed:
            if not self._held.holds_for(parcel.address):
                return False
            lost = self._held.hold(time.monotonic(), parcel, lossy=is_notification(parcel.address))
            self._changed.notify()
        self._tell_lost([old for old in lost if old is not parcel])
        return None if parcel in lost else True

    def hold(self, parcel: Parcel) -> None:
        """Keep a message that found nobody."""
        with self._changed:
            if self._closed:
                return
            lost = self._held.hold(time.monotonic(), parcel, lossy=is_notification(parcel.address))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="dse-oslo-held", daemon=True)
                self._thread.start()
            self._changed.notify()
        self._tell_lost(lost)

    def heard(self, addresses: Iterable[str]) -> None:
        """Somebody listens on these addresses."""
        with self._changed:
            self._held.heard(time.monotonic(), addresses)
            self._changed.notify()

    def connected_again(self) -> None:
        """The connection is back: whoever came meanwhile could not be heard."""
        with self._changed:
            self._held.heard_all(time.monotonic())
            self._changed.notify()

    def withdraw(self, address: str, frame: bytes) -> None:
        """Nobody wants this message any more."""
        with self._changed:
            self._held.withdraw(address, frame)

    def __len__(self) -> int:
        return len(self._held)

    def close(self) -> None:
        """End the thread; what is still kept is lost, which the log says."""
        with self._changed:
            self._closed = True
            left = len(self._held)
            thread = self._thread
            self._changed.notify()
        if thread is not None and thread is not threading.current_thread():
            thread.join(10.0)
        if left:
            _log.warning("%d messages are lost that nobody has listened for until this transport was cleaned up", left)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closed and (pause := self._held.wakeup - time.monotonic()) > 0:
                    self._changed.wait(min(pause, 3600.0))
                if self._closed:
                    return
                send, expired = self._held.tick(time.monotonic(), may_send=self._connected())
            for parcel in expired:
                self._expired(parcel)
            self._tell_lost(expired)
            for position, parcel in enumerate(send):
                if not self._send(parcel):
                    with self._changed:
                        for rest in send[position:]:
                            self._held.hold(time.monotonic(), rest, lossy=False)
                    break

    def _tell_lost(self, parcels: Iterable[Parcel]) -> None:
        # A topic that nobody will ever listen to loses every message: the first and then every 1,000th is logged.
        for parcel in parcels:
            with self._changed:
                if len(self._lost) > 1000:
                    self._lost.clear()
                count = self._lost[parcel.address] = self._lost.get(parcel.address, 0) + 1
            if count % 1000 == 1:
                _log.warning("message %d to %s is lost: nobody listened in time", count, parcel.address)
