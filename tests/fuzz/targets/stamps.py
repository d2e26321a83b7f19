"""What a broker hands on is a frame of a known age or dropped; the name of any address is plain and its own."""

from __future__ import annotations

import logging
import math
from typing import Any

from dse.core.age import CLOCK_ID, STAMP, FrameAges
from dse.core.connection import BrokerTransport, wire_name
from dse.core.transport import Address, Capabilities, Delivery
from dse.core.url import TransportUrl
from dse.errors import ConfigError

SEEDS = [
    b"\x00frame",
    STAMP.pack(1, CLOCK_ID, 1.0, 5.0) + b"frame",
    STAMP.pack(1, b"otherone", 1e9, 1e9),
    b"bus\xffname",
]
logging.getLogger("dse.transport").setLevel(logging.CRITICAL)


class _Transport(BrokerTransport):
    capabilities = Capabilities(undeliverable=False, max_frame=1 << 20, survives_broker_restart=False)

    def session(self) -> Any:
        raise NotImplementedError


class _Events:
    def received(self, address: Address, frame: bytes) -> None: ...
    def undeliverable(self, address: Address, frame: bytes) -> None: ...
    def state_changed(self, state: object) -> None: ...


_transport = _Transport(TransportUrl.parse("stamps://h"), bus="b", events=_Events())
_names: dict[str, tuple[str, str]] = {}


def run(data: bytes) -> None:
    _transport._unstamp(data, 1000.0)
    _transport.return_undelivered(Address(Delivery.DIRECT, "a"), data)
    ages = FrameAges()
    for at in range(0, len(data) - STAMP.size, STAMP.size):
        _, clock, stamp, _ = STAMP.unpack_from(data, at)
        if not math.isfinite(stamp):
            continue  # refused before
        age = ages.age(float(at), clock, stamp)
        if stamp > 0:
            ages.believe(float(at), clock, stamp)
        assert not age < 0 or clock == CLOCK_ID
    text = data.decode("utf-8", "surrogateescape")
    bus, _, name = text.partition("\udcff")
    try:
        wire = wire_name(bus or "b", Address(Delivery.DIRECT, name))
    except ConfigError:
        return
    assert wire.isascii()
    assert len(wire) <= 200
    assert not set(wire) & set(" *>?[]\r\n\0")
    if len(_names) < 10_000:
        assert _names.setdefault(wire, (bus or "b", name)) == (bus or "b", name)
