"""Rules' SQL: which tables it names, what is refused and how that is said, what statements can and cannot reach."""

from __future__ import annotations

import time

import pytest

from dse.services.policy.engine import Engine, Limits
from dse.services.policy.errors import PolicyError, Stopped
from dse.services.policy.sql import read

LIMITS = Limits(1.0, 10_000)


@pytest.fixture
def engine() -> Engine:
    engine = Engine()
    engine.add(("h", "a"), ("id", "x"))
    engine.add(("h", "b"), ("id", "y"))
    engine.add(("other", "a"), ("id", "z"))
    engine.apply(("h", "a"), [(n, n % 3) for n in range(300)], ())
    engine.apply(("h", "b"), [(n, n * 2) for n in range(300)], ())
    return engine


def run(engine: Engine, sql: str) -> set[object]:
    return set(engine.run(engine.compile(read(sql)), LIMITS))


@pytest.mark.parametrize(
    ("sql", "tables"),
    [
        ("SELECT id FROM h.a", {("h", "a")}),
        ('select "a".id from "h"."a"', {("h", "a")}),
        ("SELECT id FROM [h].[a] AS q", {("h", "a")}),
        ("SELECT id FROM h.a -- FROM h.c\n WHERE 'FROM h.d' <> ''", {("h", "a")}),
        ("WITH a AS (SELECT id FROM h.b) SELECT id FROM a", {("h", "b")}),
        ("SELECT id FROM h.a UNION SELECT id FROM h.b", {("h", "a"), ("h", "b")}),
        (
            "SELECT q.id FROM (SELECT id FROM h.a) q WHERE EXISTS (SELECT 1 FROM h.b WHERE b.id = q.id)",
            {("h", "a"), ("h", "b")},
        ),
        ("SELECT h.a.id FROM h.a, h.b WHERE h.a.id = h.b.id", {("h", "a"), ("h", "b")}),
        ("WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 3) SELECT n FROM r;", set()),
    ],
)
def test_exactly_the_tables_that_are_named_are_found(engine: Engine, sql: str, tables: set[tuple[str, str]]) -> None:
    assert read(sql).tables == tables
    run(engine, sql)


@pytest.mark.parametrize(
    ("sql", "tables"),
    [
        ("SELECT a.id FROM h.a JOIN h.b ON a.id = b.id WHERE y > 3", {("h", "a"), ("h", "b")}),
        ("SELECT a.id FROM h.a WHERE NOT EXISTS (SELECT 1 FROM h.b WHERE b.id = a.id)", {("h", "a")}),
        ("SELECT upper(id) AS u FROM h.a", {("h", "a")}),
        ("SELECT p.id FROM h.a p JOIN h.a q ON p.id = q.x", set()),
        ("SELECT a.id FROM h.a LEFT JOIN h.b ON a.id = b.id", set()),
        ("SELECT count(*) AS n FROM h.a", set()),
        ("SELECT max(id) AS n FROM h.a", set()),
        ("SELECT DISTINCT x FROM h.a", set()),
        ("SELECT id FROM h.a ORDER BY id LIMIT 3", set()),
        ("SELECT id, row_number() OVER () AS n FROM h.a", set()),
        ("SELECT id FROM h.a UNION ALL SELECT id FROM h.b", set()),
        ("WITH q AS (SELECT id FROM h.b) SELECT a.id FROM h.a JOIN q ON a.id = q.id", set()),
    ],
)
def test_only_what_is_made_of_single_rows_is_worked_out_in_steps(sql: str, tables: set[tuple[str, str]]) -> None:
    assert read(sql).in_steps == tables


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("", "a rule is an SQL query"),
        ("SELEC id FROM h.a", "the SQL cannot be read"),
        ("SELECT count(*) AS n FROM sqlite_master", "not allowed: reading sqlite_master"),
        ("SELECT id FROM h.a; SELECT 1", "a rule is one statement, not 2"),
        ("INSERT INTO h.a VALUES (1, 2)", "it begins with INSERT"),
        ("DELETE FROM h.a RETURNING id", "it begins with DELETE"),
        ("ATTACH 'file.db' AS f", "it begins with ATTACH"),
        ("PRAGMA writable_schema = 1", "it begins with PRAGMA"),
        ("VACUUM INTO 'x'", "it begins with VACUUM"),
        ("SELECT id FROM a.b.c", "a table is named service.table, not a.b.c"),
        ("SELECT id FROM h.a WHERE (", "the SQL cannot be read"),
        ("SELECT 1 AS n -- \0", "a query holds no NUL"),
        (f"SELECT {'(' * 5000}1{')' * 5000} AS n", "nested no deeper than 100"),
        (f"SELECT {'x' * 200_000} FROM h.a", "over the limit of 100,000"),
        ("SELECT id FROM h.a, other.a", "h.a and other.a have the same short name"),
        ("SELECT nope FROM h.a", "no such column: nope; h.a has id, x"),
        ("SELECT a.x, b.x FROM h.a JOIN h.b", "no such column: b.x; h.a has id, x; h.b has id, y"),
        ("SELECT count(*) FROM h.a", "needs a name: count(*) AS"),
        ("SELECT a.id, b.id FROM h.a, h.b", "two columns of the result are named id"),
        ("SELECT id FROM nowhere", "no such table: nowhere: a table is named service.table"),
        ("SELECT name FROM sqlite_master", "not allowed: reading sqlite_master"),
        ("SELECT name FROM sqlite_schema", "not allowed"),
        ("SELECT * FROM pragma_database_list", "not allowed"),
        ("SELECT rowid FROM h.a", "not allowed: reading ROWID of h.a"),
        ("SELECT load_extension('x') AS n", "not allowed: the function load_extension"),
        ("SELECT readfile('/etc/passwd') AS n", "no such function: readfile"),
        ("SELECT random() AS n", "not allowed: the function random"),
        ("SELECT hex(randomblob(1000000000)) AS n", "not allowed: the function randomblob"),
        (f"SELECT {' + '.join(['1'] * 3000)} AS n", "Expression tree is too large"),
    ],
)
def test_what_cannot_be_is_refused_in_words_and_at_once(engine: Engine, sql: str, says: str) -> None:
    began = time.monotonic()
    with pytest.raises(PolicyError) as raised:
        run(engine, sql)
    assert says in str(raised.value)
    assert time.monotonic() - began < 3.0
    assert run(engine, "SELECT count(*) AS n FROM h.a") == {(300,)}


@pytest.mark.parametrize(
    "sql",
    [
        "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT n FROM r",
        "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT count(*) AS n FROM r",
        "SELECT count(*) AS n FROM h.a p, h.a q, h.a r, h.a s, h.a t",
        "SELECT p.id AS n FROM h.a p, h.a q, h.a r",
        "SELECT length(group_concat(printf('%1000000s', p.id))) AS n FROM h.a p, h.a q",
    ],
)
def test_what_takes_or_gives_too_much_is_stopped(engine: Engine, sql: str) -> None:
    began = time.monotonic()
    with pytest.raises(PolicyError) as raised:
        run(engine, sql)
    assert isinstance(raised.value, Stopped) or "too big" in str(raised.value)
    assert time.monotonic() - began < 3.0


def test_a_statement_cannot_read_tables_that_it_does_not_name(engine: Engine) -> None:
    own = engine.compile(read("SELECT id FROM h.a")).whole.split()[3]
    with pytest.raises(PolicyError, match=r"not allowed: reading id of h\.a"):
        run(engine, f"SELECT id FROM {own}")


def test_every_kind_of_cell_comes_back_as_it_was(engine: Engine) -> None:
    cells = [None, -(2**63), 2**63 - 1, 2**63, 2**64 - 1, 0.5, float("inf"), -0.0, "", "a\0b", "Grüße", b"", b"\0\xff"]
    engine.add(("h", "cells"), ("n", "cell"))
    engine.apply(("h", "cells"), list(enumerate(cells)), ())
    found = dict(engine.run(engine.compile(read("SELECT n, cell FROM h.cells")), LIMITS))  # type: ignore[arg-type]
    assert [found[n] for n in range(len(cells))] == cells
    large = engine.run(
        engine.compile(read("SELECT cell FROM h.cells WHERE typeof(cell) <> 'text' AND cell > 1")), LIMITS
    )
    assert {(2**63,), (2**64 - 1,), (2**63 - 1,)} <= set(large)
    engine.apply(("h", "cells"), (), list(enumerate(cells)))
    assert run(engine, "SELECT count(*) AS n FROM h.cells") == {(0,)}


def test_names_that_sql_cannot_tell_apart_are_refused() -> None:
    engine = Engine()
    with pytest.raises(PolicyError, match="'a' and 'A' apart"):
        engine.add(("h", "t"), ("a", "A"))
    with pytest.raises(PolicyError, match="one must be left free"):
        engine.add(("h", "t"), ("rowid", "oid", "_rowid_"))
    engine.add(("h", "t"), ("rowid", "select", "from"))
    engine.apply(("h", "t"), [(7, 8, 9)], ())
    assert run(engine, 'SELECT rowid, "select", "from" FROM h.t WHERE rowid = 7') == {(7, 8, 9)}
    engine.apply(("h", "t"), (), [(7, 8, 9)])
    assert run(engine, "SELECT rowid FROM h.t") == set()
