"""What a node wants to listen to: kept through outages, and carried out when the transport can."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable

from dse.core.transport import Address, Transport
from dse.errors import TransportError

__all__ = ["Listeners"]

_log = logging.getLogger("dse.node")


class Listeners:
    """The addresses a node wants. The transport restores those it had; this adds those asked for during an outage.

    Lock: ``_lock`` protects ``_missing``.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._lock = threading.Lock()
        self._missing: set[Address] = set()

    def add(self, address: Address) -> bool:
        """Listen now (True), or as soon as the connection is back (False)."""
        try:
            self._transport.listen(address)
        except TransportError as error:
            _log.info("listening on %s waits for the connection: %s", address.name, error)
            with self._lock:
                self._missing.add(address)
            return False
        return True

    def remove(self, address: Address) -> None:
        """Listen no more."""
        with self._lock:
            self._missing.discard(address)
        try:
            self._transport.unlisten(address)
        except TransportError as error:
            _log.debug("not unlistened from %s: %s", address.name, error)

    def restore(self) -> None:
        """The connection is back: listen to what could not be listened to before."""
        with self._lock:
            missing, self._missing = self._missing, set()
        for address in sorted_addresses(missing):
            self.add(address)


def sorted_addresses(addresses: Iterable[Address]) -> list[Address]:
    """Return addresses in an order that does not depend on chance."""
    return sorted(addresses, key=lambda address: (address.delivery.value, address.name))
