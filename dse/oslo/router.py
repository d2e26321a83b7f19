"""Where a sender's messages go: to one of a topic's servers in turn; a notification to every pool of listeners."""

from __future__ import annotations

import logging
import math
import threading
import time

from dse.oslo import addresses
from dse.oslo.connection import Connection
from dse.oslo.messages import Accepted, Ask, Back, Here, News, encode
from dse.oslo.pools import PoolBook
from dse.oslo.port import TooLarge, Unreachable
from dse.oslo.turns import Turns

__all__ = ["Router"]

_log = logging.getLogger(__name__)

_FIRST = 0.25  # seconds that the first message to a topic waits for word of its servers at most
_OTHERS = 0.03  # seconds that the others may take longer than the quickest, at least


class Router:
    """The runtime around `dse.oslo.turns` and `dse.oslo.pools`.

    me: the driver's address for answers.

    Lock: ``_changed`` protects ``_turns`` and ``_pools``.
    """

    def __init__(self, connection: Connection, me: str) -> None:
        self._connection = connection
        self._me = me
        self._changed = threading.Condition()
        self._turns = Turns()
        self._pools = PoolBook()

    def send(
        self, address: str, frame: bytes, *, deadline: float = math.inf, ttl: float | None = None, retry: int | None
    ) -> None:
        """Send a request; arguments and errors are those of `Connection.send`."""
        where: str | None = None
        if addresses.is_topic(address) and self._connection.port.reports:
            self._learn(address, deadline, retry)
            where = self.next(address)
        self._connection.send(where or address, frame, deadline=deadline, ttl=ttl, retry=retry)

    def next(self, address: str) -> str | None:
        """Return the address of the server whose turn it is, None where the bus is to choose."""
        with self._changed:
            return self._turns.next(address)

    def pools_of(self, address: str, frame: bytes) -> list[str]:
        """A notification is sent there: return the addresses of the pools that get a copy, and ask for them once."""
        with self._changed:
            ask, pools = self._pools.notified(time.monotonic(), address, frame)
        if ask:
            self.tell(addresses.ASK, Ask([address], self._me))
        return pools

    def told(self, news: News | Here) -> list[tuple[str, bytes]]:
        """Learn who listens where; return the copies of notifications that are due to pools."""
        with self._changed:
            if isinstance(news, News) and news.gone:
                self._turns.gone(news.server, news.addresses)
                return []
            self._turns.here(news.server, news.addresses)
            self._changed.notify_all()
            return self._pools.told(time.monotonic(), news.pools, asked=isinstance(news, Here))

    def gone(self, server: str, topic: str | None = None) -> None:
        """A server is not there any more, or does not serve this topic."""
        with self._changed:
            self._turns.gone(server, None if topic is None else [topic])

    def forget_pool(self, address: str) -> None:
        """Nobody is left of the pool with this address."""
        with self._changed:
            self._pools.forget(address)

    def ask_again(self) -> None:
        """The connection was away: everything may be different."""
        now = time.monotonic()
        with self._changed:
            asked = [*self._turns.ask_again(now), *self._pools.ask_again(now)]
        if asked:
            self.tell(addresses.ASK, Ask(asked, self._me))

    def tell(self, address: str, message: News | Ask | Here | Accepted | Back) -> None:
        """Send what nobody waits for, and what is said again after an outage."""
        try:
            self._connection.port.send(address, encode(message), 30.0)
        except (Unreachable, TooLarge) as error:
            _log.debug("%s could not be sent: %s", type(message).__name__, error)

    def _learn(self, address: str, deadline: float, retry: int | None) -> None:
        """Ask who serves a topic, if it is time; the first time wait for answers."""
        with self._changed:
            ask, first = self._turns.asks(time.monotonic(), address)
        if not ask:
            return
        if first:
            self._connection.ready(deadline, retry)
        began = time.monotonic()
        self.tell(addresses.ASK, Ask([address], self._me))
        if first:
            with self._changed:
                self._changed.wait_for(lambda: self._turns.known(address), max(0.0, min(_FIRST, deadline - began)))
                # The others need about as long as the quickest did; how many there are, nobody can know.
                quickest = time.monotonic() - began
                end = min(began + quickest + max(_OTHERS, 4 * quickest), began + _FIRST, deadline)
                while (left := end - time.monotonic()) > 0:
                    self._changed.wait(left)
