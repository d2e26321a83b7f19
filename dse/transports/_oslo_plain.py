"""Any driver of oslo.messaging that can do RPC, under the transport SPI, through the interface they all have.

A listener of oslo.messaging's for each address that is DIRECT or ANYCAST, and one for all that is FANOUT. What this
cannot give, for the interface does not: no report of what is undeliverable, no word of an outage (the driver reconnects
by itself or not), and what waits on the broker when a listener leaves is the driver's affair. A frame is still
delivered at most once, if the driver never sends anything twice.
"""

from __future__ import annotations

import base64
import logging
import threading
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dse.core.connection import Session
from dse.core.transport import Address, Delivery
from dse.errors import InvalidUrl
from dse.transports._oslo_library import oslo_messaging
from dse.transports._oslo_wire import Dispatcher, Place, Places

if TYPE_CHECKING:
    from dse.transports.oslo import OsloTransport

__all__ = ["PlainSession"]

_log = logging.getLogger("dse.transport")

_FLUSH = 1.0  # seconds that unlisten waits for handlers
_GOODBYE = 2.0  # seconds that a driver gets to stop all its listeners


class PlainSession(Session):
    """Lock: ``_lock`` protects ``_listeners``."""

    def __init__(self, transport: OsloTransport) -> None:
        self._transport = transport
        self._places = Places(transport.bus)
        self._own = uuid.uuid4().hex
        self._messaging: Any = transport.messaging()
        self._dispatcher = Dispatcher(transport)
        self._lock = threading.Lock()
        self._listeners: dict[str, Any] = {}  # oslo.messaging's, by the place's name
        self._addresses: dict[str, Address] = {}  # listened on, by the place's name
        self._ended = False

    def open(self) -> None:
        self._dispatcher.start()
        fanout = Place(self._places.fanout, self._places.fanout, self._own)
        try:
            self._within(self._transport.connect_timeout, lambda: self._start(fanout))
        except NotImplementedError as error:
            why = f": {error}" if str(error) else ""
            raise InvalidUrl(f"{self._transport.url}: this driver of oslo.messaging cannot do RPC{why}") from None

    def listen(self, addresses: Sequence[Address]) -> None:
        for address in addresses:
            place = self._places.of(address)
            self._addresses[place.name] = address
            if address.delivery is not Delivery.FANOUT:
                listening = place if place.server else place._replace(server=self._own)
                self._within(self._transport.heartbeat, lambda listening=listening: self._start(listening))  # type: ignore[misc]

    def unlisten(self, address: Address) -> None:
        name = self._places.of(address).name
        with self._lock:
            listener = self._listeners.pop(name, None)
        if listener is not None:
            self._within(self._transport.heartbeat, lambda: _stop(listener))
            self._dispatcher.flush(_FLUSH)
        self._addresses.pop(name, None)

    def publish(self, address: Address, data: bytes, ttl: float | None) -> None:
        if self._ended:
            raise ConnectionResetError("the session was closed")
        place = self._places.of(address)
        target = oslo_messaging.Target(
            exchange=self._places.exchange,
            topic=place.topic,
            server=place.server or None,
            fanout=address.delivery is Delivery.FANOUT,
        )
        message = {"name": place.name, "frame": base64.b64encode(data).decode()}
        self._messaging._send(target, {}, message, retry=0)

    def _start(self, place: Place) -> None:
        target = oslo_messaging.Target(exchange=self._places.exchange, topic=place.topic, server=place.server)
        listener = self._messaging._listen(target, 1, None)
        with self._lock:
            ended = self._ended
            if not ended:
                self._listeners[place.name] = listener
        listener.start(self._received)
        if ended:
            _stop(listener)

    def _received(self, messages: Sequence[Any]) -> None:
        for incoming in messages:
            incoming.acknowledge()  # before it is handed on: never again, whatever happens
            message = incoming.message
            try:
                address = self._addresses.get(message["name"])
                data = base64.b64decode(message["frame"], validate=True)
            except (TypeError, KeyError, ValueError):
                _log.warning("%s: dropped a message that no DSE transport sent", self._transport.url)
                continue
            if address is not None and self._dispatcher.wait_room(None):
                self._dispatcher.put(address, data)

    def _within(self, seconds: float, do: Callable[[], object]) -> None:
        """Do something that the driver may take for ever for, on a thread that is left behind if it does."""
        errors: list[BaseException] = []

        def run() -> None:
            try:
                do()
            except BaseException as error:
                errors.append(error)

        thread = self._transport.spawn(run, "ask")
        thread.join(seconds)
        if thread.is_alive():
            raise TimeoutError(f"oslo.messaging did not answer within {seconds:g} s")
        if errors:
            raise errors[0]

    def close(self) -> None:
        with self._lock:
            first, self._ended = not self._ended, True
            listeners, self._listeners = list(self._listeners.values()), {}
        self._dispatcher.end()
        if first:
            try:
                self._within(_GOODBYE, lambda: self._stop_all(listeners))
            except Exception as error:
                _log.debug("%s: oslo.messaging could not be closed: %s", self._transport.url, error)
        self._dispatcher.join()

    def _stop_all(self, listeners: Sequence[Any]) -> None:
        stopping = [self._transport.spawn(lambda each=each: _stop(each), "stop") for each in listeners]  # type: ignore[misc]
        for thread in stopping:
            thread.join()
        self._messaging.cleanup()

    def abandon(self) -> None:
        self._ended = True


def _stop(listener: Any) -> None:
    listener.stop()
    listener.cleanup()
