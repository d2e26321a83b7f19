"""A NATS server may say anything: events or `NotNats`, in whatever pieces it comes."""

from __future__ import annotations

from typing import Any

from dse_nats.protocol import NotNats, Parser

SEEDS = [
    b"PING\r\n",
    b"+OK\r\n",
    b"-ERR 'no'\r\n",
    b'INFO {"a":1}\r\n',
    b"MSG a 1 2\r\nhi\r\n",
    b"MSG a 1 r 2\r\nhi\r\n",
    b"HMSG a 1 12 14\r\nNATS/1.0 503hi\r\n",
    b"MSG a 1 999999999\r\n",
    b"INFO " + b"[" * 2000 + b"\r\n",
]


def run(data: bytes) -> None:
    assert _hear([data]) == _hear([data[at : at + 5] for at in range(0, len(data), 5)])


def _hear(pieces: list[bytes]) -> list[Any]:
    parser, events = Parser(), []
    try:
        for piece in pieces:
            parser.feed(piece)
            while (event := parser.next()) is not None:
                events.append(event)
    except NotNats:
        events.append(None)
    return [repr(event) for event in events]
