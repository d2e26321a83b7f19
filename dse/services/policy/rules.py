"""The rules and what follows from them: which are ready, which must be worked out, what changed in their results.

Plain state over an `Engine`: no thread, no bus. Its owner tells it what is heard of tables, and asks it to `settle`.

Rules:

1. A rule reads tables: those of services, and the results of other rules. Each is loaded while a rule reads it.
2. A table counts once it was LIVE: before, it is not known what is in it. A rule is OK once all that it reads counts.
3. What can be told row by row is (`Statement.in_steps`): each row of the result is counted as often as it comes. Where
   that cannot be, or much changed, the rule is dirty, and worked out whole when it is settled.
4. Rules are settled in the order in which they build on each other, so that none sees half a change.
5. A rule that is stopped or fails keeps its last rows and is in ERROR; it is tried again with the next change that is
   `PATIENCE` seconds later, or when `retry` is called.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from dse.core.messages import Row
from dse.services.policy.engine import Compiled, Engine, Limits
from dse.services.policy.errors import Incomplete, PolicyError
from dse.services.policy.sql import Key, Statement
from dse.services.policy.store import ActionOptions

__all__ = ["Outcome", "Rule", "RuleState", "Rules"]

PATIENCE = 10.0  # seconds from a failure of a rule to the next attempt
_STEPS = 500  # rows of one change that are followed one by one


class RuleState(StrEnum):
    """How a rule is."""

    WAITING = "WAITING"  # for tables that are not there, or not complete
    OK = "OK"
    ERROR = "ERROR"  # it cannot be worked out; its rows are the last ones


@dataclass(eq=False)
class Rule:
    """A rule, and its result. `fixed`: it stands in the configuration, and cannot be deleted by RPC."""

    policy: str
    name: str
    statement: Statement
    action: ActionOptions | None = None
    fixed: bool = False
    state: RuleState = RuleState.WAITING
    reason: str = ""
    compiled: Compiled | None = None
    rows: set[Row] = field(default_factory=set)
    known: bool = False  # whether it was ever worked out since it was compiled
    _counts: Counter[Row] | None = None  # how often each row comes, if that is followed
    _touched: set[Row] = field(default_factory=set)  # rows whose count is another since the rule was settled
    _dirty: bool = True
    _failed_at: float = -math.inf

    @property
    def key(self) -> Key:
        """(policy, name): as a table, the rule is called so."""
        return (self.policy, self.name)


@dataclass(frozen=True)
class Outcome:
    """What happened to a rule when it was settled. `first`: its result is known for the first time."""

    rule: Rule
    added: Collection[Row]
    removed: Collection[Row]
    first: bool


@dataclass
class _Input:
    """A table that rules read. rows: of a table of a service, as heard so far."""

    columns: tuple[str, ...] | None = None
    live: bool = False
    problem: str = ""
    rows: set[Row] | None = field(default_factory=set)  # None: they are in the engine
    readers: int = 0


class Rules:
    """See the top of this file.

    columns_of: what the bus says of a table's columns, or None. clock: monotonic seconds.
    """

    def __init__(
        self,
        limits: Limits,
        columns_of: Callable[[Key], tuple[str, ...] | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.engine = Engine()
        self.limits = limits
        self._columns_of = columns_of
        self._clock = clock
        self.rules: dict[Key, Rule] = {}
        self.inputs: dict[Key, _Input] = {}

    # Rules

    def insert(self, rule: Rule) -> None:
        """Add a rule; raise `PolicyError` for one that cannot be, and leave everything as it was."""
        self._refuse_cycle(rule)
        self.rules[rule.key] = rule
        if rule.key in self.inputs:  # it was taken for a service's table
            self.engine.drop(rule.key)
            del self.inputs[rule.key]
        try:
            self._prepare(rule)
        except BaseException:
            del self.rules[rule.key]
            self._unload()
            raise
        for other in self._readers(rule.key):
            self._try_prepare(other)

    def delete(self, *keys: Key) -> None:
        """Remove rules; raise `PolicyError` naming the rules that build on them and would stay."""
        for key in keys:
            above = sorted(".".join(rule.key) for rule in self._readers(key) if rule.key not in keys)
            if above:
                raise PolicyError(f"{'.'.join(key)} is built on by {', '.join(above)}")
        for key in keys:
            del self.rules[key]
        self._unload()

    def keep_failed(self, rule: Rule, reason: str) -> None:
        """Keep a rule that cannot be inserted: it stood in the store or the configuration, and must be seen."""
        self.rules.setdefault(rule.key, rule)
        self.fail(rule, reason)

    def fail(self, rule: Rule, reason: str) -> None:
        """A rule cannot be worked out or published; it keeps its last rows, and is tried again later."""
        rule.state, rule.reason = RuleState.ERROR, reason
        rule._dirty, rule._counts, rule._touched = True, None, set()
        rule._failed_at = self._clock()

    def tables(self) -> set[Key]:
        """Return the tables of services that are needed."""
        named = {key for rule in self.rules.values() for key in rule.statement.tables if key not in self.rules}
        return named | {key for key, source in self.inputs.items() if source.readers}

    def _refuse_cycle(self, rule: Rule) -> None:
        def search(key: Key, path: list[Key]) -> list[Key] | None:
            for below in sorted(rule.statement.tables if key == rule.key else self.rules[key].statement.tables):
                if below == rule.key:
                    return [*path, below]
                if below in self.rules and below not in path and (found := search(below, [*path, below])):
                    return found
            return None

        cycle = search(rule.key, [rule.key])
        if cycle:
            raise PolicyError(f"a cycle: {' reads '.join('.'.join(key) for key in cycle)}")

    def _prepare(self, rule: Rule) -> None:
        """Compile a rule, or have it wait for the tables that are missing; raise `PolicyError` for a wrong one."""
        rule.compiled, rule.known, rule._counts, rule._dirty = None, False, None, True
        missing = {key for key in rule.statement.tables if not self._load(key)}
        if missing:
            rule.state, rule.reason = RuleState.WAITING, str(Incomplete(missing))
            return
        compiled = self.engine.compile(rule.statement)
        rule._failed_at = -math.inf
        if rule.action is not None:
            rule.action.check(compiled.columns)
        rule.compiled = compiled
        if self.engine.columns(rule.key) not in (None, compiled.columns):
            self.engine.drop(rule.key)
            rule.rows = set()
        self._wait_or_ok(rule)
        for other in self._readers(rule.key):
            if other.compiled is None or self.engine.columns(rule.key) is None:
                self._try_prepare(other)

    def _wait_or_ok(self, rule: Rule) -> bool:
        """Whether all that a rule reads counts."""
        waiting = {key for key in rule.statement.tables if not self._counts(key)}
        if waiting:
            rule.state, rule.reason = RuleState.WAITING, str(Incomplete(waiting))
        return not waiting

    def _counts(self, key: Key) -> bool:
        below = self.rules.get(key)
        return below.known if below is not None else self.inputs[key].live

    def _try_prepare(self, rule: Rule) -> None:
        try:
            self._prepare(rule)
        except (PolicyError, ValueError) as error:
            self.fail(rule, str(error))

    def _load(self, key: Key) -> bool:
        """Have a table in the engine; return False if its columns are not known."""
        if self.engine.columns(key) is not None:
            return True
        below = self.rules.get(key)
        if below is not None:
            if below.compiled is None:
                return False
            self.engine.add(key, below.compiled.columns)
            self.engine.apply(key, below.rows, ())
            return True
        source = self.inputs.setdefault(key, _Input())
        columns = source.columns or self._columns_of(key)
        if columns is None:
            return False
        self.engine.add(key, columns)
        source.columns = columns
        if source.rows:
            self.engine.apply(key, [row for row in source.rows if len(row) == len(columns)], ())
        source.rows = None
        return True

    def _unload(self) -> None:
        """Forget tables that nobody reads."""
        read_by = Counter(key for rule in self.rules.values() for key in rule.statement.tables)
        for key in [*self.inputs, *self.rules]:
            source = self.inputs.get(key)
            if not read_by[key] and not (source is not None and source.readers):
                self.engine.drop(key)
                self.inputs.pop(key, None)
        for key in self.engine.keys() - self.inputs.keys() - self.rules.keys():
            self.engine.drop(key)

    # What is heard of tables

    def changed(self, key: Key, added: Collection[Row], removed: Collection[Row]) -> None:
        """Rows of a service's table came and went."""
        source = self.inputs.get(key)
        if source is None:
            return
        if source.rows is not None:
            source.rows.difference_update(removed)
            source.rows.update(added)
            return
        assert source.columns is not None
        width = len(source.columns)
        if any(len(row) != width for row in added):
            # It has other columns now: complete again only when it is LIVE again.
            self._withhold(key, source)
            self.changed(key, added, removed)
            return
        self._propagate(key, added, removed)

    def live(self, key: Key, columns: tuple[str, ...]) -> None:
        """A service's table is complete, and has these columns."""
        source = self.inputs.get(key)
        if source is None:
            return
        if source.columns != columns:
            self._withhold(key, source)
            source.columns = columns
        first, source.live = not source.live, True
        if first or self.engine.columns(key) is None:
            for rule in self._readers(key):
                if rule.compiled is None:
                    self._try_prepare(rule)
                rule._dirty = True

    def _withhold(self, key: Key, source: _Input) -> None:
        """Take a table out of the engine: what its columns are is to be found out anew."""
        if source.rows is None:
            source.rows = set(self.engine.rows(key))
            self.engine.drop(key)
        source.columns, source.live = None, False
        for rule in self._readers(key):
            rule.compiled = None
            rule.state, rule.reason = RuleState.WAITING, str(Incomplete({key}))

    def _readers(self, key: Key) -> list[Rule]:
        return [rule for rule in self.rules.values() if key in rule.statement.tables]

    def _propagate(self, key: Key, added: Collection[Row], removed: Collection[Row]) -> None:
        """Apply a change to a table in the engine, and to the counts of rules that follow it row by row."""
        following: list[tuple[Rule, Counter[Row]]] = []
        for rule in self._readers(key):
            if rule.compiled is None or rule._dirty:
                continue
            few = len(added) + len(removed) <= _STEPS
            if rule._counts is not None and key in rule.compiled.steps and few:
                following.append((rule, Counter()))
            else:
                rule._dirty = True
        self._step(following, key, removed, -1)
        self.engine.apply(key, added, removed)
        self._step(following, key, added, +1)
        for rule, difference in following:
            if not rule._dirty:
                self._count(rule, difference)

    def _step(self, following: list[tuple[Rule, Counter[Row]]], key: Key, rows: Collection[Row], sign: int) -> None:
        for rule, difference in following:
            if rule._dirty or not rows:
                continue
            assert rule.compiled is not None
            try:
                found = self.engine.step(rule.compiled, key, rows, self.limits)
            except PolicyError as error:
                self.fail(rule, str(error))
                continue
            for row, count in found.items():
                difference[row] += sign * count

    def _count(self, rule: Rule, difference: Counter[Row]) -> None:
        counts = rule._counts
        assert counts is not None
        for row, count in difference.items():
            if count:
                rule._touched.add(row)
                counts[row] += count
                if counts[row] <= 0:
                    del counts[row]

    # Results

    def settle(self) -> list[Outcome]:
        """Work out all that is to be worked out; return the rules whose result is another, or known at last."""
        return [outcome for rule in self._in_order() if (outcome := self._settle(rule)) is not None]

    def retry(self) -> None:
        """Have rules that failed worked out when they are settled next."""
        for rule in self.rules.values():
            rule._failed_at = -math.inf

    def _settle(self, rule: Rule) -> Outcome | None:
        if rule.compiled is None or not self._wait_or_ok(rule):
            return None
        try:
            added, removed = self._work_out(rule, rule.compiled)
        except PolicyError as error:
            self.fail(rule, str(error))
            return None
        if added is None:
            return None
        first, rule.known = not rule.known, True
        rule.state, rule.reason = RuleState.OK, ""
        if (added or removed) and self.engine.columns(rule.key) is not None:
            self._propagate(rule.key, added, removed)
        return Outcome(rule, added, removed, first) if added or removed or first else None

    def _work_out(self, rule: Rule, compiled: Compiled) -> tuple[set[Row] | None, set[Row]]:
        """Bring a rule's rows up to date; return those that came (None: it is not its time) and those that went."""
        if not rule._dirty:
            counts, touched = rule._counts, rule._touched
            if not touched:
                return (None, set()) if rule.known else (set(), set())
            assert counts is not None
            if len(counts) > self.limits.rows:
                raise PolicyError(f"stopped: it returns more than {self.limits.rows:,} rows")
            added = {row for row in touched if row in counts and row not in rule.rows}
            removed = {row for row in touched if row not in counts and row in rule.rows}
            rule._touched = set()
            rule.rows -= removed
            rule.rows |= added
            return added, removed
        if self._clock() - rule._failed_at < PATIENCE:
            return None, set()
        found = self.engine.run(compiled, self.limits)
        rule._counts = Counter(found) if compiled.steps else None
        rule._touched, rule._dirty = set(), False
        rows = set(rule._counts) if rule._counts is not None else set(found)
        added, removed = rows - rule.rows, rule.rows - rows
        rule.rows = rows
        return added, removed

    def _in_order(self) -> Iterator[Rule]:
        """The rules, each after those that it builds on."""
        done: set[Key] = set()

        def visit(rule: Rule) -> Iterator[Rule]:
            if rule.key in done:
                return
            done.add(rule.key)
            for key in rule.statement.tables:
                if key in self.rules:
                    yield from visit(self.rules[key])
            yield rule

        for rule in list(self.rules.values()):
            yield from visit(rule)

    # What if

    def simulate(
        self, added: Mapping[Key, Collection[Row]], removed: Mapping[Key, Collection[Row]], rules: Iterable[Rule]
    ) -> dict[Key, tuple[set[Row], set[Row]]]:
        """Return what would come and go in which rules' results; nothing is changed. New rules' rows all come.

        Raises `PolicyError` for tables that are not loaded and complete, and for rules that cannot be.
        """
        new = list(rules)
        for key in {key for rule in new for key in rule.statement.tables}:
            self._load(key)
        with self.engine.supposing():
            for key in {*added, *removed}:
                if key in self.rules or self.engine.columns(key) is None or not self._counts(key):
                    raise PolicyError(f"{'.'.join(key)} is no table that a rule reads now")
                self.engine.apply(key, added.get(key, ()), removed.get(key, ()))
            touched = {*added, *removed}
            found: dict[Key, tuple[set[Row], set[Row]]] = {}
            for rule in self._in_order():
                if rule.compiled is not None and rule.known and touched & rule.statement.tables:
                    rows = set(self.engine.run(rule.compiled, self.limits))
                    came, went = rows - rule.rows, rule.rows - rows
                    if came or went:
                        found[rule.key] = came, went
                        touched.add(rule.key)
                        if self.engine.columns(rule.key) is not None:
                            self.engine.apply(rule.key, came, went)
            for rule in new:
                found[rule.key] = self._suppose(rule), set()
            return found

    def _suppose(self, rule: Rule) -> set[Row]:
        if rule.key in self.rules:
            raise PolicyError(f"there is a rule {'.'.join(rule.key)} already")
        self._refuse_cycle(rule)
        missing = {key for key in rule.statement.tables if self.engine.columns(key) is None or not self._ready(key)}
        if missing:
            raise Incomplete(missing)
        compiled = self.engine.compile(rule.statement)
        rows = set(self.engine.run(compiled, self.limits))
        self.engine.add(rule.key, compiled.columns)
        self.engine.apply(rule.key, rows, ())
        return rows

    def _ready(self, key: Key) -> bool:
        return self._counts(key) if key in self.rules or key in self.inputs else True  # one supposed before

    def query(self, statement: Statement, limits: Limits) -> tuple[tuple[str, ...], list[Row]]:
        """Return the columns and rows of a query over tables that are loaded; raise `PolicyError`."""
        missing = {key for key in statement.tables if not self._load(key) or not self._counts(key)}
        if missing:
            raise Incomplete(missing)
        compiled = self.engine.compile(statement)
        return compiled.columns, self.engine.run(compiled, limits)

    def hold(self, keys: Iterable[Key]) -> None:
        """Keep tables that no rule reads: a query is about to."""
        for key in keys:
            if key not in self.rules:
                self.inputs.setdefault(key, _Input()).readers += 1

    def release(self, keys: Iterable[Key]) -> None:
        """Undo `hold`."""
        for key in keys:
            source = self.inputs.get(key)
            if source is not None:
                source.readers -= 1
        self._unload()
