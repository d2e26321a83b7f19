"""A RabbitMQ server may say anything: messages, methods for py-amqp, or `NotAmqp`; what it announces costs nothing."""

from __future__ import annotations

import struct

from dse.transports._rabbit_frames import HEARTBEAT, FrameParser, NotAmqp, message, publish_method

_deliver = struct.pack(">HH", 60, 60) + b"\x01t" + bytes(9) + b"\x01e" + b"\x03key"
_return = struct.pack(">HHH", 60, 50, 312) + b"\x02no" + b"\x01e" + b"\x03key"


def _frame(kind: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, 1, len(payload)) + payload + b"\xce"


def _content(size: int) -> bytes:
    return _frame(2, struct.pack(">HHQH", 60, 0, size, 0))


SEEDS = [
    HEARTBEAT,
    message(publish_method(1, "e", "key", True), 1, b"body", 5.0, 131072),
    _frame(1, _deliver) + _content(4) + _frame(3, b"body"),
    _frame(1, _return) + _content(4) + _frame(3, b"bo") + _frame(3, b"dy"),
    _frame(1, _deliver) + _content(0),
    _frame(1, struct.pack(">HH", 10, 40)),
    _frame(1, _deliver) + _content(2**63),
    _frame(3, b"lone"),
    _content(1),
    _frame(1, b""),
    _frame(1, _deliver[:5]),
    _frame(1, _deliver) + _content(1) + _frame(3, b"long"),
]


def run(data: bytes) -> None:
    whole, pieces = FrameParser(4096), FrameParser(4096)
    try:
        whole.feed(data)
        heard = list(whole.messages), list(whole.methods)
    except NotAmqp:
        heard = None
    try:
        for at in range(0, len(data), 7):
            pieces.feed(data[at : at + 7])
        said = list(pieces.messages), list(pieces.methods)
    except NotAmqp:
        said = None
    assert said == heard or heard is None or said is None
    assert len(pieces._rest) <= 4096 + 8
