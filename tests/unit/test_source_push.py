"""The `push` source: rows come in by RPC, whole calls or nothing, and outlive their process."""

from __future__ import annotations

import resource
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dse import ConfigError, DataService, Node, RemoteError, Replica, ReplicaState
from dse.errors import StorageError
from dse.services.sources.push import Push, PushTable

PATIENCE = 15.0
COLUMNS = {"name": "str", "cpu": "int", "load": "float?"}


class Bus:
    def __init__(self, node: Node, reader: DataService) -> None:
        self.node, self.reader = node, reader

    def push(self, method: str, **args: Any) -> Any:
        return self.node.call("push", method, {"table": "machines", **args}, timeout=PATIENCE)

    def rows(self) -> set[Any]:
        replica = self.reader.subscribe("push", "machines")
        replica.wait(ReplicaState.LIVE, PATIENCE)
        return set(replica.rows)

    def wait(self, until: Callable[[Replica], Any], table: str = "machines") -> None:
        self.reader.subscribe("push", table).wait(until, PATIENCE)


@contextmanager
def running(
    persist: Path | None = None, *, ttl: float | None = None, max_rows: int = 1000, **limits: Any
) -> Iterator[Bus]:
    push = Push(
        "push", tables={"machines": PushTable(columns=COLUMNS, ttl=ttl, max_rows=max_rows)}, persist=persist, **limits
    )
    reader = DataService("reader")
    with Node(f"fake://{uuid.uuid4().hex}", services=[push, reader]) as node:
        yield Bus(node, reader)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("push-")]


def test_rows_come_as_lists_or_mappings_and_go() -> None:
    with running() as bus:
        assert bus.rows() == set()
        answer = bus.push("insert", rows=[["a", 1, None], {"name": "b", "cpu": 2}])
        assert (answer["added"], answer["removed"], answer["rows"]) == (2, 0, 2)
        assert bus.push("insert", rows=[["a", 1, None]])["added"] == 0
        answer = bus.push("apply", added=[["c", 3, 0.5], ["a", 1, None]], removed=[["a", 1, None], ["b", 2, None]])
        assert (answer["added"], answer["removed"], answer["rows"]) == (1, 1, 2)
        bus.wait(lambda replica: replica.rows == {("a", 1, None), ("c", 3, 0.5)})
        answer = bus.push("delete", rows=[["c", 3, 0.5], ["nobody", 0, None]])
        assert (answer["removed"], answer["rows"]) == (1, 1)
        answer = bus.push("replace", rows=[["d", 4, None], ["a", 1, None]])
        assert (answer["added"], answer["removed"], answer["rows"]) == (1, 0, 2)
        bus.wait(lambda replica: replica.rows == {("a", 1, None), ("d", 4, None)})
        assert answer["version"] == list(bus.reader.subscribe("push", "machines").version)
        bus.wait(lambda replica: replica.rows == {("machines", "RUNNING", "")}, "status")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (["b", "x", None], "machines: added row 2: column 'cpu': 'x' is not an int"),
        (["b"], "machines: added row 2: has 1 values, not 3 (name, cpu, load)"),
        ({"name": "b", "colour": 1}, "machines: added row 2: there is no column 'colour'; there are: name, cpu, load"),
        ({"name": "b"}, "machines: added row 2: column 'cpu' is missing"),
        (["b" * 2_000_000, 1, None], "machines: added row 2: 2,000,008 bytes are over the limit of 1,048,576"),
    ],
)
def test_a_row_that_does_not_fit_is_named_and_nothing_published(tmp_path: Path, row: Any, says: str) -> None:
    with running(tmp_path / "rows.db") as bus:
        with pytest.raises(RemoteError) as raised:
            bus.push("insert", rows=[["a", 1, None], row])
        assert raised.value.type_name == "dse.errors.RowError"
        assert says in raised.value.message
        assert bus.rows() == set()
    with running(tmp_path / "rows.db") as bus:
        assert bus.rows() == set()


def test_limits_say_so() -> None:
    with running(max_rows=2, max_call_rows=3, max_call_bytes=100) as bus:
        with pytest.raises(RemoteError, match=r"would hold 3 rows, over the limit \(max_rows\) of 2"):
            bus.push("insert", rows=[[name, 1, None] for name in "abc"])
        with pytest.raises(RemoteError, match=r"4 added rows are over the limit \(max_call_rows\) of 3"):
            bus.push("insert", rows=[[name, 1, None] for name in "abcd"])
        with pytest.raises(RemoteError, match=r"row 2: the rows until here are over the limit \(max_call_bytes\)"):
            bus.push("insert", rows=[["x" * 60, 1, None], ["y" * 60, 1, None]])
        with pytest.raises(RemoteError, match="push has no table 'other'; it has: machines"):
            bus.push("insert", table="other", rows=[])
        bus.push("insert", rows=[["a", 1, None], ["b", 1, None]])
        bus.push("apply", added=[["c", 1, None]], removed=[["a", 1, None]])
        assert bus.rows() == {("b", 1, None), ("c", 1, None)}


def test_rows_are_back_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "rows.db"
    with running(path) as bus:
        bus.push("insert", rows=[["a", 1, -0.0], ["b", 2, None], ["ü\0", 2**63 - 1, 1e300]])
        bus.push("delete", rows=[["b", 2, None]])
        bus.push("insert", rows=[["a", 1, 0.0]])
    with running(path) as bus:
        assert bus.rows() == {("a", 1, 0.0), ("ü\0", 2**63 - 1, 1e300)}
        bus.push("replace", rows=[])
    with running(path) as bus:
        assert bus.rows() == set()


def test_rows_that_are_not_pushed_again_vanish(tmp_path: Path) -> None:
    with running(tmp_path / "rows.db", ttl=1.0) as bus:
        bus.push("insert", rows=[["a", 1, None], ["b", 2, None]])
        began = time.monotonic()
        assert len(bus.rows()) == 2
        while ("b", 2, None) in bus.rows():
            bus.push("insert", rows=[["a", 1, None]])
            assert time.monotonic() - began < PATIENCE
            time.sleep(0.05)
        assert time.monotonic() - began > 0.9
        bus.wait(lambda replica: ("a", 1, None) in replica.rows)
        bus.push("insert", rows=[["c", 3, None]])
    with running(tmp_path / "rows.db", ttl=1.0) as bus:
        bus.wait(lambda replica: replica.state is ReplicaState.LIVE and not replica.rows)
    with sqlite3.connect(tmp_path / "rows.db") as db:
        assert db.execute("SELECT count(*) FROM cells").fetchone() == (0,)
    db.close()


def test_of_two_with_one_file_the_second_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.db"
    with running(path) as bus:
        with pytest.raises(StorageError, match=f"{path}: is in use by another process"), running(path):
            pass
        bus.push("insert", rows=[["a", 1, None]])
    with running(path) as bus:
        assert bus.rows() == {("a", 1, None)}


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.db"
    path.write_bytes(b"no database at all" * 1000)
    with pytest.raises(StorageError, match=f"{path}: cannot be used: file is not a database"), running(path):
        pass
    path.unlink()
    with running(path) as bus:
        bus.push("insert", rows=[[str(number) * 50, number, None] for number in range(900)])
    body = bytearray(path.read_bytes())
    body[4096 * 3 : 4096 * 6] = b"\xa5" * (4096 * 3)
    path.write_bytes(body)
    with pytest.raises(StorageError, match=f"{path}: "), running(path):
        pass
    with pytest.raises(StorageError, match="cannot be opened"), running(tmp_path / "no" / "folder.db"):
        pass


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE theirs (x)")
    db.close()
    with pytest.raises(StorageError, match="is an SQLite file of another program"), running(path):
        pass


def test_other_columns_than_in_the_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.db"
    with running(path):
        pass
    push = Push("push", tables={"machines": {"columns": {"name": "str"}}}, persist=path)
    with (
        pytest.raises(StorageError, match="holds the table 'machines' with other columns"),
        Node(f"fake://{uuid.uuid4().hex}", services=[push]),
    ):
        pass


def test_a_full_disk_fails_the_call_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "rows.db"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with running(path) as bus:
        bus.push("insert", rows=[["a", 1, None]])
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 8192, limits[1]))
            with pytest.raises(RemoteError) as raised:
                bus.push("insert", rows=[["x" * 100_000, 1, None]])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert raised.value.type_name == "dse.errors.StorageError"
        assert f"{path}: cannot be written" in raised.value.message
        assert bus.rows() == {("a", 1, None)}
        bus.wait(lambda replica: any(row[1] == "DEGRADED" and str(path) in row[2] for row in replica.rows), "status")
        bus.push("insert", rows=[["b", 2, None]])
        bus.wait(lambda replica: replica.rows == {("machines", "RUNNING", "")}, "status")
    with running(path) as bus:
        assert bus.rows() == {("a", 1, None), ("b", 2, None)}


def test_many_pushers_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "rows.db"
    with running(path) as bus:

        def work(name: str) -> None:
            for number in range(20):
                bus.push("insert", rows=[[name, number, None]])

        threads = [threading.Thread(target=work, args=(name,)) for name in "abcdef"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(bus.rows()) == 120
    with running(path) as bus:
        assert len(bus.rows()) == 120


def test_bad_options_are_refused_by_key() -> None:
    with pytest.raises(ConfigError, match="a type is one of") as raised:
        Push("push", tables={"machines": {"columns": {"cpu": "integer"}}})
    assert raised.value.key == ("tables", "machines", "columns", "cpu")
    with pytest.raises(ConfigError, match="ttl is a positive number"):
        Push("push", tables={"machines": {"columns": COLUMNS, "ttl": 0}})
    with pytest.raises(ConfigError, match="status is the table"):
        Push("push", tables={"status": {"columns": COLUMNS}})
    with pytest.raises(ConfigError, match="max_call_rows"):
        Push("push", tables={"machines": {"columns": COLUMNS}}, max_call_rows=0)
