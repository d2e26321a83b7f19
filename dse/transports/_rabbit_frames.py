"""The AMQP 0-9-1 frames that carry messages, written and read by hand.

Every message passes here, twice. py-amqp spends three reads of the socket on a frame and three frames on a message, and
builds a message object of 14 properties; this module joins a message to one write and takes a whole read apart at once.
All other methods (declare, bind, consume, …) are rare and stay py-amqp's.

No I/O and no lock: bytes in, bytes out. Source: AMQP 0-9-1 specification, section 2.3.5 (framing, content).
"""

from __future__ import annotations

import math
import struct
from collections import deque

from dse.core.tls import speaks_tls

__all__ = ["HEARTBEAT", "Frame", "FrameParser", "NotAmqp", "message", "publish_method"]

Frame = tuple[int, int, bytes]  # type, channel, payload

_METHOD, _HEADER, _BODY, _HEARTBEAT = 1, 2, 3, 8
_END = 0xCE
_START = struct.Struct(">BHI")  # type, channel, size
_CONTENT = struct.Struct(">HHQH")  # class, weight, body size, property flags
_BASIC = 60
_PUBLISH = struct.pack(">HHH", _BASIC, 40, 0)  # class, method, reserved
_RETURN = struct.pack(">HH", _BASIC, 50)
_DELIVER = struct.pack(">HH", _BASIC, 60)
_TRANSIENT = 0x1000, b"\x01"  # flag and value of delivery_mode 1
_EXPIRES = 0x0100  # flag of the property expiration
_LONGEST_BODY = 1 << 27  # bytes; of what this driver sends none is nearly as long (`Capabilities.max_frame`)
_MOST_CHANNELS = 2047  # RabbitMQ's own limit: as many messages may be on their way at once
_LONGEST_EXPIRATION = 2**32 - 1  # milliseconds; RabbitMQ closes the channel over more

HEARTBEAT = _START.pack(_HEARTBEAT, 0, 0) + bytes([_END])


class NotAmqp(ConnectionError):
    """The peer sent what no AMQP 0-9-1 server sends."""


def _not_amqp(data: bytes) -> NotAmqp:
    if speaks_tls(data):
        return NotAmqp("speaks TLS, and the URL does not ask for it")
    return NotAmqp("does not speak AMQP 0-9-1")


def _short(text: str) -> bytes:
    data = text.encode()
    return bytes([len(data)]) + data


def _frame(kind: int, channel: int, payload: bytes) -> bytes:
    return b"%b%b\xce" % (_START.pack(kind, channel, len(payload)), payload)


def publish_method(channel: int, exchange: str, routing_key: str, mandatory: bool) -> bytes:
    """Return the frame that begins every message to one place."""
    return _frame(_METHOD, channel, _PUBLISH + _short(exchange) + _short(routing_key) + bytes([mandatory]))


def message(method: bytes, channel: int, body: bytes, ttl: float | None, frame_max: int) -> bytes:
    """Return a transient message as it goes to the wire.

    method: from `publish_method`. ttl: seconds after which the broker may drop it. frame_max: the negotiated limit in
    bytes of a frame, its 8 bytes of framing included.
    """
    flags, properties = _TRANSIENT
    if ttl is not None:
        flags |= _EXPIRES
        properties += _short(str(math.ceil(max(1.0, min(ttl * 1000, _LONGEST_EXPIRATION)))))
    header = _frame(_HEADER, channel, _CONTENT.pack(_BASIC, 0, len(body), flags) + properties)
    room = frame_max - 8
    if not body:
        return method + header
    if len(body) <= room:
        return b"%b%b%b%b\xce" % (method, header, _START.pack(_BODY, channel, len(body)), body)
    parts: list[bytes | memoryview] = [method, header]
    whole = memoryview(body)
    for start in range(0, len(body), room):
        piece = whole[start : start + room]
        parts += _START.pack(_BODY, channel, len(piece)), piece, b"\xce"
    return b"".join(parts)


class FrameParser:
    """Takes what a connection reads apart.

    Messages that were delivered or returned go to `messages` as (delivered, routing key, body); all other methods to
    `methods`, for py-amqp; heartbeats nowhere. A frame or message that is not complete yet waits for the rest.
    """

    def __init__(self, frame_max: int) -> None:
        self.frame_max = frame_max
        self.messages: deque[tuple[bool, bytes, bytes]] = deque()
        self.received = 0  # messages ever appended
        self.methods: deque[Frame] = deque()
        self._rest = b""
        # By channel, a message on its way: (delivered, routing key, pieces of its body), and how many bytes it lacks.
        self._partial: dict[int, tuple[bool, bytes, list[bytes]]] = {}
        self._missing: dict[int, int] = {}

    def feed(self, data: bytes) -> None:
        """Take the next bytes; raise `NotAmqp` when they cannot be AMQP."""
        if self._rest:
            data = self._rest + data
        at, end = 0, len(data)
        while end - at >= 8:
            kind, channel, size = _START.unpack_from(data, at)
            if size > self.frame_max or not 1 <= kind <= _HEARTBEAT:
                raise _not_amqp(data)
            last = at + 7 + size
            if last >= end:
                break
            if data[last] != _END:
                raise _not_amqp(data)
            self._take(kind, channel, data[at + 7 : last])
            at = last + 1
        else:
            if at < end and data[at] not in (_METHOD, _HEADER, _BODY, _HEARTBEAT):
                raise _not_amqp(data)
        self._rest = data[at:]

    def _take(self, kind: int, channel: int, payload: bytes) -> None:
        if kind == _METHOD:
            which = payload[:4]
            try:
                if which == _DELIVER:
                    at = 5 + payload[4] + 9  # after the consumer tag: delivery tag (8), redelivered (1)
                elif which == _RETURN:
                    at = 7 + payload[6]  # after reply code (2) and reply text
                else:
                    self.methods.append((kind, channel, payload))
                    return
                at += 1 + payload[at]  # the exchange
                key = payload[at + 1 : at + 1 + payload[at]]
            except IndexError:
                raise NotAmqp("the server sent a part of a method") from None
            if channel in self._partial or len(self._partial) >= _MOST_CHANNELS:
                raise NotAmqp("the server began a message within a message")
            self._partial[channel] = which == _DELIVER, key, []
        elif kind == _HEADER:
            if channel not in self._partial or channel in self._missing or len(payload) < _CONTENT.size:
                raise NotAmqp("the server sent a header without a message")
            size = _CONTENT.unpack_from(payload)[2]
            if size > _LONGEST_BODY:
                raise NotAmqp(f"the server announced a message of {size:,} bytes")
            self._missing[channel] = size
            self._finish(channel)
        elif kind == _BODY:
            missing = self._missing.get(channel, 0) - len(payload)
            if missing < 0 or not payload:
                raise NotAmqp("the server sent more of a message than it announced")
            self._partial[channel][2].append(payload)
            self._missing[channel] = missing
            self._finish(channel)

    def _finish(self, channel: int) -> None:
        if self._missing[channel] == 0:
            del self._missing[channel]
            delivered, key, pieces = self._partial.pop(channel)
            self.messages.append((delivered, key, pieces[0] if len(pieces) == 1 else b"".join(pieces)))
            self.received += 1
