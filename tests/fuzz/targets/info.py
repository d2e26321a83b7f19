"""Whatever a dictionary holds, it is a `DataServiceInfo` that can be told on, or `ConfigError`."""

from __future__ import annotations

from typing import Any

from dse.core.info import DataServiceInfo
from dse.errors import ConfigError
from fuzz.draw import Draw, Exhausted

SEEDS = [bytes([n]) * 60 for n in range(0, 256, 16)]


def run(data: bytes) -> None:
    draw = Draw(data)
    try:
        said: Any = draw.info()
    except Exhausted:
        return
    try:
        info = DataServiceInfo.from_dict(said)
    except ConfigError as error:
        str(error)
        return
    assert DataServiceInfo.from_dict(info.to_dict()) == info
    for method in info.rpc_methods.values():
        assert isinstance(method.signature, str)
        assert isinstance(method.doc, str)
        assert isinstance(method.idempotent, bool)
