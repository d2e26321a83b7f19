"""Typed columns: text and plain values become cells, or are refused by name."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dse import ConfigError
from dse.core.rows import check_received
from dse.services.sources.columns import TYPES, Columns

ALL = Columns({"a": "str", "b": "int", "c": "float", "d": "bool", "e": "bytes", "f": "json"})


def test_text_becomes_cells() -> None:
    row = {"a": " x ", "b": " -7", "c": "1e3", "d": "Yes", "e": "AAE=", "f": '{"k": [1, 2]}', "unknown": "ignored"}
    assert ALL.from_text(row) == (" x ", -7, 1000.0, True, b"\x00\x01", '{"k":[1,2]}')


def test_plain_values_become_cells() -> None:
    row = {"a": "x", "b": 7.0, "c": 2, "d": False, "e": b"\x01", "f": {"k": [1, None]}}
    assert ALL.from_values(row) == ("x", 7, 2.0, False, b"\x01", '{"k":[1,null]}')


def test_what_is_missing_is_none_where_it_may_be() -> None:
    optional = Columns({"a": "str?", "b": "int?", "c": "json?"})
    assert optional.from_text({"a": "", "b": ""}) == (None, None, None)
    assert optional.from_values({"b": None}) == (None, None, None)
    assert Columns({"a": "str"}).from_text({"a": ""}) == ("",)
    with pytest.raises(ValueError, match="column 'b' is missing"):
        Columns({"a": "str", "b": "int"}).from_text({"a": "x", "b": ""})


@pytest.mark.parametrize(
    ("kind", "text", "says"),
    [
        ("int", "1_000", "column 'x': '1_000' is not an int"),
        ("int", "1.5", "column 'x': '1.5' is not an int"),
        ("int", "٣", "is not an int"),
        ("int", "18446744073709551616", "column 'x': '18446744073709551616' is over 64 bits"),
        ("int", "9" * 5000, "is not an int"),
        ("float", "nan", "column 'x': 'nan' is not a number (NaN)"),
        ("float", "1_0.0", "is not a float"),
        ("bool", "maybe", "column 'x': 'maybe' is not a bool"),
        ("bytes", "?", "column 'x': '?' is not base64"),
        ("json", "{", "column 'x': '{' is not a json"),
        ("json", "[" * 100_000, "is not a json"),
        ("str", "\ud800", "is not valid Unicode"),
    ],
)
def test_text_that_does_not_fit_is_refused_by_name(kind: str, text: str, says: str) -> None:
    with pytest.raises(ValueError) as raised:
        Columns({"x": kind}).from_text({"x": text})
    assert says in str(raised.value)
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("int", True),
        ("int", 1.5),
        ("int", "1"),
        ("float", "1"),
        ("float", math.nan),
        ("bool", 1),
        ("str", 5),
        ("int", 2**64),
    ],
)
def test_values_are_not_bent_to_fit(kind: str, value: Any) -> None:
    with pytest.raises(ValueError, match="column 'x'"):
        Columns({"x": kind}).from_values({"x": value})


def test_bad_definitions_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="at least one column"):
        Columns({})
    with pytest.raises(ConfigError, match=r"column 'x': a type is one of str, int, .*, not 'integer'") as raised:
        Columns({"x": "integer"})
    assert raised.value.key == ("x",)
    with pytest.raises(ConfigError, match="identifier"):
        Columns({"no name": "int"})


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(kind=st.sampled_from(TYPES), optional=st.booleans(), value=values)
def test_whatever_comes_a_cell_is_one_that_a_table_holds(kind: str, optional: bool, value: Any) -> None:
    columns = Columns({"x": kind + "?" * optional})
    try:
        row = columns.from_values({"x": value})
    except ValueError:
        pass
    else:
        assert check_received([row], 1)


@given(kind=st.sampled_from(TYPES), text=st.text() | st.integers().map(str) | st.floats().map(repr) | values.map(repr))
def test_whatever_text_comes_a_cell_is_one_that_a_table_holds(kind: str, text: str) -> None:
    try:
        row = Columns({"x": kind}).from_text({"x": text})
    except ValueError:
        pass
    else:
        assert check_received([row], 1)
        if kind == "json":
            json.loads(row[0])
