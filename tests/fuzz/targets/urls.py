"""Any text is a transport URL or `InvalidUrl`; every driver takes it or refuses it; no password shows in either."""

from __future__ import annotations

from typing import Any

from dse.core.transport import Address
from dse.core.url import TransportUrl
from dse.errors import ConfigError, InvalidUrl
from dse.transports.fake import FakeTransport
from dse.transports.oslo import OsloTransport
from dse.transports.rabbit import RabbitTransport
from dse.transports.redis import RedisTransport
from dse_nats.transport import NatsTransport

SEEDS = [
    b"redis://u:hunter2@h:1,h2/0?heartbeat=3&connect_timeout=1",
    b"rediss://h/0?ssl_cert_reqs=none",
    b"fake://a?link=b",
    b"redis+sentinel://h1,h2/m/0",
    b"rabbit://u:hunter2@h/v?heartbeat=9",
    b"amqps://[::1]:5671/%2f",
    b"nats://h:4222",
    b"oslo+rabbit://u:hunter2@h//?ssl=true",
    b"nats+local://x",
    b"redis://h:" + b"1" * 5000,
    b"oslo://?conf=/nothing",
    "fake://ü\ud800".encode("utf-8", "surrogatepass"),
    b"redis://%ff:hunter2@%00/1e3",
    b"redis+cluster://h?ssl=1",
]
_DRIVERS: tuple[type, ...] = (FakeTransport, RedisTransport, RabbitTransport, NatsTransport, OsloTransport)
_FIRST = {"fake": 0, "redis": 1, "rediss": 1, "rabbit": 2, "amqp": 2, "amqps": 2, "nats": 3, "oslo": 4}


class _Events:
    def received(self, address: Address, frame: bytes) -> None: ...
    def undeliverable(self, address: Address, frame: bytes) -> None: ...
    def state_changed(self, state: object) -> None: ...


def run(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape" if data[-1:] == b"\x80" else "replace")
    try:
        url = TransportUrl.parse(text)
    except InvalidUrl as error:
        _check(str(error), None, text)
        return
    _check(str(url) + repr(url), url, text)
    which = _FIRST.get(url.driver)
    if which is None or "conf" in url.options:
        return  # a configuration file is somebody else's format
    driver: Any = _DRIVERS[which]
    try:
        driver(url, bus="b", events=_Events())
    except (InvalidUrl, ConfigError) as error:
        _check(str(error), url, text)


def _check(shown: str, url: TransportUrl | None, text: str) -> None:
    shown.encode()
    # A secret of its own, told apart from what else the text says.
    secret = "hunter2"
    if url is not None and url.password == secret and text.count(secret) == 1:
        assert secret not in shown
