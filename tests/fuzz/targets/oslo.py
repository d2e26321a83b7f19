"""Anybody may send anything to an oslo.messaging queue: data of a known place, or dropped."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

from dse.core.transport import Address, Delivery
from dse.transports._oslo_plain import PlainSession
from dse.transports._oslo_wire import pack, unpack
from fuzz.draw import Draw, Exhausted

SEEDS = [pack("name", b"data"), b"", b"\xff\xff", bytes(range(60))]
logging.getLogger("dse.transport").setLevel(logging.CRITICAL)


class _Dispatcher:
    def wait_room(self, _: object) -> bool:
        return True

    def put(self, address: object, data: bytes) -> None:
        assert isinstance(data, bytes)


def _session() -> Any:
    session: Any = object.__new__(PlainSession)
    session._addresses = {"name": Address(Delivery.DIRECT, "a")}
    session._dispatcher = _Dispatcher()
    session._transport = SimpleNamespace(url="oslo+fake://")
    return session


_receiver = _session()


def run(data: bytes) -> None:
    try:
        unpack(data)
    except ValueError:
        pass
    draw = Draw(data, ["name", "frame", "aGk="])
    try:
        message: Any = {"name": draw.name(), "frame": draw.name()} if draw.flag() else draw.value()
        if draw.flag():
            message = {draw.key(): draw.value(), "name": draw.value(), "frame": draw.value()}
    except Exhausted:
        return
    _receiver._received([SimpleNamespace(message=message, acknowledge=lambda: None)])
