"""NATS servers for tests: a private one that can be killed, hung, cut off and looked at, and the local one."""

from __future__ import annotations

import functools
import json
import secrets
import signal
import socket
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from dse.core.url import TransportUrl
from dse.testing.broker import Broker, ServerBroker
from dse.testing.process import BrokerError, PortHold, ServerProcess, make_folder
from dse.testing.proxy import CutProxy
from dse_nats.local import Membership, server_program
from dse_nats.protocol import PING, Message, Parser, Refusal, connect, publish, subscribe
from dse_nats.transport import subjects_of

__all__ = ["LocalServer", "NatsCluster", "NatsServer"]

_START_TIMEOUT = 30.0
_PATIENCE = 5.0


class NatsServer(ServerBroker):
    """A private NATS server on a free loopback port, behind a proxy.

    username, password: what a client must give. config: more lines of nats-server's configuration. Raises `BrokerError`
    when it is not up in time.
    """

    def __init__(self, *, username: str | None = None, password: str | None = None, config: str = "") -> None:
        super().__init__(make_folder("nats"))
        self._hold = PortHold()
        self._credentials: dict[str, str] = {}
        userinfo = ""
        if username is not None:
            self._credentials = {"user": username, "pass": password or ""}
            userinfo = f"{quote(username, safe='')}:{quote(password or '', safe='')}@"
            config += f"\nauthorization {{ user: {json.dumps(username)}, password: {json.dumps(password)} }}"
        file = self.folder / "nats.conf"
        file.touch(0o600)
        file.write_text(f"host: 127.0.0.1\nport: {self._hold.port}\n{config}\n")
        try:
            command = [server_program(), "-c", str(file)]
            server = ServerProcess(
                "nats-server", command, folder=self.folder, ready=self._answers, deadline=_START_TIMEOUT
            )
            proxy = CutProxy(("127.0.0.1", self._hold.port))
            self.add(server, proxy)
            self.port = self._hold.port
            self.url = f"nats://{userinfo}127.0.0.1:{proxy.port}"
            self.direct_url = f"nats://{userinfo}127.0.0.1:{self.port}"
            self.start()
        except BaseException:
            self.close()
            raise

    def signal(self, number: signal.Signals) -> None:
        """Send the server a signal; on SIGHUP it reads its configuration and its certificates again."""
        self._servers[0].signal(number)

    def leftovers(self, bus: str) -> set[str]:
        return _leftovers(bus, self._hold.port, self._credentials)

    def close(self) -> None:
        super().close()
        self._hold.close()

    def _answers(self) -> bool:
        return _greets(self._hold.port)


class NatsCluster(ServerBroker):
    """Private NATS servers that are a cluster, each behind a proxy; a client connects to any of them."""

    def __init__(self, size: int = 2) -> None:
        super().__init__(make_folder("nats"))
        self._holds = [PortHold() for _ in range(2 * size)]
        self._ports = [hold.port for hold in self._holds[:size]]
        routes = [hold.port for hold in self._holds[size:]]
        try:
            for port, route in zip(self._ports, routes, strict=True):
                file = self.folder / f"{port}.conf"
                others = ", ".join(f'"nats://127.0.0.1:{other}"' for other in routes if other != route)
                cluster = f"name: test, host: 127.0.0.1, port: {route}, routes: [{others}], no_advertise: true"
                file.write_text(f"host: 127.0.0.1\nport: {port}\ncluster {{ {cluster} }}\n")
                command = [server_program(), "-c", str(file)]
                ready = functools.partial(_greets, port)
                server = ServerProcess("nats-server", command, folder=self.folder, ready=ready, deadline=_START_TIMEOUT)
                self.add(server, CutProxy(("127.0.0.1", port)))
            self.urls = [f"nats://127.0.0.1:{port}" for port in self._ports]
            self.url = "nats://" + ",".join(f"127.0.0.1:{proxy.port}" for proxy in self._proxies)
            self.direct_url = "nats://" + ",".join(f"127.0.0.1:{port}" for port in self._ports)
            self.start()
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Start the servers; returns when each knows all others."""
        super().start()
        deadline = time.monotonic() + _START_TIMEOUT
        while any(len(_ask_all(port, {})) < len(self._ports) for port in self._ports):
            if time.monotonic() > deadline:
                raise BrokerError(f"the servers have not found each other within {_START_TIMEOUT:g} s")
            time.sleep(0.02)

    def leftovers(self, bus: str) -> set[str]:
        return _leftovers(bus, self._ports[0], {}, len(self._ports))

    def close(self) -> None:
        super().close()
        for hold in self._holds:
            hold.close()


class LocalServer(Broker):
    """``nats+local://`` under a name of its own; it heals itself, so nobody can keep it down (`can_fail` is False)."""

    can_fail = False

    def __init__(self) -> None:
        self.url = self.direct_url = f"nats+local://test-{secrets.token_hex(6)}"
        # A member of its own, so that the server stays where it is between two tests.
        self._membership = Membership(self.url, TransportUrl.parse(self.url).hosts[0][0])
        self.server = self._membership.join(time.monotonic() + _START_TIMEOUT)

    def leftovers(self, bus: str) -> set[str]:
        return _leftovers(bus, self.server.port, {"auth_token": self.server.token})

    def close(self) -> None:
        self._membership.leave()

    def stop(self) -> None:
        raise NotImplementedError

    start = pause = resume = cut = mend = stop


def _greets(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), 1.0) as sock:
        return sock.recv(4) == b"INFO"


def _leftovers(bus: str, port: int, credentials: Mapping[str, str], servers: int = 1) -> set[str]:
    """What belongs to `bus` on the servers: connections by their names, and their subscriptions."""
    prefix = subjects_of(bus)
    found: set[str] = set()
    for client in (client for server in _ask_all(port, credentials, servers) for client in server["connections"]):
        name = str(client.get("name", ""))
        if name.startswith(prefix):
            found.add(f"connection {name} (id {client['cid']})")
        subscriptions = client.get("subscriptions_list") or []
        found |= {f"subscription {subject}" for subject in subscriptions if subject.startswith(prefix)}
    return found


def _ask_all(port: int, credentials: Mapping[str, str], servers: int = 0) -> list[dict[str, Any]]:
    """Ask every server of a cluster who is connected, until so many have answered, or (0) for a moment."""
    with socket.create_connection(("127.0.0.1", port), _PATIENCE) as sock:
        question = json.dumps({"subscriptions": True, "limit": 10_000}).encode()
        where = b"_INBOX.%b" % secrets.token_hex(8).encode()
        introduction = connect(verbose=False, headers=True, no_responders=True, **credentials)
        sock.sendall(introduction + subscribe(where, b"1") + PING)
        sock.sendall(publish(b"$SYS.REQ.ACCOUNT.PING.CONNZ", question, where))
        parser, answers = Parser(), list[dict[str, Any]]()
        if not servers:
            sock.settimeout(0.2)
        while not servers or len(answers) < servers:
            while (event := parser.next()) is None:
                try:
                    data = sock.recv(1 << 16)
                except TimeoutError:
                    if servers:
                        raise
                    return answers
                if not data:
                    raise OSError("the server closed the connection")
                parser.feed(data)
            if isinstance(event, Refusal):
                raise OSError(f"the server refuses: {event.text}")
            if isinstance(event, Message) and event.status == 0:
                answers.append(json.loads(event.payload)["data"])
        return answers
