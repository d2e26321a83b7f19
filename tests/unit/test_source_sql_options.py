"""The options of the data source sql, and what its values become."""

from __future__ import annotations

import datetime
import enum
import uuid
from decimal import Decimal
from importlib.metadata import entry_points
from typing import Any

import pytest

pytest.importorskip("sqlalchemy")

from dse import ConfigError
from dse.services.sources.columns import Columns
from dse.services.sources.sql import Sql, SqlTable, plain

GOOD: dict[str, Any] = {"query": "SELECT 1 AS a", "columns": {"a": "int"}}


class Colour(enum.Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("url", "table", "key", "says"),
    [
        ("hidden", {}, ("url",), "url is not a database URL"),
        ("nosuch://u:hidden@h/d", {}, ("url",), "SQLAlchemy knows no database 'nosuch'"),
        ("oracle+oracledb://u:hidden@h/d", {}, ("url",), "needs the Python package oracledb, which is not installed"),
        ("postgresql+asyncpg://u:hidden@h/d", {}, ("url",), "is for asyncio"),
        ("sqlite:///x", {"columns": {"a": "integer"}}, ("tables", "t", "columns", "a"), "a type is one of"),
        ("sqlite:///x", {"columns": {"a b": "int"}}, ("tables", "t", "columns", "a b"), "column name"),
        ("sqlite:///x", {"timeout": 0.0}, ("tables", "t", "timeout"), "timeout is a positive number"),
        ("sqlite:///x", {"query": " "}, ("tables", "t", "query"), "query is empty"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_made(
    url: str, table: dict[str, Any], key: tuple[str, ...], says: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        Sql("db", url=url, tables={"t": SqlTable(**GOOD | table)})
    assert raised.value.key == key
    assert says in str(raised.value)
    assert "hidden" not in str(raised.value)


def test_a_source_shows_no_password() -> None:
    assert "hidden" not in repr(Sql("db", url="postgresql+psycopg://u:hidden@h/d", tables={"t": SqlTable(**GOOD)}))


@pytest.mark.parametrize("name", ["sql", "http"])
def test_the_sources_are_plugins(name: str) -> None:
    (found,) = entry_points(group="dse.services", name=name)
    assert found.load().__name__.lower() == name


@pytest.mark.parametrize(
    ("kind", "value", "cell"),
    [
        ("str", Decimal("1.10"), "1.10"),
        ("float", Decimal("1.5"), 1.5),
        ("int", Decimal("7.00"), 7),
        ("str", datetime.date(2024, 2, 29), "2024-02-29"),
        ("str", datetime.time(1, 2, 3), "01:02:03"),
        ("float", datetime.timedelta(minutes=1), 60.0),
        ("str", uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        ("str", Colour.RED, "red"),
        ("bool", 1, True),
        ("bytes", memoryview(b"\x01"), b"\x01"),
        ("json", {"at": datetime.date(2024, 1, 1), "x": [Decimal(1), None]}, '{"at":"2024-01-01","x":[1.0,null]}'),
        ("int?", None, None),
    ],
)
def test_a_value_of_a_database_becomes_a_cell(kind: str, value: Any, cell: object) -> None:
    assert Columns({"x": kind}).from_values({"x": plain(value, kind.removesuffix("?"))}) == (cell,)


@pytest.mark.parametrize(
    ("kind", "value"),
    [("int", Decimal("1.5")), ("int", Decimal("1E+500000")), ("float", Decimal("NaN")), ("int", 2**64), ("bool", 2)],
)
def test_a_value_that_does_not_fit_is_refused_by_name(kind: str, value: Any) -> None:
    with pytest.raises(ValueError, match="column 'x'"):
        Columns({"x": kind}).from_values({"x": plain(value, kind)})
