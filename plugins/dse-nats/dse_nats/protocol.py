"""The NATS client protocol, without I/O: bytes in, events out; and the bytes of what a client says.

Rules:

1. `Parser.feed` takes what was received, in any pieces; `Parser.next` returns the next whole event, or None when the
   rest has not come yet. The pieces make no difference.
2. What no NATS server says raises `NotNats`; the connection is of no use then.
3. Lines and payloads have a limit: no server makes a client keep more than that.

Source: "Client Protocol", https://docs.nats.io/reference/reference-protocols/nats-protocol
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

__all__ = [
    "NO_RESPONDERS",
    "PING",
    "PONG",
    "Event",
    "Info",
    "Message",
    "NotNats",
    "Parser",
    "Refusal",
    "Signal",
    "connect",
    "publish",
    "subscribe",
    "unsubscribe",
]

PING, PONG = b"PING\r\n", b"PONG\r\n"
NO_RESPONDERS = 503
"""The status of a message that says: nobody is subscribed to what was published."""

_LONGEST_LINE = 1 << 18  # bytes; an INFO line names every server of a cluster
_LONGEST_PAYLOAD = 1 << 26  # what a NATS server can be configured to at most
_STATUS = b"NATS/1.0 "
# Nearly all that a server says, with one look.
_begins_message = re.compile(rb"MSG (\S+) (\S+) (?:(\S+) )?(\d{1,9})\r\n").match


class NotNats(ValueError):
    """The peer does not speak the NATS protocol."""


class Signal(Enum):
    """Events that are one word."""

    PING = "PING"
    PONG = "PONG"
    OK = "+OK"


@dataclass(frozen=True)
class Info:
    """What the server says of itself: first of all, and again when something changes."""

    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Refusal:
    """``-ERR``: what the server refuses, in its words."""

    text: str


class Message(NamedTuple):
    """A message for the subscription `sid`. status: 0 where its headers give none."""

    subject: bytes
    sid: bytes
    reply: bytes
    status: int
    payload: bytes


Event = Message | Signal | Info | Refusal

_SIGNALS = {signal.value.encode(): signal for signal in Signal}


class Parser:
    """Takes apart what a server says."""

    def __init__(self) -> None:
        self._buffer: bytes | bytearray = b""
        self._at = 0  # where the next event begins
        self._wanted = 0  # bytes from there, without which it cannot be whole

    def feed(self, data: bytes) -> None:
        """Take the next bytes that were received."""
        if self._at >= len(self._buffer):
            self._buffer, self._at = data, 0
            return
        if isinstance(self._buffer, bytes):
            self._buffer, self._at = bytearray(self._buffer[self._at :]), 0
        elif self._at:
            del self._buffer[: self._at]
            self._at = 0
        self._buffer += data

    def next(self) -> Event | None:
        """Return the next event, or None until more was fed; raises `NotNats`."""
        buffer, at = self._buffer, self._at
        if len(buffer) - at < self._wanted or at == len(buffer):
            return None
        if found := _begins_message(buffer, at):
            subject, sid, reply, size = found.groups()
            return self._message(subject, sid, reply or b"", 0, int(size), found.end())
        end = buffer.find(b"\r\n", at)
        if end < 0:
            if len(buffer) - at > _LONGEST_LINE:
                raise NotNats(f"a line of more than {_LONGEST_LINE:,} bytes")
            return None
        line = bytes(buffer[at:end])
        if line.startswith((b"MSG ", b"HMSG ")):
            return self._with_header(line, end + 2)
        event = self._control(line)
        self._at = end + 2
        return event

    @property
    def waiting(self) -> int:
        """Bytes that were fed and are not part of an event yet."""
        return len(self._buffer) - self._at

    def _with_header(self, line: bytes, start: int) -> Message | None:
        """Return the message with headers whose control line is `line`, and whose content starts at `start`."""
        words = line.split(b" ")
        sizes = words[-2:]
        if words[0] != b"HMSG" or len(words) not in (5, 6) or not all(s.isdigit() and len(s) < 10 for s in sizes):
            raise NotNats(f"no message begins with {_show(line)}")
        header, size = int(sizes[0]), int(sizes[1])
        if header > size:
            raise NotNats(f"no message begins with {_show(line)}")
        return self._message(words[1], words[2], words[3] if len(words) == 6 else b"", header, size, start)

    def _message(self, subject: bytes, sid: bytes, reply: bytes, header: int, size: int, start: int) -> Message | None:
        """Return the message whose headers and payload start at `start`, if it is all there."""
        if size > _LONGEST_PAYLOAD:
            raise NotNats(f"it announces a message of {size:,} bytes")
        buffer, end = self._buffer, start + size
        if len(buffer) < end + 2:
            self._wanted = end + 2 - self._at
            return None
        if buffer[end : end + 2] != b"\r\n":
            raise NotNats(f"a message is not {size} bytes long, as its beginning says")
        status = _status(bytes(buffer[start : start + header])) if header else 0
        payload = buffer[start + header : end]
        self._at, self._wanted = end + 2, 0
        return Message(subject, sid, reply, status, payload if type(payload) is bytes else bytes(payload))

    def _control(self, line: bytes) -> Event:
        if signal := _SIGNALS.get(line):
            return signal
        if line.startswith(b"-ERR"):
            return Refusal(line[4:].decode(errors="replace").strip().strip("'"))
        if line.startswith(b"INFO "):
            try:
                fields = json.loads(line[5:])
            except (ValueError, RecursionError):
                fields = None
            if isinstance(fields, dict):
                return Info(fields)
        raise NotNats(f"it says {_show(line)}")


def _status(header: bytes) -> int:
    """Return the status in the first line of message headers."""
    word = header[len(_STATUS) : len(_STATUS) + 3]
    return int(word) if header.startswith(_STATUS) and word.isdigit() else 0


def _show(line: bytes) -> str:
    return repr(line[:60].decode(errors="replace"))


def connect(**options: Any) -> bytes:
    """Return what a client introduces itself with."""
    return b"CONNECT " + json.dumps(options, separators=(",", ":")).encode() + b"\r\n"


def publish(subject: bytes, payload: bytes, reply: bytes = b"") -> bytes:
    """Return what publishes a payload; with `reply`, where the server says so when nobody is subscribed."""
    if reply:
        return b"PUB %b %b %d\r\n%b\r\n" % (subject, reply, len(payload), payload)
    return b"PUB %b %d\r\n%b\r\n" % (subject, len(payload), payload)


def subscribe(subject: bytes, sid: bytes, queue: bytes = b"") -> bytes:
    """Return what subscribes; of those with one `queue` a message goes to one."""
    return b"SUB %b %b %b\r\n" % (subject, queue, sid) if queue else b"SUB %b %b\r\n" % (subject, sid)


def unsubscribe(sid: bytes) -> bytes:
    """Return what ends a subscription."""
    return b"UNSUB %b\r\n" % sid
