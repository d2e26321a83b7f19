"""Reads the SQL of rules: which tables it names, how the engine is to call them, what can be worked out in steps.

The text is parsed for its structure only. What the engine runs is the text as it was given, in which the names of
tables (``host.sockets``) have been replaced by the engine's own; so SQLite's meaning is never bent by ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import sqlglot
from sqlglot import exp

from dse.services.policy.errors import PolicyError

__all__ = ["Key", "Statement", "quoted", "read"]

Key = tuple[str, str]
"""(service_id, table)"""

_WHOLE = ("distinct", "group", "having", "limit", "offset", "windows", "with", "with_")  # parts that look at all rows

LONGEST = 100_000  # characters of a statement
DEEPEST = 100  # brackets within brackets; the parser takes a hundred times as many and the stack with it


@dataclass(frozen=True)
class _Place:
    """Where a table's name stands in the text: the characters from `start` to before `end`."""

    start: int
    end: int
    key: Key
    alias: str  # what stands behind it, "" if nothing does
    steps: bool  # whether rows of the result are made of one row of this place each


@dataclass(frozen=True)
class Statement:
    """One SELECT. `tables` are those it names.

    compared: (table's name or alias, or "" where none stands; column) of what is compared for equality with another
    column: what a table may be looked up by.
    """

    text: str
    tables: frozenset[Key]
    compared: frozenset[tuple[str, str]]
    _places: tuple[_Place, ...]
    _columns: tuple[tuple[int, int, str], ...]  # names like host.sockets.pid, without the last part

    @property
    def in_steps(self) -> frozenset[Key]:
        """The tables whose changes, row by row, tell the changes of the result.

        A result is that where each of its rows (counted as often as it comes) belongs to one row of the table, whatever
        the other rows of that table are: a select from inner joins, in which the table stands once, in FROM.
        """
        often = [place.key for place in self._places]
        return frozenset(place.key for place in self._places if place.steps and often.count(place.key) == 1)

    def named(self, name: str) -> set[Key]:
        """Return the tables that have this name or alias somewhere; all for ""."""
        return {place.key for place in self._places if name in ("", place.alias, place.key[1])}

    def render(self, name: Callable[[Key], str], one: Key | None = None, number: str = "rowid") -> str:
        """Return the text with the engine's names for tables; of `one` only the row whose `number` is the parameter."""
        changes: list[tuple[int, int, str]] = []
        for place in self._places:
            own = name(place.key)
            source = f"(SELECT * FROM {own} WHERE {number} = ?)" if place.key == one else own
            alias = "" if place.alias else f" AS {quoted(place.key[1])}"
            changes.append((place.start, place.end, source + alias))
        changes += [(start, end, quoted(table)) for start, end, table in self._columns]
        text = self.text
        for start, end, new in sorted(changes, reverse=True):
            text = text[:start] + new + text[end:]
        return text


def quoted(name: str) -> str:
    """Return a name as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'


def read(text: str) -> Statement:
    """Read one SELECT; raise `PolicyError` for anything else."""
    if not isinstance(text, str) or not text.strip():
        raise PolicyError("a rule is an SQL query: SELECT … FROM service.table …")
    if len(text) > LONGEST:
        raise PolicyError(f"a query of {len(text):,} characters is over the limit of {LONGEST:,}")
    if "\0" in text:
        raise PolicyError("a query holds no NUL character")
    text = text.strip().rstrip(";").rstrip()
    root = _parse(text)
    if not isinstance(root, exp.Query):
        raise PolicyError(f"a rule is a SELECT, and nothing else: it begins with {text.split(None, 1)[0].upper()[:30]}")
    places = list(_places(root))
    _check_aliases(places)
    columns = [
        (_span(column.args["db"])[0], _span(column.args["table"])[1], column.table)
        for column in root.find_all(exp.Column)
        if column.args.get("db") is not None
    ]
    return Statement(
        text, frozenset(place.key for place in places), frozenset(_compared(root)), tuple(places), tuple(columns)
    )


def _parse(text: str) -> exp.Expression:
    try:
        if _depth(text) > DEEPEST:
            raise PolicyError(f"a query is nested no deeper than {DEEPEST} brackets")
        statements = [statement for statement in sqlglot.parse(text, read="sqlite") if statement is not None]
    except sqlglot.errors.SqlglotError as error:
        details = getattr(error, "errors", None)
        where = f" at line {details[0]['line']}, near {details[0]['highlight']!r}" if details else ""
        what = details[0]["description"].rstrip(".") if details else str(error).splitlines()[0]
        raise PolicyError(f"the SQL cannot be read: {what}{where}") from None
    except RecursionError:
        raise PolicyError("the SQL cannot be read: it is nested too deep") from None
    if len(statements) != 1:
        raise PolicyError(f"a rule is one statement, not {len(statements)}")
    return statements[0]  # type: ignore[return-value]


def _depth(text: str) -> int:
    deepest = depth = 0
    for token in sqlglot.tokenize(text, read="sqlite"):
        if token.text in ("(", "CASE", "case"):
            depth += 1
            deepest = max(deepest, depth)
        elif token.text in (")", "END", "end"):
            depth -= 1
    return deepest


def _places(root: exp.Query) -> Iterator[_Place]:
    stepwise = _stepwise(root)
    for table in root.find_all(exp.Table):
        name, service = table.this, table.args.get("db")
        if not isinstance(name, exp.Identifier) or service is None:
            continue  # a WITH name, or a function: the engine knows those, or says that it does not
        if table.args.get("catalog") is not None:
            raise PolicyError(f"a table is named service.table, not {table.sql()[:100]}")
        start, end = _span(service)[0], _span(name)[1]
        yield _Place(start, end, (service.name, name.name), table.alias, stepwise and _in_from_of(table, root))


def _compared(root: exp.Query) -> Iterator[tuple[str, str]]:
    for equal in root.find_all(exp.EQ, exp.Is, exp.In):
        query = equal.args.get("query")
        others = query.find_all(exp.Column) if query is not None else [equal.args.get("expression")]
        sides = [equal.this, *others]
        if sum(isinstance(side, exp.Column) for side in sides) > 1:
            yield from ((side.table, side.name) for side in sides if isinstance(side, exp.Column))
    for join in root.find_all(exp.Join):
        yield from (("", column.name) for column in join.args.get("using") or [])


def _span(identifier: exp.Expression) -> tuple[int, int]:
    meta = identifier.meta
    return int(meta["start"]), int(meta["end"]) + 1


def _check_aliases(places: list[_Place]) -> None:
    bare: dict[str, Key] = {}
    for place in places:
        if not place.alias:
            other = bare.setdefault(place.key[1].lower(), place.key)
            if other != place.key:
                raise PolicyError(
                    f"{'.'.join(other)} and {'.'.join(place.key)} have the same short name: give one an alias "
                    f"({'.'.join(place.key)} AS …)"
                )


def _stepwise(root: exp.Query) -> bool:
    """Whether each row of the result is made of one row of each table in FROM, whatever others there are."""
    if not isinstance(root, exp.Select):
        return False
    if any(root.args.get(part) for part in _WHOLE):
        return False
    for join in root.args.get("joins") or []:
        if join.side or join.kind.upper() not in ("", "INNER", "CROSS") or join.method:
            return False
    within = {id(inner) for query in root.find_all(exp.Query) if query is not root for inner in query.walk()}
    outer = [node for node in root.walk() if id(node) not in within]
    return not any(isinstance(node, exp.AggFunc | exp.Window | exp.Anonymous) for node in outer)


def _in_from_of(table: exp.Table, root: exp.Query) -> bool:
    parent = table.parent
    return isinstance(parent, exp.From | exp.Join) and parent.parent is root
