"""Which DSE address stands for which target of oslo.messaging.

An address is written here as one text: the first letter of its delivery, a colon, its name. The parts of a name are
%-encoded and separated by slashes, and each kind has a number of parts of its own, so that no two targets share one.

| target | address |
| --- | --- |
| exchange, topic | ``a:rpc/<exchange>/<topic>`` |
| exchange, topic, server | ``a:rpc/<exchange>/<topic>/<server>``: workers of one host share a name |
| exchange, topic, fanout | ``f:rpc/<exchange>/<topic>`` |
| notifications of a topic | ``a:note/<exchange>/<topic>`` |
| the copy for a pool | ``a:note/<exchange>/<topic>/<pool>`` |
| one driver: answers, and requests in turn | ``d:reply/<random>`` |
"""

from __future__ import annotations

import uuid
from urllib.parse import quote

__all__ = [
    "ASK",
    "NEWS",
    "fanout",
    "is_notification",
    "is_reply",
    "is_topic",
    "notifications",
    "pool",
    "reply",
    "server",
    "topic",
]

NEWS = "f:news"
"""Where whoever begins to listen says so; every driver hears it."""

ASK = "f:ask"
"""Where a sender asks who listens; those who do hear it."""

_NOTE = "a:note/"


def topic(exchange: str, name: str) -> str:
    """Return the address of one of the servers on a topic."""
    return f"a:rpc/{_quoted(exchange)}/{_quoted(name)}"


def server(exchange: str, name: str, server_name: str) -> str:
    """Return the address of the server of that name on a topic."""
    return f"a:rpc/{_quoted(exchange)}/{_quoted(name)}/{_quoted(server_name)}"


def fanout(exchange: str, name: str) -> str:
    """Return the address of all servers on a topic."""
    return f"f:rpc/{_quoted(exchange)}/{_quoted(name)}"


def notifications(exchange: str, name: str) -> str:
    """Return the address of one of those who listen for notifications of a topic (its priority included)."""
    return f"{_NOTE}{_quoted(exchange)}/{_quoted(name)}"


def pool(address: str, name: str) -> str:
    """Return the address of one of a pool; address: what `notifications` returned."""
    return f"{address}/{_quoted(name)}"


def reply() -> str:
    """Return a new address for answers."""
    return f"d:reply/{uuid.uuid4().hex}"


def is_notification(address: str) -> bool:
    """Whether an address is one for notifications."""
    return address.startswith(_NOTE)


def is_topic(address: str) -> bool:
    """Whether an address is one that the servers of a topic share."""
    return address.startswith("a:rpc/") and address.count("/") == 2


def is_reply(address: str) -> bool:
    """Whether an address is one for answers."""
    return address.startswith("d:") and len(address) > 2


def _quoted(text: object) -> str:
    return quote(str(text), safe="", errors="surrogatepass")
