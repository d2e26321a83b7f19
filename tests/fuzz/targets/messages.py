"""Any message that can be made can be decoded, or is refused, and comes out as what it was."""

from __future__ import annotations

from dse.core.messages import BadFrame, CatalogueRequest, decode, encode
from fuzz.draw import Draw, Exhausted

SEEDS = [bytes([kind, *range(40)]) for kind in range(22)]


def run(data: bytes) -> None:
    draw = Draw(data)
    try:
        message = draw.message()
        frame = encode(message)
    except (Exhausted, UnicodeEncodeError, OverflowError):
        return
    try:
        decoded = decode(frame)
    except BadFrame:
        return
    assert type(decoded).__struct_config__.tag == type(message).__struct_config__.tag
    if isinstance(message, CatalogueRequest):
        assert decoded == message
