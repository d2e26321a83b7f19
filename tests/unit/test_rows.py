"""Rows: what fits, what does not, and the digest."""

from __future__ import annotations

import math
from collections import namedtuple
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dse.core.rows import DIGEST_MASK, MAX_ROW, RowsView, check_received, check_shape, digest, read_rows
from dse.errors import RowError

COLUMNS = ("a", "b")
cells = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary()
)
rows = st.tuples(cells, cells)


def read(given: Any) -> set[Any]:
    found = check_shape("s.t", COLUMNS, read_rows("s.t", COLUMNS, given))
    digest("s.t", COLUMNS, found)
    return found


@given(st.lists(rows))
def test_every_row_of_scalars_fits(given: list[Any]) -> None:
    assert read(given) == set(given)
    assert read(set(given)) == read(iter(given)) == read([list(row) for row in given]) == set(given)


@given(st.sets(rows), st.sets(rows))
def test_the_digest_is_the_sum_over_rows_in_any_order(first: set[Any], second: set[Any]) -> None:
    whole = digest("t", COLUMNS, first | second)
    parts = digest("t", COLUMNS, first) + digest("t", COLUMNS, second - first)
    assert whole == parts & DIGEST_MASK
    assert digest("t", COLUMNS, sorted(first | second, key=repr)) == whole


@pytest.mark.parametrize(
    "equal",
    [
        [(1, 0), (True, False), (1.0, 0.0), (1.0, -0.0)],
        [(2**63, 1), (float(2**63), True)],
        [(-(2**63), 1), (float(-(2**63)), 1.0)],
        [(1e300, 0), (1e300, False)],
    ],
)
def test_rows_that_python_takes_for_equal_have_one_digest(equal: list[Any]) -> None:
    assert len(set(equal)) == 1
    assert len({digest("t", COLUMNS, [row]) for row in equal}) == 1


def test_rows_that_differ_have_different_digests() -> None:
    different = [(1, 2), (2, 1), ("1", 2), (b"1", 2), (None, 2), (1.5, 2), ("", b""), (b"", "")]
    assert len({digest("t", COLUMNS, [row]) for row in different}) == len(different)


@pytest.mark.parametrize(
    ("bad", "column"),
    [
        ((1,), "b"),
        ((), "a"),
        ((1, 2, 3), None),
        ("ab", None),
        (b"ab", None),
        (None, None),
        ({"a": 1, "b": 2}, None),
        ((1, math.nan), "b"),
        ((1j, 1), "a"),
        (([], 1), "a"),
        ((1, {}), "b"),
        ((1, (2,)), "b"),
        ((2**64, 1), "a"),
        ((1, -(2**63) - 1), "b"),
        (("\ud800", 1), "a"),
        ((1, 1j), "b"),
    ],
    ids=repr,
)
def test_a_row_that_does_not_fit_is_named_with_its_column(bad: Any, column: str | None) -> None:
    with pytest.raises(RowError) as caught:
        read([(1, 2), bad])
    assert caught.value.column == column
    assert caught.value.row == bad or bad != bad or column is not None
    assert "s.t" in str(caught.value)
    if column is not None:
        assert column in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("bad", ["ab", b"ab", None, 7, 1j])
def test_what_are_no_rows_at_all_is_refused(bad: Any) -> None:
    with pytest.raises(RowError):
        read(bad)


def test_a_row_may_be_large_but_not_that_large() -> None:
    read([(1, "x" * (MAX_ROW - 100))])
    with pytest.raises(RowError, match="limit"):
        read([(1, "x" * MAX_ROW)])


def test_a_named_tuple_is_kept_as_a_plain_row() -> None:
    Point = namedtuple("Point", "a b")
    found = read([Point(1, 2)])
    assert found == {(1, 2)}
    assert {type(row) for row in found} == {tuple}


def test_subclasses_of_scalars_are_refused() -> None:
    class Text(str):
        pass

    with pytest.raises(RowError, match="Text"):
        read([(Text("x"), 1)])


def test_received_rows_are_checked() -> None:
    assert check_received(frozenset({(1, "a"), (None, b"")}), 2)
    assert check_received(frozenset(), 2)
    assert not check_received(frozenset({(1.5, math.nan)}), 2)
    assert not check_received(frozenset({(1, "a", 2)}), 2)
    assert not check_received(frozenset({(1, ("nested",))}), 2)


def test_a_view_is_a_frozen_set() -> None:
    view = RowsView({(1, 2), (3, 4)})
    assert view == {(1, 2), (3, 4)}
    assert view == RowsView({(3, 4), (1, 2)})
    assert view != {(1, 2)}
    assert (1, 2) in view
    assert len(view) == 2
    assert view | {(5, 6)} == {(1, 2), (3, 4), (5, 6)}
    assert view - {(1, 2)} == {(3, 4)}
    assert hash(view) == hash(frozenset(view))
    assert "(1, 2)" in repr(view)
    assert not hasattr(view, "add")
