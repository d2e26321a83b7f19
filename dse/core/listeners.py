"""What a node wants to listen to: kept through outages, and carried out when the transport can."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence

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
        return self.add_all([address])

    def add_all(self, addresses: Sequence[Address]) -> bool:
        """The same for several addresses at once."""
        try:
            self._transport.listen_all(addresses)
        except TransportError as error:
            names = ", ".join(address.name for address in addresses[:3])
            more = f" and {len(addresses) - 3} more" if len(addresses) > 3 else ""
            _log.info("listening on %s%s waits for the connection: %s", names, more, error)
            with self._lock:
                self._missing.update(addresses)
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
        if missing:
            self.add_all(sorted_addresses(missing))


def sorted_addresses(addresses: Iterable[Address]) -> list[Address]:
    """Return addresses in an order that does not depend on chance."""
    return sorted(addresses, key=lambda address: (address.delivery.value, address.name))
