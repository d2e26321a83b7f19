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
from dse.core.rows import digest, read_rows
from dse.services.sources import hosttables as read
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


class TestReading:
    """What is read of the machine, row by row."""

    def test_it_sees_a_listening_port_and_who_has_it(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            (row,) = (row for row in read.read_sockets() if row[0] == port)
        assert row[1:4] == ("127.0.0.1", "tcp", os.getpid())
        assert row[4] == psutil.Process().name()
        assert row[5] == psutil.Process().username()
        assert port not in {row[0] for row in read.read_sockets()}

    def test_it_sees_this_process(self) -> None:
        (row,) = (row for row in read.read_processes() if row[0] == os.getpid())
        assert row[1:3] == (psutil.Process().name(), psutil.Process().username())

    def test_without_the_privilege_to_see_all_it_shows_its_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def denied(kind: str) -> None:
            raise psutil.AccessDenied

        monkeypatch.setattr(psutil, "net_connections", denied)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            assert (listener.getsockname()[1], os.getpid()) in {(row[0], row[3]) for row in read.read_sockets()}

    def test_without_any_privilege_there_is_nothing_and_no_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def denied(*_: object) -> None:
            raise psutil.AccessDenied

        monkeypatch.setattr(psutil, "net_connections", denied)
        monkeypatch.setattr(psutil.Process, "net_connections", denied)
        monkeypatch.setattr(psutil.Process, "username", denied)
        assert read.read_sockets() == set()
        assert {row[2] for row in read.read_processes()} == {None}

    def test_a_name_of_any_bytes_makes_a_row_that_fits(self) -> None:
        name = read.process_name(b"\xff\xfe[x]\n".decode("utf-8", "surrogateescape"))
        columns = TABLES["processes"][0]
        rows = read_rows("host.processes", columns, [(1, name, None, 0.5)])
        assert digest("host.processes", columns, rows)  # raises RowError for text that is not Unicode

    @pytest.mark.parametrize(
        ("name", "shown"),
        [
            ("kworker/0:1-events", "kworker/0:1"),
            ("kworker/u8:3+flush-254:0", "kworker/u8:3"),
            ("kworker/1:0H-kblockd", "kworker/1:0H"),
            ("kworker/R-netns", "kworker/R-netns"),
            ("python", "python"),
            (None, None),
        ],
    )
    def test_what_a_kernel_worker_works_on_is_not_its_name(self, name: str | None, shown: str | None) -> None:
        assert read.process_name(name) == shown
