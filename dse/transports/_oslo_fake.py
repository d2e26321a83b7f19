"""oslo.messaging's fake driver, under the transport SPI: one in-process broker a name.

Its listeners look every 50 ms whether something has come. All who send are in this process, so here whoever sends tells
those who listen. It has no notion of a listener either, only lists that messages are put into: which of them somebody
listens to, and that a list goes with its last listener, is kept here.
"""

from __future__ import annotations

import base64
import threading
import uuid
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from dse.core.connection import Session
from dse.core.transport import Address, Delivery
from dse.transports._oslo_library import impl_fake, oslo_messaging
from dse.transports._oslo_wire import Dispatcher, Place, Places

if TYPE_CHECKING:
    from dse.transports.oslo import OsloTransport

__all__ = ["FakeSession"]

_FLUSH = 1.0  # seconds that unlisten waits for handlers


class _Exchange:
    """One exchange of the fake driver, and who listens to what on it.

    Lock: `lock` protects both fields and what the sessions poll; the driver's own, below it, its lists.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.sessions: set[FakeSession] = set()
        self.listeners: dict[str, list[FakeSession]] = {}  # DIRECT and ANYCAST, by the place's name


_exchanges: dict[str, _Exchange] = {}
_exchanges_lock = threading.Lock()  # protects _exchanges; taken before that of an exchange


class FakeSession(Session):
    """Lock: ``_changed`` protects ``_come`` and ``_ended``; ``_polled`` is protected by the exchange's lock."""

    def __init__(self, transport: OsloTransport) -> None:
        self._transport = transport
        self._places = Places(transport.bus)
        broker = ",".join(host for host, _ in transport.url.hosts)
        self._name = f"{self._places.exchange}@{quote(broker, safe='')}"
        self._own = uuid.uuid4().hex
        self._driver: Any = transport.messaging()._driver
        self._dispatcher = Dispatcher(transport)
        self._changed = threading.Condition()
        self._come: deque[str] = deque()  # the names under which something has come, once a message
        self._ended = False
        self._polled: dict[str, Any] = {}  # the driver's listeners, by name
        self._addresses: dict[str, Address] = {}  # listened on, by the place's name
        self._exchange = _Exchange()  # until it is open
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        with _exchanges_lock:
            self._exchange = exchange = _exchanges.setdefault(self._name, self._exchange)
            with exchange.lock:
                exchange.sessions.add(self)
                fanout = Place(self._places.fanout, self._places.fanout, self._own)
                self._polled[fanout.name] = self._listener(fanout)
        self._dispatcher.start()
        self._thread = self._transport.spawn(self._run, "receive")

    # Listening

    def listen(self, addresses: Sequence[Address]) -> None:
        for address in addresses:
            place = self._places.of(address)
            self._addresses[place.name] = address
            if address.delivery is Delivery.FANOUT:
                continue
            with self._exchange.lock:
                self._check()
                self._polled[place.name] = self._listener(place)
                self._exchange.listeners.setdefault(place.name, []).append(self)

    def unlisten(self, address: Address) -> None:
        place = self._places.of(address)
        if address.delivery is not Delivery.FANOUT:
            with self._exchange.lock:
                self._leave(place)
        if address.delivery is Delivery.ANYCAST:
            self._dispatcher.flush(_FLUSH)  # what was polled is nobody else's any more
        self._addresses.pop(place.name, None)

    def _leave(self, place: Place) -> None:
        """Listen no more; the exchange's lock is held."""
        if self._polled.pop(place.name, None) is None:
            return
        left = self._exchange.listeners[place.name]
        left.remove(self)
        if not left:
            del self._exchange.listeners[place.name]
            self._forget(place)

    def _listener(self, place: Place) -> Any:
        target = oslo_messaging.Target(exchange=self._name, topic=place.topic, server=place.server or None)
        return impl_fake.FakeListener(self._driver._exchange_manager, [target])

    def _forget(self, place: Place) -> None:
        """Take a list away, with what is in it."""
        exchange = self._driver._exchange_manager.get_exchange(self._name)
        with exchange._queues_lock:
            if place.server:
                exchange._server_queues.pop((place.topic, place.server), None)
            else:
                exchange._topic_queues.pop((place.topic, None), None)

    # Sending

    def publish(self, address: Address, data: bytes, ttl: float | None) -> None:
        place = self._places.of(address)
        fanout = address.delivery is Delivery.FANOUT
        target = oslo_messaging.Target(
            exchange=self._name, topic=place.topic, server=place.server or None, fanout=fanout
        )
        message = {
            "name": place.name,
            "frame": base64.b64encode(data).decode(),
        }  # the driver sees to it that it is JSON
        with self._exchange.lock:
            self._check()
            listeners = list(self._exchange.sessions if fanout else self._exchange.listeners.get(place.name, ()))
            if listeners:
                self._driver.send(target, {}, message, retry=0)
        for session in listeners:
            session._tell(place.topic if fanout else place.name)
        if not listeners and not fanout:
            self._dispatcher.put(address, data, returned=True)

    def _check(self) -> None:
        if self._ended:
            raise ConnectionResetError("the session was closed")

    # Receiving

    def _tell(self, name: str) -> None:
        with self._changed:
            self._come.append(name)
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._come or self._ended)
                if self._ended:
                    return
                name = self._come.popleft()
            if not self._dispatcher.wait_room(None):
                return
            with self._exchange.lock:
                listener = self._polled.get(name)
                for message in listener.poll(timeout=0) if listener is not None else ():
                    address = self._addresses.get(message.message["name"])
                    if address is not None:
                        self._dispatcher.put(address, base64.b64decode(message.message["frame"]))

    # The end

    def close(self) -> None:
        with _exchanges_lock, self._exchange.lock:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
            if self in self._exchange.sessions:
                self._exchange.sessions.remove(self)
                fanout = Place(self._places.fanout, self._places.fanout, self._own)
                self._polled.pop(fanout.name)
                self._forget(fanout)
                for name in list(self._polled):
                    self._leave(self._places.of(self._addresses[name]))
                if not self._exchange.sessions:
                    del _exchanges[self._name]
                    with impl_fake.FakeExchangeManager._exchanges_lock:
                        impl_fake.FakeExchangeManager._exchanges.pop(self._name, None)
        self._dispatcher.end()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        self._dispatcher.join()

    def abandon(self) -> None:
        global _exchanges_lock
        self._ended = True
        # Of what was inherited nothing is listened to in the child, and whoever held the locks is not there.
        _exchanges_lock = threading.Lock()
        _exchanges.clear()
        impl_fake.FakeExchangeManager._exchanges_lock = threading.Lock()
        impl_fake.FakeExchangeManager._exchanges.clear()
