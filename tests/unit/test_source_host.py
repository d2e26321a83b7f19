"""The `host` source, against this machine: sockets and processes of the test's own come and go."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

from dse import ConfigError, DataService, Node, RemoteError, Replica, ReplicaState
from dse.services.sources.host import TABLES, Host

PATIENCE = 15.0


class Bus:
    def __init__(self, node: Node, reader: DataService) -> None:
        self.node, self.reader = node, reader

    def follow(self, table: str) -> Replica:
        replica = self.reader.subscribe("host", table)
        replica.wait(ReplicaState.LIVE, PATIENCE)
        return replica

    def call(self, method: str, **args: Any) -> Any:
        return self.node.call("host", method, args, timeout=PATIENCE)


@contextmanager
def running(**options: Any) -> Iterator[Bus]:
    reader = DataService("reader")
    with Node(f"fake://{uuid.uuid4().hex}", services=[Host("host", interval=0.1, **options), reader]) as node:
        yield Bus(node, reader)


def test_a_listening_socket_comes_and_goes() -> None:
    with running(tables=["sockets"]) as bus:
        replica = bus.follow("sockets")
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            me = psutil.Process()
            row = (port, "127.0.0.1", "tcp", os.getpid(), me.name(), me.username())
            replica.wait(lambda replica: row in replica, PATIENCE)
            assert bus.call("listeners", port=port) == [dict(zip(replica.columns, row, strict=True))]
        replica.wait(lambda replica: row not in replica, PATIENCE)


def test_a_connection_comes_and_goes_seen_from_both_ends() -> None:
    with running(tables=["connections"]) as bus, socket.create_server(("127.0.0.1", 0)) as server:
        replica = bus.follow("connections")
        client = socket.create_connection(server.getsockname())
        peer, _ = server.accept()
        ends = {(*client.getsockname(), *peer.getsockname()), (*peer.getsockname(), *client.getsockname())}
        replica.wait(lambda replica: ends <= {row[:4] for row in replica.rows}, PATIENCE)
        client.close()
        peer.close()
        replica.wait(lambda replica: not ends & {row[:4] for row in replica.rows}, PATIENCE)


def test_a_process_comes_and_goes() -> None:
    with running(tables=["processes"]) as bus:
        replica = bus.follow("processes")
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        replica.wait(lambda replica: child.pid in {row[0] for row in replica.rows}, PATIENCE)
        found = bus.call("process", pid=child.pid)
        assert found["memory"] > 0
        child.communicate(b"\n", timeout=PATIENCE)
        replica.wait(lambda replica: child.pid not in {row[0] for row in replica.rows}, PATIENCE)
        with pytest.raises(RemoteError, match=f"there is no process {child.pid}"):
            bus.call("process", pid=child.pid)


def test_every_table_is_filled_with_what_psutil_knows() -> None:
    with running() as bus:
        replicas = {name: bus.follow(name) for name in TABLES}
        assert {row[0] for row in replicas["interfaces"].rows} == set(psutil.net_if_stats())
        assert ("lo", "ipv4", "127.0.0.1", "255.0.0.0") in replicas["addresses"]
        assert {row[0] for row in replicas["disks"].rows} == {part.mountpoint for part in psutil.disk_partitions()}
        assert all(row[4] is None or row[4] % 5 == 0 for row in replicas["disks"].rows)
        assert len(replicas["users"]) <= len(psutil.users())
        running_tables = {(name, "RUNNING", "") for name in TABLES}
        bus.follow("status").wait(lambda replica: replica.rows == running_tables, PATIENCE)


def test_methods_answer_also_where_nobody_wants_the_tables() -> None:
    with running(lazy=True, tables=["disks"]) as bus, socket.create_server(("127.0.0.1", 0)) as server:
        assert bus.follow("status").rows == {("disks", "IDLE", "")}
        assert bus.call("summary")["processes"] > 1
        assert len(bus.call("listeners", port=server.getsockname()[1])) == 1


def test_lazy_costs_what_is_wanted() -> None:
    with running(lazy=True) as bus:
        bus.follow("interfaces")
        idle = {(name, "IDLE", "") for name in TABLES} - {("interfaces", "IDLE", "")}
        bus.follow("status").wait(lambda replica: replica.rows == idle | {("interfaces", "RUNNING", "")}, PATIENCE)


@pytest.mark.parametrize(
    ("options", "says", "key"),
    [
        ({"tables": ["ports"]}, "there is no table 'ports'; there are: sockets, ", ("tables",)),
        ({"tables": []}, "one at least", ("tables",)),
        ({"tables": ["disks", "disks"]}, "each named once", ("tables",)),
        ({"interval": 0.0}, "interval is a positive number", ("interval",)),
    ],
)
def test_bad_options_are_refused_by_key(options: dict[str, Any], says: str, key: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=says) as raised:
        Host("host", **options)
    assert raised.value.key == key
