"""What the contract suite needs to know about the broker behind a driver."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from dse.testing.process import ServerProcess
from dse.testing.proxy import CutProxy

__all__ = ["Broker", "RunningBroker", "ServerBroker", "bus_prefix"]


def bus_prefix(bus: str) -> str:
    """What the name of everything that belongs to `bus` on a broker begins with."""
    return f"dse:{quote(bus, safe='')}:"


class Broker(ABC):
    """A broker in the hands of a test: where it is, what can be done to it, what is on it.

    url: for a transport; goes through the cut-off proxy where there is one. direct_url: the same, past the proxy.
    multiprocess: other processes reach it. can_fail: the methods from `stop` to `mend` work.
    can_look: `leftovers` works.

    A subclass that can be made without arguments, named in the entry point group ``dse.brokers`` under the scheme of
    its URLs, is how a driver's distribution offers a private broker to ``pytest --dse-transport``.
    """

    url: str
    direct_url: str
    multiprocess: bool = True
    can_fail: bool = True
    can_look: bool = True

    @classmethod
    def at(cls, url: str) -> Broker:
        """Return the running broker that a URL names, which is not ours to stop.

        What a test can do to it is up to the subclass: a proxy in front of it can play outages (see
        `dse.testing.brokers.ExternalBroker`). Here it can neither be failed nor looked into. Raises `BrokerError`, or
        what `dse.errors` has for it, when the URL names none.
        """
        return RunningBroker(url)

    @abstractmethod
    def stop(self) -> None:
        """Kill the broker without warning; connecting is refused."""

    @abstractmethod
    def start(self) -> None:
        """Bring a stopped broker back at the same address; returns when it answers."""

    def restart(self) -> None:
        """`stop`, then `start`."""
        self.stop()
        self.start()

    @abstractmethod
    def pause(self) -> None:
        """Hang the broker: connections stay up, nothing is answered, nothing is lost."""

    @abstractmethod
    def resume(self) -> None:
        """Let a paused broker go on."""

    @abstractmethod
    def cut(self) -> None:
        """Lose all bytes of all connections, new ones too; they stay up and dead, as behind a cut cable."""

    @abstractmethod
    def mend(self) -> None:
        """Let traffic pass again. Connections that lost bytes are reset."""

    @abstractmethod
    def leftovers(self, bus: str) -> set[str]:
        """Describe everything on the broker that belongs to `bus`: ``"queue dse:test:…"``, ``"connection dse:test:…"``.

        Looks with the broker's own administration, never through a driver, and remembers nothing.
        """

    @abstractmethod
    def close(self) -> None:
        """End the broker and remove its data; idempotent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class RunningBroker(Broker):
    """A broker of which nothing is known but its URL: it can neither be failed nor looked into."""

    can_fail = False
    can_look = False

    def __init__(self, url: str) -> None:
        self.url = self.direct_url = url

    def stop(self) -> None:
        raise NotImplementedError("broker cannot be stopped from here")

    start = pause = resume = cut = mend = stop

    def leftovers(self, bus: str) -> set[str]:
        raise NotImplementedError("broker cannot be looked into from here")

    def close(self) -> None:
        """Leave the broker as it is."""


class ServerBroker(Broker):
    """A broker made of processes that we started, each behind a proxy."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._servers: list[ServerProcess] = []
        self._proxies: list[CutProxy] = []

    def add(self, server: ServerProcess, proxy: CutProxy) -> None:
        """Take a server, not started yet, and the proxy in front of it into the broker's hands; `close` ends both."""
        self._servers.append(server)
        self._proxies.append(proxy)

    @property
    def running(self) -> bool:
        return all(server.running for server in self._servers)

    def stop(self) -> None:
        for proxy in self._proxies:
            proxy.refuse()
        for server in self._servers:
            server.kill()

    def start(self) -> None:
        for proxy in self._proxies:
            proxy.mend()
        for server in self._servers:
            server.start()

    def pause(self) -> None:
        for server in self._servers:
            server.pause()

    def resume(self) -> None:
        for server in self._servers:
            server.resume()

    def cut(self) -> None:
        for proxy in self._proxies:
            proxy.cut()

    def mend(self) -> None:
        for proxy in self._proxies:
            proxy.mend()

    def close(self) -> None:
        for proxy in self._proxies:
            proxy.close()
        for server in self._servers:
            server.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
