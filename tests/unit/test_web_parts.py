"""The parts of the web gateway that need no server: cells, queries, the journal of a table, tokens, rates."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dse.core.replica import ReplicaState
from dse.core.table import Change
from dse.errors import ConfigError
from dse.services.web import feed as feeds
from dse.services.web.cells import csv_lines, json_bytes, json_rows
from dse.services.web.feed import Feed
from dse.services.web.guard import Rates
from dse.services.web.options import Limits, Options, is_loopback
from dse.services.web.query import BadQuery, Query
from dse.services.web.tokens import Tokens, make_token

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.binary(max_size=5)
)
ROWS = st.lists(st.tuples(SCALARS, SCALARS), max_size=30, unique=True)
COLUMNS = ("a", "b")


# Cells


@given(ROWS)
def test_every_row_is_json_and_comes_back_as_itself(rows: list[Any]) -> None:
    import base64

    def back(cell: Any) -> Any:
        if not isinstance(cell, dict):
            return cell
        ((kind, text),) = cell.items()
        return {"int": int, "float": float, "base64": base64.b64decode}[kind](text)

    read = json.loads(json_bytes(json_rows(rows)))
    assert [tuple(back(cell) for cell in row) for row in read] == rows


def test_a_number_that_browsers_would_round_is_text() -> None:
    assert json_rows([(2**53, 2**53 + 1, math.inf)]) == [[2**53, {"int": "9007199254740993"}, {"float": "inf"}]]


def test_csv_never_is_a_formula_unless_wanted() -> None:
    rows = [("=1+1", "@x", "plain", b"\xff", None, -5, "-5")]
    safe, raw = (b"".join(csv_lines("abcdefg", rows, raw=raw)).decode().splitlines()[1] for raw in (False, True))
    assert safe == "'=1+1,'@x,plain,/w==,,-5,'-5"
    assert raw == "=1+1,@x,plain,/w==,,-5,-5"


# Queries


def query(**parameters: Any) -> Query:
    given = [
        (name, each) for name, value in parameters.items() for each in (value if isinstance(value, list) else [value])
    ]
    return Query.read(COLUMNS, given)


def test_filters_sorting_and_pages() -> None:
    rows = [(n, f"r{n % 3}") for n in range(10)]
    assert query(filter=["a:ge:4", "b:eq:r1"]).select(rows) == (2, [(4, "r1"), (7, "r1")])
    assert query(sort="b,-a", limit="3").select(rows)[1] == [(9, "r0"), (6, "r0"), (3, "r0")]
    assert query(sort="-a", offset="8").select(rows) == (10, [(1, "r1"), (0, "r0")])
    assert query(filter="b:contains:R2").select(rows)[0] == 3
    assert query(filter="a:eq:null").select([(None, 1), (0, 2)]) == (1, [(None, 1)])
    assert query(limit="0").select(rows) == (10, [])


@given(ROWS, st.sampled_from(["a", "-a", "b,a", "-b,-a", "-a,b"]), st.integers(0, 30), st.integers(0, 30))
def test_a_page_is_a_part_of_the_whole_order(rows: list[Any], sort: str, offset: int, limit: int) -> None:
    whole = query(sort=sort, limit="10000").select(rows)[1]
    assert sorted(map(repr, whole)) == sorted(map(repr, rows))
    page = query(sort=sort, offset=str(offset), limit=str(limit)).select(rows)[1]
    first = [part.removeprefix("-") for part in sort.split(",")]
    places = [COLUMNS.index(name) for name in first]
    shown = [[repr(row[place]) for place in places] for row in page]
    assert shown == [[repr(row[place]) for place in places] for row in whole[offset : offset + limit]]


@given(ROWS, st.sampled_from(["eq", "ne", "lt", "le", "gt", "ge", "contains", "prefix"]), st.text(max_size=5))
def test_no_filter_breaks_on_any_cell(rows: list[Any], how: str, value: str) -> None:
    query(filter=f"a:{how}:{value}").select(rows)


@pytest.mark.parametrize(
    ("parameters", "where", "says"),
    [
        ({"filter": "c:eq:1"}, "filter", "no column 'c'; there are: a, b"),
        ({"filter": "a=1"}, "filter", "COLUMN:OPERATOR:VALUE"),
        ({"filter": "a:like:1"}, "filter", "no operator 'like'"),
        ({"filter": ["a:eq:1"] * 21}, "filter", "at most 20"),
        ({"sort": "-c"}, "sort", "no column 'c'"),
        ({"limit": "10001"}, "limit", "from 0 to 10000"),
        ({"limit": "-1"}, "limit", "whole number"),
        ({"offset": "1e3"}, "offset", "whole number"),
        ({"offset": "٣"}, "offset", "whole number"),
        ({"page": "1"}, "page", "no such parameter"),
    ],
)
def test_a_wrong_query_is_told_its_place(parameters: dict[str, Any], where: str, says: str) -> None:
    with pytest.raises(BadQuery, match=says) as caught:
        query(**parameters)
    assert caught.value.where == where


# The journal


def change(added: set[Any], removed: set[Any], seq: int) -> Change:
    return Change("s", "t", frozenset(added), frozenset(removed), ("e", seq))


def events(data: bytes) -> list[tuple[str, Any]]:
    found = []
    for part in data.decode().split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in part.splitlines())
        found.append((fields["event"], json.loads(fields["data"])))
    return found


@given(st.lists(st.sets(st.integers(0, 9), max_size=6), max_size=30), st.data())
def test_a_client_that_follows_from_a_snapshot_has_what_the_table_has(
    states: list[set[int]], data: st.DataObject
) -> None:
    feed = Feed(lambda: None)
    feed.state_changed(ReplicaState.LIVE)
    at = data.draw(st.integers(0, len(states)))
    seen: set[int] | None = None
    place: int | None = None
    before: set[int] = set()
    for number, state in enumerate([*states, set()]):
        if number == at:
            rows, cursor, _ = feed.snapshot()
            seen, place = {row[0] for row in rows}, feed.place_of(cursor)
        if number < len(states):
            feed.changed(change({(n,) for n in state - before}, {(n,) for n in before - state}, number))
            before = state
    assert seen is not None
    assert place is not None
    while True:
        batch = feed.batch(place)
        assert batch is not None
        for event, said in events(batch.data):
            if event == "change":
                assert not {row[0] for row in said["added"]} & seen
                assert {row[0] for row in said["removed"]} <= seen
                seen = seen - {row[0] for row in said["removed"]} | {row[0] for row in said["added"]}
        place = batch.place
        if not batch.more:
            break
    assert seen == before


def test_a_client_that_is_too_far_behind_is_told_to_read_again() -> None:
    feed = Feed(lambda: None)
    _, cursor, _ = feed.snapshot()
    for number in range(feeds.MOST_CHANGES + 1):
        feed.changed(change({(number,)}, set(), number))
    assert feed.place_of(cursor) is None
    assert feed.batch(0) is None
    reset, place = feed.reset()
    assert events(reset)[0][0] == "reset"
    assert feed.batch(place) is not None


@pytest.mark.parametrize(
    "rows", [{(n,) for n in range(20_000)}, {("x" * (feeds.MOST_BYTES + 1),)}], ids=["many", "long"]
)
def test_a_change_that_is_larger_than_the_journal_empties_it(rows: set[Any]) -> None:
    feed = Feed(lambda: None)
    feed.changed(change(rows, set(), 1))
    assert feed.batch(0) is None
    assert feed.count == len(rows)


def test_what_is_kept_encoded_is_bounded_too() -> None:
    feed = Feed(lambda: None)
    place = 0
    for number in range(1000):
        feed.changed(change({(number, "\x01" * 1000)}, set(), number))  # six times as long in JSON
        if (batch := feed.batch(place)) is not None:
            place = batch.place
    kept = [entry for entry in feed._journal if entry.encoded]
    assert sum(len(entry.encoded) for entry in kept) == feed._encoded_size <= feeds.MOST_BYTES
    assert len(kept) == len(feed._encoded)


@pytest.mark.parametrize("cursor", ["", "x", "-1", "0-0", "é-1", "abc-99999999999999999999999"])
def test_a_cursor_of_nobody_is_none(cursor: str) -> None:
    feed = Feed(lambda: None)
    assert feed.place_of(cursor) is None
    assert feed.place_of(f"{feed.life}-1") is None
    assert feed.place_of(f"{feed.life}-0") == 0


def test_readers_and_a_writer_at_once() -> None:
    feed = Feed(lambda: None)
    failures: list[BaseException] = []
    done = threading.Event()

    def read() -> None:
        try:
            rows, cursor, _ = feed.snapshot()
            seen, place = len(rows), feed.place_of(cursor)
            while not (done.is_set() and seen == 5000):
                batch = feed.batch(place) if place is not None else None
                if batch is None:
                    rows, cursor, _ = feed.snapshot()
                    seen, place = len(rows), feed.place_of(cursor)
                    continue
                seen += sum(len(said["added"]) for event, said in events(batch.data) if event == "change")
                place = batch.place
        except BaseException as error:
            failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(5000):
        feed.changed(change({(number,)}, set(), number))
    done.set()
    for reader in readers:
        reader.join(30)
        assert not reader.is_alive()
    assert not failures


# Options, tokens, rates


def test_a_token_is_found_by_its_digest_alone(tmp_path: Path) -> None:
    token, line = make_token("night", "read,call")
    assert token not in line
    file = tmp_path / "tokens"
    file.write_text(f"# who may\n{line}  # until spring\n")
    tokens = Tokens.read(file)
    found = tokens.find(token)
    assert found is not None
    assert (found.name, found.scopes) == ("night", {"read", "call"})
    assert tokens.find(token + "x") is None
    assert tokens.find("\udcff") is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("night read", "line 1: a line is NAME"),
        (f"a write {'0' * 64}", "line 1: no scope write; there are: read, call, metrics"),
        ("a read 00", "64 hexadecimal digits"),
        (f"a read {'0' * 64}\nb read {'0' * 64}", "line 2: the token of a again"),
        ("# nobody", "there is no token in"),
    ],
)
def test_a_wrong_tokens_file_is_told_its_line(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "tokens"
    file.write_text(text)
    with pytest.raises(ConfigError, match=says):
        Tokens.read(file)


def test_a_tokens_file_that_everybody_can_write_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(make_token("a", "read")[1])
    file.chmod(0o666)
    with pytest.raises(ConfigError, match="can be written by everybody"):
        Tokens.read(file)


@pytest.mark.parametrize(
    ("host", "local"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False)]
)
def test_what_others_can_reach_needs_tokens(host: str, local: bool) -> None:
    assert is_loopback(host) is local
    if not local:
        with pytest.raises(ConfigError, match="can be reached from other machines: that needs tokens"):
            Options(host, 0, [], None, [], Limits())


def test_methods_are_allowed_by_pattern() -> None:
    options = Options("127.0.0.1", 0, [], None, ["shop.*", "*.ping"], Limits())
    assert [options.allowed(*each) for each in (("shop", "buy"), ("x", "ping"), ("x", "buy"), ("SHOP", "buy"))] == [
        True,
        True,
        False,
        False,
    ]
    for wrong in ("shop", "*", "a.b.c", ".x"):
        with pytest.raises(ConfigError, match=r"SERVICE\.METHOD"):
            Options("127.0.0.1", 0, [], None, [wrong], Limits())


def test_limits_are_checked() -> None:
    assert Limits.of({"rows": 5}).rows == 5
    with pytest.raises(ConfigError, match="limits"):
        Limits.of({"rows": 0})
    with pytest.raises(ConfigError, match="row"):
        Limits.of({"row": 1})


def test_a_bucket_fills_with_time_and_addresses_do_not_share_it() -> None:
    rates = Rates(10, 5)
    assert [rates.take("a", 0.0) for _ in range(6)][:5] == [0.0] * 5
    assert rates.take("a", 0.0) == pytest.approx(0.1)
    assert rates.take("b", 0.0) == 0.0
    assert rates.take("a", 0.1) == 0.0
