"""What rules find, however it was worked out, is what their SQL says of the tables as they are."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dse.services.policy import rules as rules_module
from dse.services.policy.engine import Limits
from dse.services.policy.errors import PolicyError
from dse.services.policy.rules import Outcome, Rule, Rules, RuleState
from dse.services.policy.sql import read

A, B = ("h", "a"), ("h", "b")
COLUMNS = {A: ("k", "v"), B: ("k", "w")}

QUERIES = [
    "SELECT a.k, b.w FROM h.a JOIN h.b ON a.k = b.k",
    "SELECT a.v FROM h.a",  # rows that come more than once
    "SELECT a.v, b.w FROM h.a, h.b WHERE a.v < b.w",
    "SELECT a.k FROM h.a WHERE NOT EXISTS (SELECT 1 FROM h.b WHERE b.k = a.k)",
    "SELECT a.v FROM h.a WHERE a.k IN (SELECT k FROM h.b WHERE w > 1)",
    "SELECT a.k, (SELECT max(w) FROM h.b WHERE b.k = a.k) AS m FROM h.a",
    "SELECT p.k FROM h.a p JOIN h.a q ON p.k = q.v",
    "SELECT a.k, b.w FROM h.a LEFT JOIN h.b ON a.k = b.k",
    "SELECT v, count(*) AS n FROM h.a GROUP BY v HAVING count(*) > 1",
    "SELECT DISTINCT v FROM h.a",
    "SELECT k FROM h.a EXCEPT SELECT k FROM h.b",
    "WITH RECURSIVE r(k) AS (SELECT 0 UNION SELECT b.w FROM h.b JOIN r ON b.k = r.k) SELECT k FROM r",
    "SELECT k, rank() OVER (ORDER BY v) AS r FROM h.a",
    "SELECT w FROM h.b WHERE w = (SELECT max(w) FROM h.b)",
    "SELECT x.k FROM p.r0 x JOIN h.b ON b.k = x.k",  # on the result of the first
    "SELECT count(*) AS n FROM p.r1",
]


class Site:
    """Rules over two tables; what they publish is put together from what `settle` says."""

    def __init__(self, queries: list[str] = QUERIES, limits: Limits | None = None) -> None:
        self.now = 0.0
        self.rules = Rules(limits or Limits(5.0, 100_000), COLUMNS.get, clock=lambda: self.now)
        self.tables: dict[tuple[str, str], set[Any]] = {A: set(), B: set()}
        self.published: dict[str, set[Any]] = {}
        for number, query in enumerate(queries):
            self.insert(f"r{number}", query)

    def insert(self, name: str, query: str) -> Rule:
        rule = Rule("p", name, read(query))
        self.rules.insert(rule)
        return rule

    def live(self) -> None:
        for key, columns in COLUMNS.items():
            self.rules.live(key, columns)
        self.settle()

    def change(self, key: tuple[str, str], added: set[Any], removed: set[Any], *, settle: bool = True) -> None:
        removed = (removed & self.tables[key]) - added
        added = added - self.tables[key]
        self.tables[key] = (self.tables[key] - removed) | added
        self.rules.changed(key, added, removed)
        if settle:
            self.settle()

    def settle(self) -> list[Outcome]:
        outcomes = self.rules.settle()
        for outcome in outcomes:
            rows = self.published.setdefault(outcome.rule.name, set())
            assert rows.isdisjoint(outcome.added)
            assert rows >= set(outcome.removed)
            rows -= set(outcome.removed)
            rows |= set(outcome.added)
        return outcomes

    def expected(self) -> dict[str, set[Any]]:
        """Worked out by other rules, from the beginning."""
        fresh = Site([])
        for key, rows in self.tables.items():
            fresh.rules.hold([key])
            fresh.rules._load(key)
            fresh.change(key, set(rows), set())
        for rule in self.rules.rules.values():
            fresh.insert(rule.name, rule.statement.text)
        fresh.live()
        return fresh.published


cells = st.integers(0, 4)
rows = st.sets(st.tuples(cells, cells), max_size=4)
changes = st.lists(st.tuples(st.sampled_from([A, B]), rows, rows, st.booleans()), max_size=12)


@settings(max_examples=150, deadline=None)
@given(before=st.tuples(rows, rows), changes=changes)
def test_results_are_those_of_the_tables_whatever_changed_and_how(before: Any, changes: Any) -> None:
    site = Site()
    for key, first in zip((A, B), before, strict=True):
        site.change(key, set(first), set())
    assert site.published == {}  # nothing is known before all is complete
    site.live()
    for key, added, removed, settle in changes:
        site.change(key, set(added), set(removed), settle=settle)
    site.settle()
    expected = site.expected()
    for number, query in enumerate(QUERIES):
        assert site.published[f"r{number}"] == expected[f"r{number}"], query


@settings(max_examples=40, deadline=None)
@given(added=st.sets(st.tuples(st.integers(), st.integers(0, 9)), min_size=1), removed=rows)
def test_large_changes_are_worked_out_whole(added: Any, removed: Any) -> None:
    before, rules_module._STEPS = rules_module._STEPS, 3
    try:
        site = Site(QUERIES[:4])
        site.live()
        site.change(A, {row for row in added if -(2**63) <= row[0] < 2**63}, set(removed))
        assert site.published == site.expected()
    finally:
        rules_module._STEPS = before


def test_a_rule_waits_until_all_that_it_reads_is_complete() -> None:
    site = Site(["SELECT a.k FROM h.a WHERE NOT EXISTS (SELECT 1 FROM h.b WHERE b.k = a.k)"])
    rule = site.rules.rules["p", "r0"]
    site.change(A, {(1, 1)}, set())
    site.rules.live(A, COLUMNS[A])
    assert site.settle() == []
    assert (rule.state, rule.reason) == (RuleState.WAITING, "waits for h.b")
    site.change(B, {(1, 5)}, set())
    site.rules.live(B, COLUMNS[B])
    assert [outcome.first for outcome in site.settle()] == [True]
    assert (rule.state, rule.rows) == (RuleState.OK, set())


def test_a_rule_on_a_table_that_nobody_knows_is_compiled_when_it_comes() -> None:
    site = Site([])
    rule = site.insert("late", "SELECT z FROM h.later")
    assert rule.reason == "waits for h.later"
    site.rules.changed(("h", "later"), {(1,), (2,)}, set())
    site.rules.live(("h", "later"), ("z",))
    site.settle()
    assert site.published == {"late": {(1,), (2,)}}
    wrong = site.insert("wrong", "SELECT y FROM h.other")
    site.rules.live(("h", "other"), ("z",))
    assert wrong.state is RuleState.ERROR
    assert wrong.reason == "no such column: y; h.other has z"


def test_a_table_that_comes_back_with_other_columns_is_read_anew() -> None:
    site = Site(["SELECT k FROM h.a", "SELECT k FROM p.r0"])
    site.live()
    site.change(A, {(1, 1), (2, 2)}, set())
    site.rules.changed(A, {(7, 8, 9)}, {(1, 1), (2, 2)})
    site.settle()
    assert site.published["r0"] == {(1,), (2,)}  # the last that was known
    site.rules.live(A, ("x", "k", "y"))
    site.settle()
    assert site.published == {"r0": {(8,)}, "r1": {(8,)}}
    site.rules.live(A, ("x", "y", "z"))
    site.settle()
    assert site.rules.rules["p", "r0"].reason == "no such column: k; h.a has x, y, z"
    site.rules.live(A, ("x", "k", "y"))
    site.settle()
    assert site.rules.rules["p", "r0"].state is RuleState.OK


def test_cycles_are_refused_and_shown() -> None:
    site = Site([])
    site.insert("one", "SELECT k FROM p.two")
    site.insert("two", "SELECT k FROM p.three")
    with pytest.raises(PolicyError, match=r"a cycle: p.three reads p.one reads p.two reads p.three"):
        site.insert("three", "SELECT k FROM p.one")
    with pytest.raises(PolicyError, match=r"a cycle: p\.own reads p\.own"):
        site.insert("own", "SELECT k FROM p.own")
    assert set(site.rules.rules) == {("p", "one"), ("p", "two")}


def test_a_rule_takes_the_place_of_a_service_table_of_its_name() -> None:
    site = Site([])
    upper = site.insert("upper", "SELECT k FROM p.lower")
    assert site.rules.tables() == {("p", "lower")}
    site.insert("lower", "SELECT k FROM h.a")
    assert site.rules.tables() == {A}
    site.live()
    site.change(A, {(5, 5)}, set())
    assert upper.rows == {(5,)}


def test_what_others_build_on_cannot_be_deleted_and_what_nobody_reads_is_forgotten() -> None:
    site = Site(["SELECT k FROM h.a", "SELECT k FROM p.r0"])
    site.live()
    with pytest.raises(PolicyError, match=r"p\.r0 is built on by p\.r1"):
        site.rules.delete(("p", "r0"))
    site.rules.delete(("p", "r1"), ("p", "r0"))
    assert site.rules.tables() == set()
    assert site.rules.engine.keys() == set()


def test_a_rule_that_gives_too_much_is_stopped_keeps_its_rows_and_is_tried_again() -> None:
    site = Site(["SELECT a.k, b.w FROM h.a, h.b", "SELECT k FROM h.a"], Limits(5.0, 100))
    rule = site.rules.rules["p", "r0"]
    site.live()
    site.change(A, {(n, 0) for n in range(10)}, set())
    site.change(B, {(n, n) for n in range(10)}, set())
    assert len(rule.rows) == 100
    site.change(A, {(99, 0)}, set())
    assert (rule.state, rule.reason) == (RuleState.ERROR, "stopped: it returns more than 100 rows")
    assert len(rule.rows) == 100
    assert len(site.published["r1"]) == 11  # the others go on
    site.change(A, set(), {(99, 0)})
    assert rule.state is RuleState.ERROR
    site.now += rules_module.PATIENCE
    site.settle()
    assert rule.state is RuleState.OK
    assert site.published == site.expected()


@settings(max_examples=60, deadline=None)
@given(before=st.tuples(rows, rows), added=rows, removed=rows)
def test_simulating_says_what_would_happen_and_changes_nothing(before: Any, added: Any, removed: Any) -> None:
    site = Site()
    for key, first in zip((A, B), before, strict=True):
        site.change(key, set(first), set())
    site.live()
    was = {name: set(rows) for name, rows in site.published.items()}
    new = Rule("p", "new", read("SELECT k FROM p.r0 UNION SELECT v FROM h.a"))
    take = {row for row in removed if row in site.tables[A]} - added
    said = site.rules.simulate({A: set(added)}, {A: take}, [new])
    site.settle()
    assert site.published == was
    assert site.expected() == was
    inserted = site.insert("new", new.statement.text)
    site.settle()
    site.change(A, set(added), set(take))
    for name, rows_then in site.published.items():
        came, went = said.get(("p", name), (set(), set()))
        if name == "new":
            assert came == inserted.rows
        else:
            assert (came, went) == (rows_then - was[name], was[name] - rows_then), name
