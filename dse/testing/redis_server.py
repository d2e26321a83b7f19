"""Private Redis servers for tests: one server, a master with its sentinels, a cluster."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dse.testing.broker import ServerBroker, bus_prefix
from dse.testing.process import BrokerError, PortHold, ServerProcess, find_program, make_folder
from dse.testing.proxy import CutProxy

__all__ = ["RedisCluster", "RedisSentinelSet", "RedisServer", "redis_leftovers"]

_START_TIMEOUT = 30.0
_BUS_PORT_OFFSET = 10000  # fixed by Redis


class RedisServer(ServerBroker):
    """One private Redis server on a free loopback port, without persistence.

    username, password: what a client must give (the password alone for the default user). database: the one in the URL.
    config: more lines of redis.conf, name to value. sentinel: it is one. Raises `BrokerError` when the server is not
    installed or not up in time.
    """

    def __init__(
        self,
        *,
        username: str | None = None,
        password: str | None = None,
        database: int = 0,
        config: Mapping[str, str] | None = None,
        sentinel: bool = False,
    ) -> None:
        super().__init__(make_folder("redis"))
        try:
            self._node = _Node(self.folder, username=username, password=password, config=config, sentinel=sentinel)
            self._servers.append(self._node.server)
            self._proxies.append(self._node.proxy)
            self.url = f"redis://{self._node.userinfo}127.0.0.1:{self._node.proxy.port}/{database}"
            self.direct_url = f"redis://{self._node.userinfo}127.0.0.1:{self._node.port}/{database}"
            self.start()
        except BaseException:
            self.close()
            raise

    def command(self, *words: str | int) -> Any:
        """Run a command on the server, past the proxy, and return its answer."""
        return self._node.command(*words)

    def leftovers(self, bus: str) -> set[str]:
        return redis_leftovers(bus, self.command)

    def close(self) -> None:
        super().close()
        if hasattr(self, "_node"):
            self._node.close()


class RedisSentinelSet(ServerBroker):
    """A master, its replica, and one or three sentinels that watch them under the name ``mymaster``.

    All of them are named to each other by their proxies' addresses, so that `cut` parts them too.
    """

    def __init__(self, *, sentinels: int = 1, password: str | None = None) -> None:
        super().__init__(make_folder("sentinel"))
        self._nodes: list[_Node] = []
        self._sentinels: list[_Node] = []
        try:
            self._build(sentinels, password)
            super().start()
            self._wait_ready()
        except BaseException:
            self.close()
            raise

    def _build(self, sentinels: int, password: str | None) -> None:
        auth = {"masterauth": password} if password else {}
        for index in range(2):
            node = _Node(self.folder / f"data{index}", password=password, config=auth)
            node.configure({"replica-announce-ip": "127.0.0.1", "replica-announce-port": str(node.proxy.port)})
            node.configure({"repl-diskless-sync-delay": "0"})
            self._nodes.append(node)
        master, replica = self._nodes
        replica.configure({"replicaof": f"127.0.0.1 {master.proxy.port}"})
        for index in range(sentinels):
            node = _Node(self.folder / f"sentinel{index}", sentinel=True)
            lines = [
                f"monitor mymaster 127.0.0.1 {master.proxy.port} {sentinels // 2 + 1}",
                "down-after-milliseconds mymaster 1000",
                "failover-timeout mymaster 5000",
                "announce-ip 127.0.0.1",
                f"announce-port {node.proxy.port}",
            ]
            if password:
                lines.append(f"auth-pass mymaster {password}")
            node.append(f"sentinel {line}" for line in lines)
            self._sentinels.append(node)
        for node in (*self._nodes, *self._sentinels):
            self._servers.append(node.server)
            self._proxies.append(node.proxy)
        user = master.userinfo
        self.url = f"redis+sentinel://{user}{_hosts(n.proxy.port for n in self._sentinels)}/mymaster/0"
        self.direct_url = f"redis+sentinel://{user}{_hosts(n.port for n in self._sentinels)}/mymaster/0"

    def start(self) -> None:
        super().start()
        self._wait_ready()

    @property
    def master(self) -> int:
        """The index, 0 or 1, of the data server that the sentinels name as master."""
        answer = self._sentinels[0].command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster")
        return [n.proxy.port for n in self._nodes].index(int(answer[1]))

    def failover(self) -> None:
        """Make the replica master; returns when every sentinel says so and it accepts writes.

        The old master learns of it some seconds later, from a sentinel; another failover waits for that.
        """
        old = self.master
        sentinel = self._sentinels[0]

        def ordered() -> bool:
            return sentinel.command("SENTINEL", "FAILOVER", "mymaster") in (True, b"OK")

        _wait("the failover could be ordered", ordered)
        _wait("the sentinels agree on the new master", lambda: self.master != old and self._agreed())
        _wait("the new master accepts writes", lambda: self._role(self._nodes[1 - old]) == b"master")

    def stop_master(self) -> int:
        """Kill the present master alone and return its index; the sentinels notice after a second."""
        index = self.master
        self._nodes[index].proxy.refuse()
        self._nodes[index].server.kill()
        return index

    def leftovers(self, bus: str) -> set[str]:
        found: set[str] = set()
        for node in (*self._nodes, *self._sentinels):
            found |= redis_leftovers(bus, node.command, keys=node in self._nodes)
        return found

    def close(self) -> None:
        super().close()
        for node in (*self._nodes, *self._sentinels):
            node.close()

    @staticmethod
    def _role(node: _Node) -> bytes:
        role: bytes = node.command("ROLE")[0]
        return role

    def _agreed(self) -> bool:
        answers = {bytes(n.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster")[1]) for n in self._sentinels}
        return len(answers) == 1

    def _wait_ready(self) -> None:
        def ready() -> bool:
            if not self._agreed() or self._role(self._nodes[self.master]) != b"master":
                return False
            replica = self._nodes[1 - self.master].command("ROLE")
            for node in self._sentinels:
                state = node.command("SENTINEL", "MASTER", "mymaster")
                fields = state if isinstance(state, dict) else dict(zip(state[::2], state[1::2], strict=True))
                text = {_text(k): _text(v) for k, v in fields.items()}
                if text["num-slaves"] != "1" or text["num-other-sentinels"] != str(len(self._sentinels) - 1):
                    return False
                if text["flags"] != "master":
                    return False
            return bool(replica[0] == b"slave" and replica[3] == b"connected")

        _wait("master, replica and sentinels know each other", ready)


class RedisCluster(ServerBroker):
    """Three masters that share the hash slots, each announcing its proxy's address to the clients."""

    def __init__(self, *, password: str | None = None) -> None:
        super().__init__(make_folder("cluster"))
        self._nodes: list[_Node] = []
        try:
            for index in range(3):
                node = _Node(self.folder / f"node{index}", password=password, cluster=True)
                self._nodes.append(node)
                self._servers.append(node.server)
                self._proxies.append(node.proxy)
            user = self._nodes[0].userinfo
            self.url = f"redis+cluster://{user}{_hosts(n.proxy.port for n in self._nodes)}"
            self.direct_url = f"redis+cluster://{user}{_hosts(n.port for n in self._nodes)}"
            super().start()
            self._join()
            self._wait_ready()
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        super().start()
        self._wait_ready()

    def stop_node(self, index: int) -> None:
        """Kill one master alone."""
        self._nodes[index].proxy.refuse()
        self._nodes[index].server.kill()

    def command(self, *words: str | int) -> list[Any]:
        """Run a command on every server, past the proxies, and return their answers."""
        return [node.command(*words) for node in self._nodes]

    def leftovers(self, bus: str) -> set[str]:
        found: set[str] = set()
        for node in self._nodes:
            found |= redis_leftovers(bus, node.command)
        return found

    def close(self) -> None:
        super().close()
        for node in self._nodes:
            node.close()

    def _join(self) -> None:
        share = 16384 // 3 + 1
        for index, node in enumerate(self._nodes):
            node.command("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
            node.command("CLUSTER", "ADDSLOTS", *range(index * share, min((index + 1) * share, 16384)))
        for node in self._nodes[1:]:
            self._nodes[0].command("CLUSTER", "MEET", "127.0.0.1", node.port, node.port + _BUS_PORT_OFFSET)

    def _wait_ready(self) -> None:
        def ready() -> bool:
            for node in self._nodes:
                info = node.command("CLUSTER", "INFO")
                text = info if isinstance(info, dict) else _info(info)
                if text.get("cluster_state") != "ok" or text.get("cluster_known_nodes") != "3":
                    return False
                # Every node must hand out the proxies' addresses, which travel with the gossip.
                nodes = node.command("CLUSTER", "NODES")
                shown = _text(nodes) if isinstance(nodes, bytes | str) else str(nodes)
                if any(f"127.0.0.1:{n.proxy.port}" not in shown for n in self._nodes):
                    return False
            return True

        _wait("cluster_state is ok on every node", ready)


class _Node:
    """One redis-server process (or a sentinel) with its proxy, its folder and its configuration file."""

    def __init__(
        self,
        folder: Path,
        *,
        username: str | None = None,
        password: str | None = None,
        config: Mapping[str, str] | None = None,
        sentinel: bool = False,
        cluster: bool = False,
    ) -> None:
        program = find_program("redis-server", package="redis-server")
        folder.mkdir(exist_ok=True)
        self._username, self._password = username, password
        self._holds: list[PortHold] = list(PortHold.with_offset(_BUS_PORT_OFFSET)) if cluster else [PortHold()]
        self.port = self._holds[0].port
        self.proxy = CutProxy(("127.0.0.1", self.port))
        self._file = folder / "redis.conf"
        self.configure({"bind": "127.0.0.1", "port": str(self.port), "dir": str(folder), "daemonize": "no"})
        if not sentinel:
            self.configure({"save": '""', "appendonly": "no", "databases": "16"})
        if cluster:
            self.configure({"cluster-enabled": "yes", "cluster-node-timeout": "2000"})
            self.configure({"cluster-announce-ip": "127.0.0.1", "cluster-announce-port": str(self.proxy.port)})
            self.configure({"cluster-announce-bus-port": str(self.port + _BUS_PORT_OFFSET)})
        if username:
            self.append([f"user {username} on >{password or ''} ~* &* +@all", "user default off"])
        elif password:
            self.configure({"requirepass": password})
        self.configure(config or {})
        command = [program, str(self._file), *(["--sentinel"] if sentinel else [])]
        self.server = ServerProcess(
            "redis-server", command, folder=folder, ready=self._answers, deadline=_START_TIMEOUT
        )

    @property
    def userinfo(self) -> str:
        if self._password is None:
            return ""
        return f"{quote(self._username or '', safe='')}:{quote(self._password, safe='')}@"

    def configure(self, settings: Mapping[str, str]) -> None:
        self.append(f"{name} {value}" for name, value in settings.items())

    def append(self, lines: Iterable[str]) -> None:
        with self._file.open("a") as file:
            file.writelines(f"{line}\n" for line in lines)

    def command(self, *words: str | int) -> Any:
        """Run a command on a new connection past the proxy; a broker that is down raises `OSError`."""
        return _redis_command("127.0.0.1", self.port, self._username, self._password, words)

    def close(self) -> None:
        self.proxy.close()
        for hold in self._holds:
            hold.close()

    def _answers(self) -> bool:
        return self.command("PING") in (True, b"PONG")


def redis_leftovers(bus: str, command: Callable[..., Any], *, keys: bool = True) -> set[str]:
    """What belongs to `bus` on one Redis server; `command` runs a command there. keys: it is no sentinel."""
    prefix = bus_prefix(bus)
    pattern = "".join(f"\\{c}" if c in "*?[]\\^" else c for c in prefix) + "*"
    found = set[str]()
    if keys:
        found |= {f"channel {_text(name)}" for name in command("PUBSUB", "CHANNELS", pattern)}
        with contextlib.suppress(Exception):  # Redis 6 has no sharded channels
            found |= {f"shard channel {_text(name)}" for name in command("PUBSUB", "SHARDCHANNELS", pattern)}
        cursor = "0"
        while True:
            cursor, names = command("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)
            found |= {f"key {_text(name)}" for name in names}
            if int(cursor) == 0:
                break
    clients = command("CLIENT", "LIST")
    if isinstance(clients, bytes | str):
        clients = [dict(word.split("=", 1) for word in line.split()) for line in _text(clients).splitlines()]
    for client in clients:
        if client.get("name", "").startswith(prefix):
            found.add(f"connection {client['name']} (id {client.get('id', '?')})")
    return found


def _redis_command(
    host: str, port: int, username: str | None, password: str | None, words: tuple[str | int, ...]
) -> Any:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    client = redis.Redis(
        host=host,
        port=port,
        username=username,
        password=password,
        socket_timeout=5.0,
        socket_connect_timeout=5.0,
        retry=Retry(NoBackoff(), 0),
    )
    try:
        return client.execute_command(*words)  # type: ignore[no-untyped-call]
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise OSError(f"redis at {host}:{port} does not answer: {error}") from error
    finally:
        client.close()


def _wait(what: str, condition: Callable[[], bool], timeout: float = 30.0) -> None:
    """Wait until the condition holds; an exception counts as not yet."""
    until = time.monotonic() + timeout
    last: Exception | None = None
    while time.monotonic() < until:
        try:
            if condition():
                return
        except Exception as error:
            last = error
        time.sleep(0.02)
    raise BrokerError(f"not within {timeout:g} s: {what}" + (f" (last: {last})" if last else ""))


def _hosts(ports: Iterable[int]) -> str:
    return ",".join(f"127.0.0.1:{port}" for port in ports)


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _info(value: bytes | str) -> dict[str, str]:
    return dict(line.split(":", 1) for line in _text(value).splitlines() if ":" in line)
