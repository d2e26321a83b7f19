"""What travels between two programs of oslo.messaging over DSE, and its encoding.

A frame is one byte, the version, and msgpack that is decoded into the types below and no others. What the application
said, its context, arguments and results, is JSON as oslo.messaging's own drivers write it, so that a program finds at
the other end what it would find there: lists for tuples, text for dates.
"""

from __future__ import annotations

from typing import Any

import msgspec
from oslo_serialization import jsonutils

__all__ = [
    "Accepted",
    "Ask",
    "Back",
    "Here",
    "Message",
    "News",
    "Reply",
    "Request",
    "Unreadable",
    "decode",
    "encode",
    "from_json",
    "to_json",
]

_VERSION = 1
_HEAD = bytes([_VERSION])


class Unreadable(ValueError):
    """A frame, or a part of it, that no driver of this version sent."""


class Request(msgspec.Struct, tag="q", array_like=True):
    """A call, a cast or a notification: ``[context, message]`` as JSON.

    number: of the sender's; no two frames of a sender are the same. sender: his address for answers. answer: he waits
    for one. monitor: seconds within which he wants to hear that the method still runs. timeout: seconds that he waits.
    confirm: say `Accepted` as soon as it is there. topic: the address of the topic, for one that goes to one of its
    servers in turn.
    """

    number: int
    sender: str
    body: bytes
    answer: bool = False
    monitor: float | None = None
    timeout: float | None = None
    confirm: bool = False
    topic: str = ""


class Reply(msgspec.Struct, tag="r", array_like=True):
    """The end of a call: a result, or a failure as oslo.messaging writes one; or, not `ending`, that it still runs.

    timeout: seconds that the caller waits for it from now, as far as the sender knows. number: the request's.
    """

    number: int
    body: bytes | None = None
    failure: str | None = None
    ending: bool = True
    timeout: float | None = None


class Accepted(msgspec.Struct, tag="a", array_like=True):
    """A request that asked for it has reached a server."""

    number: int


class Back(msgspec.Struct, tag="b", array_like=True):
    """A request that came in turn and found that its server listens no more: the sender's own frame."""

    server: str
    frame: bytes


class News(msgspec.Struct, tag="n", array_like=True):
    """Somebody listens on these addresses, or does so no more (`gone`).

    server: his address for answers; pools: ``(address of the notifications, name of the pool)``.
    """

    server: str
    addresses: list[str]
    pools: list[tuple[str, str]] = []
    gone: bool = False


class Ask(msgspec.Struct, tag="k", array_like=True):
    """Who listens on these addresses, and which pools for the notifications of these?"""

    addresses: list[str]
    sender: str


class Here(msgspec.Struct, tag="h", array_like=True):
    """In answer to `Ask`: what `News` said."""

    server: str
    addresses: list[str]
    pools: list[tuple[str, str]] = []


Message = Request | Reply | Accepted | Back | News | Ask | Here

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """Return the frame of a message."""
    return _HEAD + _encoder.encode(message)


def decode(frame: bytes) -> Message:
    """Return the message of a frame; raise `Unreadable`."""
    if frame[:1] != _HEAD:
        raise Unreadable(f"it begins with {bytes(frame[:1])!r}, and version {_VERSION} is spoken here")
    try:
        return _decoder.decode(memoryview(frame)[1:])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise Unreadable(str(error)) from None


def to_json(value: Any) -> bytes:
    """Return JSON as oslo.messaging's own drivers write it; raises what its serialisation raises."""
    data: bytes = jsonutils.dump_as_bytes(value)
    return data


def from_json(data: bytes) -> Any:
    """Return what JSON says; raise `Unreadable`."""
    try:
        return jsonutils.loads(data)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"no JSON: {error}") from None
