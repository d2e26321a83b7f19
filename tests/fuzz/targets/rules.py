"""Any text is a rule's SQL or `PolicyError`; what is one runs, within its limits, or is refused."""

from __future__ import annotations

import logging

from dse.services.policy.engine import Engine, Limits
from dse.services.policy.errors import PolicyError
from dse.services.policy.sql import read

SEEDS = [
    b"SELECT a FROM s.t",
    b"SELECT t.a, u.b FROM s.t AS t JOIN s.u ON t.a = u.a WHERE t.b > 1",
    b"SELECT count(*) FROM s.t",
    b"SELECT a FROM s.t WHERE NOT EXISTS (SELECT 1 FROM s.u WHERE u.a = t.a) -- x",
    b"SELECT 1;",
    b"SELECT 's.t' FROM s.t",
    b"WITH x AS (SELECT a FROM s.t) SELECT * FROM x",
    b"SELECT s.t.a FROM s.t",
    b'SELECT "a" FROM "s"."t" LIMIT 5',
    b"SELECT a FROM s.t UNION SELECT a FROM s.u",
    b"DROP TABLE s.t",
    b"SELECT " + b"(" * 99 + b"1" + b")" * 99,
    b"SELECT a FROM s.t WHERE a LIKE '%" + b"a" * 50 + b"%'",
    b"WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c) SELECT x FROM c",
    b"SELECT abs(-9223372036854775808) FROM s.t",
    b"SELECT a || zeroblob(9999999) FROM s.t",
    b"PRAGMA x",
    b"SELECT ?1 FROM s.t",
]
_LIMITS = Limits(0.02, 100)
_KNOWN = frozenset({("s", "t"), ("s", "u")})
_engine = Engine()
logging.getLogger("sqlglot").setLevel(logging.CRITICAL)
for _table in ("t", "u"):
    _engine.add(("s", _table), ("a", "b"))
    _engine.apply(("s", _table), [(number, str(number)) for number in range(5)] + [(2**64 - 1, b"x")], [])


def run(data: bytes) -> None:
    if len(data) > 400:
        return
    try:
        statement = read(data.decode(errors="replace"))
        if not statement.tables <= _KNOWN:
            return  # rules wait for their tables
        compiled = _engine.compile(statement)
        rows = _engine.run(compiled, _LIMITS)
    except PolicyError:
        return
    assert len(rows) <= 100
    for key in compiled.steps:
        try:
            _engine.step(compiled, key, [(1, "1")], _LIMITS)
        except PolicyError:
            pass
    assert all(len(row) == len(compiled.columns) for row in rows)
