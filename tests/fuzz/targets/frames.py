"""Any bytes are a message or refused, with `BadFrame`; what is a message can be encoded again."""

from __future__ import annotations

import msgspec

from dse.core.messages import BadFrame, CatchUp, ChangeMessage, SnapshotChunk, decode, decode_change, encode
from dse.core.rows import check_received
from dse.core.untrusted import decode_value
from fuzz.recorded import FRAMES

SEEDS = list(FRAMES)


def run(data: bytes) -> None:
    frame = b"\x01\x01" + data[2:] if data[:1] != b"\x02" else data
    try:
        message = decode(frame)
    except BadFrame:
        return
    encode(message)
    if isinstance(message, CatchUp):
        for body in message.changes:
            try:
                decode_change(body)
            except BadFrame:
                pass
    elif isinstance(message, ChangeMessage | SnapshotChunk):
        rows = message.added if isinstance(message, ChangeMessage) else message.rows
        check_received(rows, 2)
    for field in ("args", "result"):
        value = getattr(message, field, None)
        if isinstance(value, msgspec.Raw):
            try:
                decode_value(value)
            except (msgspec.DecodeError, RecursionError, ValueError, TypeError):
                pass
