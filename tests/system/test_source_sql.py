"""The data source sql, over a SQLite file and a real PostgreSQL server that is stopped, hung and locked."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sqlalchemy")
import psycopg

from dse import DataService, Node, Replica, ReplicaState
from dse.services.sources.sql import Sql, SqlTable
from dse.testing.postgres_server import PostgresServer

PATIENCE = 10.0
TABLE = SqlTable(
    query="SELECT id, name FROM machines", columns={"id": "int", "name": "str"}, interval=0.05, timeout=10.0
)

pytestmark = [pytest.mark.postgres, pytest.mark.xdist_group("postgres")]


def table(**changes: Any) -> SqlTable:
    return SqlTable(**{name: getattr(TABLE, name) for name in TABLE.__struct_fields__} | changes)


class Bus:
    def __init__(self, node: Node, reader: DataService) -> None:
        self.node, self.reader = node, reader

    def rows(self, *rows: tuple[object, ...]) -> Replica:
        replica = self.reader.subscribe("db", "machines")
        replica.wait(lambda replica: replica.rows == set(rows), PATIENCE)
        return replica

    def reason(self, state: str, *parts: str) -> str:
        found: list[str] = []

        def seen(replica: Replica) -> bool:
            found[:] = [row[2] for row in replica.rows if row[:2] == ("machines", state)]
            return bool(found) and all(part in found[0] for part in parts)

        self.reader.subscribe("db", "status").wait(seen, PATIENCE)
        return found[0]


@contextmanager
def running(url: str, machines: SqlTable = TABLE, **options: Any) -> Iterator[Bus]:
    source = Sql("db", url=url, tables={"machines": machines}, max_backoff=0.2, **options)
    reader, bus = DataService("reader"), f"fake://{uuid.uuid4().hex}"
    with Node(bus, services=[source]), Node(bus, services=[reader]) as node:
        node.wait_for("db", PATIENCE)
        yield Bus(node, reader)
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith(("db-", "machines-sql"))]
    assert not left


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a%20b's file.db"
    change(path, "CREATE TABLE machines (id, name, more)", "INSERT INTO machines VALUES (1, 'a', 0), (2, 'b', 1)")
    return path


def change(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        for statement in statements:
            database.execute(statement)


def url_of(path: Path) -> str:
    import sqlalchemy

    return str(sqlalchemy.URL.create("sqlite", database=str(path)))


def test_rows_of_a_file_come_change_and_go(file: Path) -> None:
    with running(url_of(file)) as bus:
        bus.rows((1, "a"), (2, "b"))
        change(file, "DELETE FROM machines WHERE id = 1", "INSERT INTO machines VALUES (3, 'c', 0)")
        bus.rows((2, "b"), (3, "c"))
        bus.reason("RUNNING")


def test_rows_that_do_not_fit_are_named_by_place(file: Path) -> None:
    change(
        file, "INSERT INTO machines VALUES ('x', 'c', 0), (18446744073709551616.5, 'd', 0), (4, NULL, 0), (5, 'e', 0)"
    )
    with running(url_of(file)) as bus:
        bus.rows((1, "a"), (2, "b"), (5, "e"))
        bus.reason("DEGRADED", "3 rows are left out", "machines row 3: column 'id': 'x' is not an int")


def test_a_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    path = tmp_path / "none.db"
    with running(url_of(path)) as bus:
        bus.reason("DEGRADED", "machines: unable to open database file")
        assert not path.exists()
        change(path, "CREATE TABLE machines (id, name)", "INSERT INTO machines VALUES (1, 'a')")
        bus.rows((1, "a"))
        bus.reason("RUNNING")


def test_nothing_is_read_while_changed_when_says_so(file: Path) -> None:
    machines = table(
        query="SELECT id, name FROM machines WHERE random() != 0", changed_when="SELECT max(more) FROM machines"
    )
    with running(url_of(file), machines) as bus:
        bus.rows((1, "a"), (2, "b"))
        change(file, "INSERT INTO machines VALUES (3, 'c', 0)")
        time_to_look(bus)
        bus.rows((1, "a"), (2, "b"))
        change(file, "INSERT INTO machines VALUES (4, 'd', 7)")
        bus.rows((1, "a"), (2, "b"), (3, "c"), (4, "d"))


def time_to_look(bus: Bus) -> None:
    threading.Event().wait(0.5)  # ten intervals: what is to be seen is that nothing happens


def test_sqlite_tells_by_itself_whether_a_file_changed(file: Path) -> None:
    with running(url_of(file), table(changed_when="PRAGMA data_version")) as bus:
        bus.rows((1, "a"), (2, "b"))
        change(file, "INSERT INTO machines VALUES (3, 'c', 0)")
        bus.rows((1, "a"), (2, "b"), (3, "c"))


def test_too_many_rows_are_a_failure_that_says_so(file: Path) -> None:
    with running(url_of(file), table(max_rows=2)) as bus:
        bus.rows((1, "a"), (2, "b"))
        change(file, "INSERT INTO machines VALUES (3, 'c', 0)")
        bus.reason("DEGRADED", "machines: the query gives more than max_rows = 2 rows")
        bus.rows((1, "a"), (2, "b"))


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("SELECT id FROM machines", "the query gives no column 'name' (AS names one); it gives: ['id']"),
        ("SELECT id, name, name FROM machines", "more than one column 'name'"),
        ("SELECT id, name FROM absent", "machines: no such table: absent"),
        ("DELETE FROM machines RETURNING id, name", "readonly database"),
    ],
)
def test_a_query_that_cannot_be_says_why_and_changes_nothing(file: Path, query: str, says: str) -> None:
    with running(url_of(file), table(query=query)) as bus:
        bus.reason("DEGRADED", says)
    with closing(sqlite3.connect(file)) as database:
        assert database.execute("SELECT count(*) FROM machines").fetchone() == (2,)


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) AS id, 'x' AS name FROM n"


def test_a_query_without_end_is_cancelled(file: Path) -> None:
    with running(url_of(file), table(query=ENDLESS, timeout=0.2)) as bus:
        bus.reason("DEGRADED", "machines: no answer within 0.2 s; the query was cancelled")


def test_stopping_does_not_wait_for_a_query(file: Path) -> None:
    with running(url_of(file), table(query=ENDLESS, timeout=100.0)) as bus:
        bus.reason("STARTING")
        began = time.monotonic()
    assert time.monotonic() - began < 4.0


def test_a_locked_file_is_waited_for(file: Path) -> None:
    with running(url_of(file)) as bus:
        bus.rows((1, "a"), (2, "b"))
        with closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            other.execute("INSERT INTO machines VALUES (3, 'c', 0)")
            bus.reason("DEGRADED", "machines: database is locked")
            other.execute("COMMIT")
        bus.rows((1, "a"), (2, "b"), (3, "c"))
        bus.reason("RUNNING")


def test_a_lazy_source_asks_only_while_somebody_subscribes(file: Path) -> None:
    with running(url_of(file), lazy=True) as bus:
        bus.reason("IDLE")
        replica = bus.rows((1, "a"), (2, "b"))
        bus.reader.unsubscribe(replica)
        bus.reason("IDLE")
        change(file, "DELETE FROM machines")
        replica = bus.reader.subscribe("db", "machines")
        replica.wait(ReplicaState.LIVE, PATIENCE)
        assert not replica.rows


# PostgreSQL


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    server = PostgresServer()
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def postgres(server: PostgresServer) -> Iterator[PostgresServer]:
    run(server, "DROP TABLE IF EXISTS machines", "CREATE TABLE machines (id bigint, name text)")
    run(server, "INSERT INTO machines VALUES (1, 'a')")
    yield server
    server.resume()
    server.start()


def connect(server: PostgresServer) -> psycopg.Connection[Any]:
    return psycopg.connect(server.url.replace("+psycopg", ""), autocommit=True, connect_timeout=10)


def run(server: PostgresServer, *statements: str) -> None:
    with connect(server) as database:
        for statement in statements:
            database.execute(statement.encode())


def count(server: PostgresServer) -> Any:
    with connect(server) as database:
        return database.execute("SELECT count(*) FROM machines").fetchone()


def test_rows_of_a_server_change_and_it_may_be_stopped_and_come_back(postgres: PostgresServer) -> None:
    with running(postgres.url) as bus:
        bus.rows((1, "a"))
        run(postgres, "INSERT INTO machines VALUES (2, 'b')")
        replica = bus.rows((1, "a"), (2, "b"))
        postgres.stop()
        bus.reason("DEGRADED", "machines: ")
        assert replica.rows == {(1, "a"), (2, "b")}
        postgres.start()
        run(postgres, "DELETE FROM machines WHERE id = 1")
        bus.rows((2, "b"))
        bus.reason("RUNNING")


def test_a_server_that_hangs_is_given_up_and_taken_up_again(postgres: PostgresServer) -> None:
    with running(postgres.url, table(timeout=0.5)) as bus:
        replica = bus.rows((1, "a"))
        postgres.pause()
        bus.reason("DEGRADED", "machines: ")
        assert replica.rows == {(1, "a")}
        postgres.resume()
        run(postgres, "INSERT INTO machines VALUES (2, 'b')")
        bus.rows((1, "a"), (2, "b"))
        bus.reason("RUNNING")


def test_stopping_does_not_wait_for_a_server_that_hangs(postgres: PostgresServer) -> None:
    with running(postgres.url, table(timeout=60.0)) as bus:
        bus.rows((1, "a"))
        postgres.pause()
        time_to_look(bus)
        began = time.monotonic()
    assert time.monotonic() - began < 4.5


def test_a_lock_that_somebody_holds_ends_in_a_timeout(postgres: PostgresServer) -> None:
    with running(postgres.url, table(timeout=0.3)) as bus:
        bus.rows((1, "a"))
        with connect(postgres) as other, other.transaction():
            other.execute("LOCK TABLE machines IN ACCESS EXCLUSIVE MODE")
            bus.reason("DEGRADED", "machines: canceling statement due to statement timeout")
        bus.reason("RUNNING")


@pytest.mark.parametrize(
    "query",
    [
        "DELETE FROM machines RETURNING id, name",
        "WITH gone AS (DELETE FROM machines RETURNING id, name) SELECT * FROM gone",
    ],
)
def test_a_query_that_writes_is_refused(postgres: PostgresServer, query: str) -> None:
    with running(postgres.url, table(query=query)) as bus:
        bus.reason("DEGRADED", "machines: ")
    assert count(postgres) == (1,)


def test_a_password_is_shown_nowhere(postgres: PostgresServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with running(postgres.url.replace(postgres.password, "wr0ng%2Fw%40rd")) as bus:
        reason = bus.reason("DEGRADED", "password authentication failed")
        assert "wr0ng" not in reason
        assert "wr0ng" not in str(bus.node.call("db", "problems", {"table": "machines"}))
    assert "wr0ng" not in caplog.text


def test_values_become_cells(postgres: PostgresServer) -> None:
    query = """SELECT 1.50::numeric AS exact, 1.50::numeric AS number, 7::numeric AS whole,
        TIMESTAMPTZ '2024-02-29 12:00Z' AS at,
        DATE '2024-02-29' AS day, INTERVAL '90 seconds' AS took, 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid AS id,
        '\\x0001'::bytea AS raw, '{"k": [1, null]}'::jsonb AS doc, ARRAY[1.5, 2]::numeric[] AS list, true AS yes,
        NULL::text AS nothing, '100%' AS percent, ':x' AS colon"""
    columns = {
        "exact": "str",
        "number": "float",
        "whole": "int",
        "at": "str",
        "day": "str",
        "took": "float",
        "id": "str",
    }
    columns |= {
        "raw": "bytes",
        "doc": "json",
        "list": "json",
        "yes": "bool",
        "nothing": "str?",
        "percent": "str",
        "colon": "str",
    }
    with running(postgres.url, table(query=query, columns=columns)) as bus:
        bus.reason("RUNNING")
        replica = bus.reader.subscribe("db", "machines")
        replica.wait(ReplicaState.LIVE, PATIENCE)
        (row,) = replica.rows
        assert row[:3] == ("1.50", 1.5, 7)
        assert row[3].startswith("2024-02-29T")
        assert row[4:] == (
            "2024-02-29",
            90.0,
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            b"\x00\x01",
            '{"k":[1,null]}',
            "[1.5,2.0]",
            True,
            None,
            "100%",
            ":x",
        )


def test_too_many_rows_of_a_server_are_not_all_fetched(postgres: PostgresServer) -> None:
    query = "SELECT generate_series(1, 100000000) AS id, repeat('x', 1000) AS name"
    with running(postgres.url, table(query=query, max_rows=5000)) as bus:
        bus.reason("DEGRADED", "more than max_rows = 5000 rows")
