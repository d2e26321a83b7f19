"""Whose turn it is among the servers of a topic. Plain state, no I/O, no clock, no lock.

oslo.messaging's programs expect that the servers of a topic take turns. A bus gives a message to whichever of them is
quickest to ask for it. So a sender learns who they are, and sends to each in turn. Rules:

1. Before the first message to a topic its servers are not known: the sender asks, and waits for the first answers. It
   asks again every `ASK_AGAIN` seconds while it sends there, in case word of somebody was lost.
2. Who begins to listen says so, and who ends does.
3. A server that proves not to be there is forgotten, and its message goes to the next one.
4. Where nobody is known the bus chooses, and knows best whether anybody listens.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

__all__ = ["ASK_AGAIN", "Turns"]

ASK_AGAIN = 30.0
_MOST = 10_000  # topics remembered
_SERVERS = 10_000  # of one topic


@dataclass(slots=True)
class _Topic:
    asked: float
    servers: list[str] = field(default_factory=list)
    turn: int = 0


class Turns:
    """See the rules at the top of this file. A server is known by the address for answers of its driver."""

    def __init__(self) -> None:
        self._topics: dict[str, _Topic] = {}

    def asks(self, now: float, address: str) -> tuple[bool, bool]:
        """Return whether to ask who listens there, and whether that is for the first time."""
        topic = self._topics.get(address)
        if topic is None:
            if len(self._topics) >= _MOST:
                self._topics.clear()
            self._topics[address] = _Topic(now)
            return True, True
        if now < topic.asked + ASK_AGAIN:
            return False, False
        topic.asked = now
        return True, False

    def next(self, address: str) -> str | None:
        """Return the server whose turn it is, None where the bus is to choose."""
        topic = self._topics.get(address)
        if topic is None or not topic.servers:
            return None
        topic.turn += 1
        return topic.servers[topic.turn % len(topic.servers)]

    def known(self, address: str) -> int:
        """Return how many servers are known."""
        topic = self._topics.get(address)
        return len(topic.servers) if topic is not None else 0

    def here(self, server: str, addresses: Iterable[str]) -> None:
        """This server listens on these addresses."""
        for address in addresses:
            topic = self._topics.get(address)
            if topic is not None and server not in topic.servers and len(topic.servers) < _SERVERS:
                topic.servers.append(server)

    def gone(self, server: str, addresses: Iterable[str] | None = None) -> None:
        """It does so no more; None: on any."""
        for address in self._topics if addresses is None else addresses:
            topic = self._topics.get(address)
            if topic is not None and server in topic.servers:
                topic.servers.remove(server)

    def ask_again(self, now: float) -> list[str]:
        """Forget all servers, for the connection was away; return the addresses to ask for."""
        for topic in self._topics.values():
            topic.asked = now
            topic.servers.clear()
        return list(self._topics)
