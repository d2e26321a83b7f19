"""The gateway as a service of a node (`Web`, for `dse run`), and beside the bus (`Gateway`, for `dse web`)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dse.core.info import BusStatus
from dse.core.observer import Observer
from dse.core.replica import ReplicaState
from dse.core.service import DataService
from dse.core.table import Change, Replica
from dse.services.web.app import make_app
from dse.services.web.options import Limits, Options
from dse.services.web.server import Server
from dse.services.web.tables import Bus

__all__ = ["Gateway", "Web"]

_log = logging.getLogger("dse.web")


class Web(DataService):
    """Serves the bus over HTTP, with a page to look at it.

    host, port: where it listens; port 0 is any that is free. hosts: further names that requests may call it by, where
    they come through a proxy or a name of the machine. tokens: a file with the tokens that it accepts; without one
    everybody on this machine may read and call, and `host` has to be a loopback address. allow: the methods that
    clients may call, as ``SERVICE.METHOD`` with ``*``; none by default. limits: what it takes on at most.

    Raises `ConfigError`, and `MissingExtra` without ``dse[web]``.
    """

    def __init__(
        self,
        service_id: str = "web",
        *,
        host: str = "127.0.0.1",
        port: int = 8420,
        hosts: list[str] | None = None,
        tokens: Path | None = None,
        allow: list[str] | None = None,
        limits: Limits | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(service_id)
        self.options = Options(host, port, hosts or [], tokens, allow or [], Limits.of(limits))
        self._server = _server(_ServiceBus(self), self.options)

    @property
    def url(self) -> str:
        """Where it answers, while it runs."""
        return self._server.url

    def on_start(self) -> None:
        """Listen; raises `ConfigError` when the address cannot be used."""
        self._server.start()
        _log.info("the bus %s is served on %s", self.node.bus, self.url)

    def on_stop(self) -> None:
        """Answer nobody any more."""
        self._server.stop()


class Gateway:
    """The gateway beside the bus: it sees it through an `Observer`, and is in nobody's status.

    observer: a started one, which stays its owner's. The rest is that of `Web`. A context manager.
    """

    def __init__(self, observer: Observer, options: Options) -> None:
        self._server = _server(observer, options)

    @property
    def url(self) -> str:
        """Where it answers, while it runs."""
        return self._server.url

    def __enter__(self) -> Gateway:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()


def _server(bus: Bus, options: Options) -> Server:
    return Server(options, lambda: make_app(bus, options))


class _ServiceBus:
    """What a service can do on its bus, in the words of `Bus`."""

    def __init__(self, service: DataService) -> None:
        self._service = service
        self.unsubscribe = service.unsubscribe

    def status(self) -> BusStatus:
        return self._service.node.status()

    def subscribe(
        self,
        service_id: str,
        table: str,
        callback: Callable[[Change], Any] | None = None,
        *,
        on_state: Callable[[ReplicaState], Any] | None = None,
        patient: bool = False,
    ) -> Replica:
        return self._service.subscribe(service_id, table, callback, on_state=on_state, patient=patient)

    async def acall(
        self, service_id: str, method: str, args: dict[str, Any], *, timeout: float, node_id: str | None = None
    ) -> Any:
        return await self._service.node.acall(service_id, method, args, timeout=timeout, node_id=node_id)

    def figures(self, timeout: float = 1.0) -> dict[str, dict[str, Any] | None]:
        return self._service.node.figures(timeout)

    def first_rows(self, service_id: str, table: str, most: int, timeout: float = 1.0) -> Any:
        return self._service.node.first_rows(service_id, table, most, timeout)

    def clashes(self) -> list[tuple[str, str]]:
        return self._service.node.clashes()

    def watch(self, callback: Callable[[], None]) -> Callable[[], None]:
        return self._service.node.watch(callback)
