"""What the sessions of all of oslo.messaging's drivers share: names, and one thread that hands on what has come."""

from __future__ import annotations

import logging
import struct
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from dse.core.connection import wire_name
from dse.core.transport import Address, Delivery

if TYPE_CHECKING:
    from dse.core.connection import BrokerTransport

__all__ = ["Dispatcher", "Place", "Places", "pack", "unpack"]

_log = logging.getLogger("dse.transport")

_LENGTH = struct.Struct(">H")
_MOST_ITEMS = 10_000  # that wait to be handed on before receiving pauses
_MOST_BYTES = 64 * 2**20
_REMEMBERED = 512  # addresses
_HANDLER_TIMEOUT = 5.0  # seconds a handler of a lost session may go on before it is left behind


class Place(NamedTuple):
    """Where an address is on oslo.messaging: `server` is empty unless the delivery is DIRECT."""

    name: str
    topic: str
    server: str


class Places:
    """The places of one bus. Used by many threads: an entry made twice is the same."""

    def __init__(self, bus: str) -> None:
        self.prefix = f"dse:{quote(bus, safe='', errors='surrogatepass')}:"
        self.exchange = f"{self.prefix}topic"
        self.fanout = f"{self.prefix}f"
        self._bus = bus
        self._known: dict[Address, Place] = {}

    def of(self, address: Address) -> Place:
        """Return the place of an address."""
        place = self._known.get(address)
        if place is None:
            name = wire_name(self._bus, address)
            if address.delivery is Delivery.DIRECT:
                topic, _, server = name.rpartition(":")  # no quoted name has a colon
                place = Place(name, topic, server)
            else:
                place = Place(name, self.fanout if address.delivery is Delivery.FANOUT else name, "")
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[address] = place
        return place


def pack(name: str, data: bytes) -> bytes:
    """Return data with the name of the place that it is sent to."""
    plain = name.encode()
    return _LENGTH.pack(len(plain)) + plain + data


def unpack(message: bytes) -> tuple[str, bytes]:
    """Return what `pack` packed; raises `ValueError` when it did not."""
    try:
        (length,) = _LENGTH.unpack_from(message)
    except struct.error:
        raise ValueError("too short") from None
    return message[2 : 2 + length].decode("ascii"), message[2 + length :]


class Dispatcher:
    """Hands on, in order and on a thread of its own, what a session has received or got back.

    Lock: ``_changed`` protects ``_items``, ``_bytes``, ``_taken``, ``_put`` and ``_ended``.
    """

    def __init__(self, transport: BrokerTransport) -> None:
        self._transport = transport
        self._changed = threading.Condition()
        self._items: deque[tuple[bool, Address, bytes]] = deque()
        self._bytes = 0
        self._put = 0  # items ever put in
        self._taken = 0  # items whose handler has returned
        self._ended = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = self._transport.spawn(self._run, "deliver")

    @property
    def full(self) -> bool:
        """Whether nothing more should be received now."""
        return len(self._items) >= _MOST_ITEMS or self._bytes >= _MOST_BYTES

    def put(self, address: Address, data: bytes, *, returned: bool = False) -> None:
        """Hand data on later; `returned` when it found no listener."""
        with self._changed:
            self._items.append((returned, address, data))
            self._bytes += len(data)
            self._put += 1
            self._changed.notify_all()

    def wait_room(self, timeout: float | None) -> bool:
        """Wait so many seconds until more can be received, None for as long as it takes; return whether it can."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or not self.full, timeout)
            return not self._ended and not self.full

    def flush(self, timeout: float) -> None:
        """Wait until what was put in so far is handed on; not in a handler, which would wait for itself."""
        if threading.current_thread() is self._thread:
            return
        with self._changed:
            upto = self._put
            self._changed.wait_for(lambda: self._ended or self._taken >= upto, timeout)

    def end(self) -> None:
        """Hand on no more."""
        with self._changed:
            self._ended = True
            self._items.clear()
            self._bytes = 0
            self._changed.notify_all()

    def join(self) -> None:
        """Wait for the handler that runs, unless this is its own thread."""
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return
        until = time.monotonic() + _HANDLER_TIMEOUT
        thread.join(max(0.0, until - time.monotonic()))
        if thread.is_alive():
            _log.warning("%s: an event handler still blocks; its session is closed", self._transport.url)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._items and not self._ended:
                    self._changed.wait()
                if self._ended:
                    return
                returned, address, data = self._items.popleft()
                self._bytes -= len(data)
            if returned:
                self._transport.return_undelivered(address, data)
            else:
                self._transport.deliver(address, data)
            with self._changed:
                self._taken += 1
                self._changed.notify_all()
