"""The `files` source: real files that are written, replaced, swapped, spoilt and removed while it runs."""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from dse import ConfigError, DataService, Node, Replica, ReplicaState
from dse.services.sources.files import Files, FileTable

PATIENCE = 15.0
COLUMNS = {"name": "str", "cpu": "int"}


class Bus:
    def __init__(self, source: Files, reader: DataService, node: Node) -> None:
        self.source, self.reader, self.node = source, reader, node

    def follow(self, table: str = "machines") -> Replica:
        return self.reader.subscribe("files", table)

    def wait_rows(self, *rows: tuple[Any, ...], table: str = "machines") -> Replica:
        replica = self.follow(table)
        replica.wait(lambda replica: replica.state is ReplicaState.LIVE and replica.rows == set(rows), PATIENCE)
        return replica

    def wait_status(self, state: str, *parts: str) -> None:
        def is_so(replica: Replica) -> bool:
            return any(row[1] == state and all(part in row[2] for part in parts) for row in replica.rows)

        replica = self.follow("status")
        try:
            replica.wait(is_so, PATIENCE)
        except TimeoutError:
            raise AssertionError(f"{state} {parts}: {replica.rows}") from None

    def problems(self) -> list[str]:
        problems: list[str] = self.node.call("files", "problems", {"table": "machines"})
        return problems


@contextmanager
def running(path: Path, *, watch: Any = "events", lazy: bool = False, **options: Any) -> Iterator[Bus]:
    table = FileTable(path=path, **{"columns": COLUMNS, **options})
    source = Files("files", tables={"machines": table}, watch=watch, interval=0.02, lazy=lazy, max_backoff=0.2)
    reader = DataService("reader")
    with Node(f"fake://{uuid.uuid4().hex}", services=[source, reader]) as node:
        yield Bus(source, reader, node)
    assert not [each.name for each in threading.enumerate() if each.name.startswith(("files-", "watch-"))]


def replace(path: Path, text: str) -> None:
    other = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    other.write_text(text)
    other.rename(path)


@pytest.fixture(params=["events", "poll"])
def watch(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_file_is_followed_however_it_is_changed(tmp_path: Path, watch: str) -> None:
    path = tmp_path / "machines.csv"
    path.write_text("name,cpu\na,1\n")
    with running(path, watch=watch) as bus:
        bus.wait_rows(("a", 1))
        with path.open("a") as file:
            file.write("b,2\n")
        bus.wait_rows(("a", 1), ("b", 2))
        replace(path, "cpu,name\n3,c\n")
        bus.wait_rows(("c", 3))
        path.write_text("name,cpu\n")
        bus.wait_rows()
        path.write_text("name,cpu\nd,4\n")
        bus.wait_rows(("d", 4))
        bus.wait_status("RUNNING")


def test_a_file_that_goes_leaves_its_rows_and_says_so(tmp_path: Path, watch: str) -> None:
    path = tmp_path / "machines.csv"
    path.write_text("name,cpu\na,1\n")
    with running(path, watch=watch) as bus:
        bus.wait_rows(("a", 1))
        path.unlink()
        bus.wait_status("DEGRADED", f"{path}: there is no such file")
        bus.wait_rows(("a", 1))
        path.write_text("name,cpu\nb,2\n")
        bus.wait_rows(("b", 2))
        bus.wait_status("RUNNING")


def test_a_folder_may_come_later(tmp_path: Path, watch: str) -> None:
    path = tmp_path / "not" / "yet" / "machines.csv"
    with running(path, watch=watch) as bus:
        bus.wait_status("DEGRADED", "there is no such file")
        assert bus.follow().state is ReplicaState.SYNCING
        path.parent.mkdir(parents=True)
        path.write_text("name,cpu\na,1\n")
        bus.wait_rows(("a", 1))


def test_links_that_are_swapped_as_kubernetes_does_are_followed(tmp_path: Path, watch: str) -> None:
    def publish(cpu: int) -> None:
        folder = tmp_path / f"..{cpu}"
        folder.mkdir()
        (folder / "machines.csv").write_text(f"name,cpu\na,{cpu}\n")
        link = tmp_path / "..data_tmp"
        link.symlink_to(folder.name)
        link.rename(tmp_path / "..data")

    publish(1)
    path = tmp_path / "machines.csv"
    path.symlink_to("..data/machines.csv")
    with running(path, watch=watch) as bus:
        for cpu in range(2, 6):
            bus.wait_rows(("a", cpu - 1))
            publish(cpu)
        bus.wait_rows(("a", 5))


def test_all_files_of_a_pattern_are_one_table(tmp_path: Path, watch: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.csv").write_text("name,cpu\na,1\n")
    with running(tmp_path / "*" / "*.csv", watch=watch) as bus:
        bus.wait_rows(("a", 1))
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "2.csv").write_text("name,cpu\nb,x\nb,2\n")
        bus.wait_rows(("a", 1), ("b", 2))
        bus.wait_status("DEGRADED", f"{tmp_path}/b/2.csv:2: column 'cpu': 'x' is not an int")
        (tmp_path / "a" / "1.csv").unlink()
        bus.wait_rows(("b", 2))


def test_rows_that_do_not_fit_are_named_by_place(tmp_path: Path) -> None:
    path = tmp_path / "machines.csv"
    path.write_text('name,cpu\na,1\n"two\nlines",2\nb,abc\nc\n\nd,4\n')
    with running(path) as bus:
        bus.wait_rows(("a", 1), ("two\nlines", 2), ("d", 4))
        bus.wait_status("DEGRADED", "2 rows are left out", f"{path}:5: column 'cpu': 'abc' is not an int")
        assert bus.problems()[1] == f"{path}:6: has 1 fields, not 2"


def test_a_file_that_is_read_half_written_is_read_again(tmp_path: Path, watch: str) -> None:
    path = tmp_path / "machines.csv"
    with path.open("w") as file, running(path, watch=watch) as bus:
        file.write("name,cpu\na,1\nb,")
        file.flush()
        bus.wait_rows(("a", 1))
        bus.wait_status("DEGRADED", ":3: column 'cpu' is missing")
        file.write("2\n")
        file.flush()
        bus.wait_rows(("a", 1), ("b", 2))
        bus.wait_status("RUNNING")


def test_a_change_that_keeps_size_and_time_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "machines.csv"
    path.write_text("name,cpu\na,0\n")
    with running(path) as bus:
        for cpu in range(9):
            bus.wait_rows(("a", cpu))
            path.write_text(f"name,cpu\na,{cpu + 1}\n")
        bus.wait_rows(("a", 9))


@pytest.mark.parametrize(
    ("content", "options"),
    [
        (b"\xef\xbb\xbfname,cpu\r\na,1\r\n", {}),
        (b"a;1\n", {"header": False, "delimiter": ";"}),
        ("name,cpu\na,1\n".encode("utf-16"), {"encoding": "utf-16"}),
        (b"Host Name,CPUs,other\na,1,z\n", {"names": {"name": "Host Name", "cpu": "CPUs"}}),
    ],
)
def test_csv_as_it_comes(tmp_path: Path, content: bytes, options: dict[str, Any]) -> None:
    path = tmp_path / "machines.csv"
    path.write_bytes(content)
    with running(path, **options) as bus:
        bus.wait_rows(("a", 1))
        bus.wait_status("RUNNING")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"name,cpu\ngood,1\nb\xff,2\n", ":3: column 'name': 'b\\udcff' is not valid Unicode"),
        (b"name,cpu\n" + b"x" * 3_000_000 + b",1\ngood,1\n", ":2: the line is over the limit of 1,048,576"),
        (b"name,cpu\n" + b"x" * 200_000 + b",1\ngood,1\n", ":2: field larger than field limit"),
        (b"name,cpu\na,\x00\ngood,1\n", ":2: column 'cpu': '\\x00' is not an int"),
    ],
)
def test_hostile_csv_spoils_its_own_rows_only(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "machines.csv"
    path.write_bytes(content)
    with running(path) as bus:
        bus.wait_rows(("good", 1))
        bus.wait_status("DEGRADED", says)


@pytest.mark.parametrize(
    ("content", "says", "options"),
    [
        (b"", "is empty; it is to begin with a header", {}),
        (b"name,memory\na,1\n", ":1: the header has no 'cpu'; it has: 'name, memory'", {}),
        (b"name,cpu,cpu\na,1,2\n", ":1: the header has 'cpu' twice", {}),
        (b"name,cpu\na,1\n", "over the limit (max_bytes) of 5", {"max_bytes": 5}),
        (b"name,cpu\na,1\nb,2\n", "holds over 1 rows, the limit (max_rows)", {"max_rows": 1}),
        (b"n\xe4me,cpu\n", "is not ascii", {"encoding": "ascii"}),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path: Path, content: bytes, says: str, options: Any) -> None:
    path = tmp_path / "machines.csv"
    path.write_bytes(content)
    with running(path, **options) as bus:
        bus.wait_status("DEGRADED", str(path), says)
        assert bus.follow().state is ReplicaState.SYNCING


def test_json_documents_and_lines(tmp_path: Path) -> None:
    rows = [{"name": "a", "cpu": 1}, {"name": "b", "cpu": "2"}, 7]
    path = tmp_path / "machines.json"
    path.write_text(json.dumps({"data": {"machines": rows}}))
    with running(path, at="data.machines") as bus:
        bus.wait_rows(("a", 1))
        bus.wait_status("DEGRADED", "data.machines[1]: column 'cpu': '2' is not an int", "[2]: is not an object")
    path = tmp_path / "machines.jsonl"
    path.write_text('{"name": "a", "cpu": 1}\n\n{"name": "b", "cpu": NaN}\n{"name": "c", "cpu": 3')
    with running(path) as bus:
        bus.wait_rows(("a", 1))
        bus.wait_status("DEGRADED", ":3: is not JSON", ":4: is not JSON")
        with path.open("a") as file:
            file.write("}\n")
        bus.wait_rows(("a", 1), ("c", 3))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[" * 200_000, "is not JSON"),
        ('[{"name": "a", "cpu": ' + "9" * 100_000 + "}]", ""),
        ('[{"name": "a", "cpu": NaN}]', "is not JSON"),
        ('[{"name": "\\ud800", "cpu": 1}]', ""),
        ("{}", "is to be an array"),
        ("", "is not JSON"),
        ("\x00", "is not JSON"),
    ],
)
def test_hostile_json_says_what_is_wrong(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "machines.json"
    path.write_text(content)
    with running(path) as bus:
        bus.wait_status("DEGRADED", str(path), says)
        path.write_text('[{"name": "good", "cpu": 1}]')
        bus.wait_rows(("good", 1))


def test_of_keys_that_stand_twice_the_last_counts(tmp_path: Path) -> None:
    path = tmp_path / "machines.json"
    path.write_text('[{"name": "a", "cpu": 1, "cpu": 2}]')
    with running(path) as bus:
        bus.wait_rows(("a", 2))


def test_what_is_no_regular_file_does_not_hang(tmp_path: Path) -> None:
    path = tmp_path / "machines.csv"
    os.mkfifo(path)
    with running(path) as bus:
        bus.wait_status("DEGRADED", f"{path}: is not a regular file")
        replace(path, "name,cpu\na,1\n")
        bus.wait_rows(("a", 1))
    for place in (Path("/dev/zero"), tmp_path):
        with running(place, format="csv") as bus:
            bus.wait_status("DEGRADED", f"{place}: is not a regular file")


@contextmanager
def nobody() -> Iterator[None]:
    """Root may read everything: what is tested is tested as somebody else."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_file_that_may_not_be_read_says_so() -> None:
    with TemporaryDirectory(prefix="dse-test-") as folder:
        os.chmod(folder, 0o777)
        path = Path(folder) / "machines.csv"
        with running(path) as bus:
            bus.wait_status("DEGRADED", f"{path}: there is no such file")
            with nobody():
                path.touch(mode=0)
                bus.wait_status("DEGRADED", f"{path}: Permission denied")
                path.chmod(0o600)
                path.write_text("name,cpu\na,1\n")
            bus.wait_status("RUNNING")
            bus.wait_rows(("a", 1))


def test_a_lazy_source_reads_only_for_subscribers(tmp_path: Path, watch: str) -> None:
    path = tmp_path / "machines.csv"
    path.write_text("name,cpu\na,1\n")
    with running(path, watch=watch, lazy=True) as bus:
        bus.wait_status("IDLE")
        replica = bus.wait_rows(("a", 1))
        bus.reader.unsubscribe(replica)
        bus.wait_status("IDLE")
        path.write_text("name,cpu\nb,2\n")
        bus.wait_rows(("b", 2))


def test_stopping_does_not_wait_for_a_large_file(tmp_path: Path) -> None:
    path = tmp_path / "machines.csv"
    path.write_text("name,cpu\n" + "".join(f"machine{n},{n}\n" for n in range(400_000)))
    with running(path) as bus:
        bus.wait_status("STARTING")
        began = time.monotonic()
    assert time.monotonic() - began < 4.0


@pytest.mark.parametrize(
    ("table", "says", "key"),
    [
        ({"path": "x.txt", "columns": COLUMNS}, "cannot be told from its suffix", ("format",)),
        ({"path": "x.csv", "columns": {"cpu": "integer"}}, "a type is one of", ("columns", "cpu")),
        ({"path": "x.csv", "columns": COLUMNS, "names": {"x": "y"}}, "no column 'x'", ("names", "x")),
        ({"path": "x.csv", "columns": COLUMNS, "delimiter": "||"}, "delimiter is one character", ("delimiter",)),
        ({"path": "x.csv", "columns": COLUMNS, "encoding": "klingon"}, "no encoding", ("encoding",)),
        ({"path": "x.csv", "columns": COLUMNS, "max_rows": 0}, "max_rows is a positive number", ("max_rows",)),
        ({"path": "x.csv", "columns": COLUMNS, "colour": 1}, "unknown field `colour`", ()),
    ],
)
def test_options_that_cannot_be_are_refused_by_key(table: dict[str, Any], says: str, key: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=says) as raised:
        Files("files", tables={"machines": table})
    assert raised.value.key == ("tables", "machines", *key)
