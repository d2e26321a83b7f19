"""The policy service: rules in SQL over everybody's tables, whose results are published as tables of their own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from dse.core import tracing
from dse.core.info import identifier
from dse.core.messages import Row
from dse.core.methods import rpc
from dse.core.replica import ReplicaState
from dse.core.service import DataService
from dse.core.table import Change, Replica, Table
from dse.errors import ConfigError, DseError, ServiceExists
from dse.services.policy.actions import ActionRunner
from dse.services.policy.engine import Limits
from dse.services.policy.errors import Incomplete, PolicyError
from dse.services.policy.evaluator import Evaluator
from dse.services.policy.rules import PATIENCE, Outcome, Rule, Rules
from dse.services.policy.sql import Key, Statement, read
from dse.services.policy.store import ActionOptions, Store, StoredRule

__all__ = ["Policy", "RuleOptions"]

_log = logging.getLogger("dse.policy")

_PATIENCE = 30.0  # seconds that an RPC waits for its turn
_MOST_CAUSES = 32  # traces that lead to one new state of a rule: the first goes on, the others are linked to it


class RuleOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """A rule in the configuration. sql: its SELECT. action: what is called for each new row."""

    sql: str
    action: ActionOptions | None = None


class Policy(DataService):
    """Publishes what rules find. A rule ``open_ports`` of the policy ``security`` is the table ``open_ports`` of the
    service ``security``, which runs on this node while the policy exists.

    store: a SQLite file in which policies, rules and the actions that were called are kept; None: in memory only.
    policies: policy -> rule -> its SQL, or `RuleOptions`: rules that stand in the configuration. They cannot be deleted
    by RPC, and take the place of stored ones of their name. seconds, rows: what working a rule out may take and give.
    query_seconds, query_rows: the same for `query` and `simulate`, which other work waits for.

    Tables: ``rules`` (policy, rule, state, reason, sql) and ``actions`` (policy, rule, waiting, done, failed, error).
    Raises `ConfigError` for rules that cannot be read.
    """

    rules = Table("policy", "rule", "state", "reason", "sql")
    actions = Table("policy", "rule", "waiting", "done", "failed", "error")

    def __init__(
        self,
        service_id: str,
        *,
        store: Path | None = None,
        policies: dict[str, dict[str, str | RuleOptions]] | None = None,
        seconds: float = 5.0,
        rows: int = 200_000,
        query_seconds: float = 1.0,
        query_rows: int = 10_000,
    ) -> None:
        super().__init__(service_id)
        for name, value in (
            ("seconds", seconds),
            ("rows", rows),
            ("query_seconds", query_seconds),
            ("query_rows", query_rows),
        ):
            if not value > 0:
                raise ConfigError(f"{name} is a positive number, not {value!r}", key=(name,))
        self._limits, self._query_limits = Limits(seconds, rows), Limits(query_seconds, query_rows)
        self._configured = _read_policies(policies or {})
        self._store = Store(Path(store) if store is not None else None)
        self._completed = threading.Condition()  # protects _completions: how often a table was complete
        self._completions = 0
        # What follows belongs to the evaluator's thread while the service runs.
        self._policies: dict[str, DataService] = {}
        self._replicas: dict[Key, Replica] = {}
        self._causes: dict[Key, list[Any]] = {}  # table -> the traces of its changes since rules were settled
        self._rules: Rules | None = None
        self._evaluator: Evaluator | None = None
        self._runner: ActionRunner | None = None

    # Life

    def on_start(self) -> None:
        """Open the store, and begin with the rules that are there."""
        self._store.open()
        try:
            self._rules = Rules(self._limits, self._columns_of)
            self._runner = ActionRunner(
                f"{self.service_id}-actions", self._store, self.node.call_async, self._tell_action
            )
            self._evaluator = Evaluator(f"{self.service_id}-evaluator", self._settle, period=PATIENCE, tick=self._retry)
            self._evaluator.put(self._begin)
        except BaseException:
            self._end()
            raise

    def on_stop(self) -> None:
        """End the threads and give up the store."""
        self._end()

    def _end(self) -> None:
        evaluator, self._evaluator = self._evaluator, None
        if evaluator is not None:
            evaluator.close()
        runner, self._runner = self._runner, None
        if runner is not None:
            runner.close()
        if self._rules is not None:
            self._rules.engine.close()
            self._rules = None
        for name in list(self._policies):
            self._withdraw_policy(name)
        self._replicas.clear()
        self._store.close()

    def _begin(self) -> None:
        policies, stored = self._store.load()
        fixed = {rule.key for rules in self._configured.values() for rule in rules}
        for name in sorted({*policies, *self._configured}):
            self._publish_policy(name)
        for rule in (rule for rules in self._configured.values() for rule in rules):
            self._insert_or_log(Rule(rule.policy, rule.name, rule.statement, rule.action, fixed=True))
        for kept in stored:
            if (kept.policy, kept.name) in fixed:
                self._store.delete_rule(kept.policy, kept.name, keep_called=True)
                continue
            try:
                statement = read(kept.sql)
            except PolicyError as error:
                _log.error("%s.%s: %s", kept.policy, kept.name, error)
                continue
            self._insert_or_log(Rule(kept.policy, kept.name, statement, kept.action))
        self._follow()

    def _insert_or_log(self, rule: Rule) -> None:
        assert self._rules is not None
        try:
            self._rules.insert(rule)
        except (PolicyError, ConfigError) as error:
            self._rules.keep_failed(rule, str(error))
            _log.error("%s.%s: %s", rule.policy, rule.name, error)

    # Methods

    @rpc
    def create_policy(self, name: str) -> bool:
        """Create a policy; return False if there is one of that name."""
        identifier("policy's name", name)
        return bool(self._ask(partial(self._create_policy, name)))

    @rpc
    def delete_policy(self, name: str) -> int:
        """Delete a policy with its rules, unless rules of others build on them; return how many rules it had."""
        return int(self._ask(partial(self._delete_policy, name)))

    @rpc(idempotent=True)
    def list_policies(self) -> list[dict[str, Any]]:
        """Return the policies: name, whether it stands in the configuration, and its rules' names."""

        def answer() -> list[dict[str, Any]]:
            found = self._the_rules.rules
            return [
                {
                    "name": name,
                    "configured": name in self._configured,
                    "rules": sorted(rule for policy, rule in found if policy == name),
                }
                for name in sorted(self._policies)
            ]

        return list(self._ask(answer))

    @rpc
    def insert_rule(self, policy: str, name: str, sql: str, action: ActionOptions | None = None) -> dict[str, Any]:
        """Add a rule to a policy: a SELECT over tables that are named service.table, whose columns are named.

        action: what is called for each new row. Returns what `list_rules` says of it. Raises PolicyError, which says
        what is wrong.
        """
        identifier("rule's name", name)
        statement = read(sql)
        if action is not None:
            action.check()
        return dict(self._ask(partial(self._insert_rule, Rule(policy, name, statement, action))))

    @rpc
    def delete_rule(self, policy: str, name: str) -> bool:
        """Delete a rule, unless others build on it."""
        return bool(self._ask(partial(self._delete_rule, policy, name)))

    @rpc(idempotent=True)
    def list_rules(self, policy: str | None = None) -> list[dict[str, Any]]:
        """Return the rules, of one policy or of all: their SQL, columns, state (WAITING, OK, ERROR) and the reason."""

        def answer() -> list[dict[str, Any]]:
            if policy is not None:
                self._known(policy)
            rules = sorted(self._the_rules.rules.values(), key=lambda rule: rule.key)
            return [_described(rule) for rule in rules if policy in (None, rule.policy)]

        return list(self._ask(answer))

    @rpc(idempotent=True)
    def query(self, sql: str, timeout: float = 5.0) -> dict[str, Any]:
        """Run a SELECT once; return its columns and rows.

        Tables that no rule reads are followed meanwhile, and waited for, `timeout` seconds at most.
        """
        statement = read(sql)
        self._ask(partial(self._hold, statement))
        try:
            return dict(self._when_complete(lambda: self._query(statement), timeout))
        finally:
            self._ask(partial(self._release, statement))

    @rpc(idempotent=True)
    def simulate(
        self,
        added: dict[str, list[list[Any]]] | None = None,
        removed: dict[str, list[list[Any]]] | None = None,
        rules: dict[str, str] | None = None,
        timeout: float = 5.0,
    ) -> dict[str, dict[str, Any]]:
        """Return what would come and go in the rules' results if rows were added or removed, or rules added.

        added, removed: service.table -> rows. rules: policy.rule -> SQL. Returns policy.rule -> added and removed rows.
        """
        new = [Rule(*_split("rule", name), read(sql)) for name, sql in (rules or {}).items()]
        plus = {_split("table", name): {tuple(row) for row in rows} for name, rows in (added or {}).items()}
        minus = {_split("table", name): {tuple(row) for row in rows} for name, rows in (removed or {}).items()}
        held = [rule.statement for rule in new]
        for statement in held:
            self._ask(partial(self._hold, statement))
        try:
            return dict(self._when_complete(lambda: self._simulate(plus, minus, new), timeout))
        finally:
            for statement in held:
                self._ask(partial(self._release, statement))

    # In the evaluator's thread

    @property
    def _the_rules(self) -> Rules:
        assert self._rules is not None
        return self._rules

    def _ask(self, job: Callable[[], Any]) -> Any:
        evaluator = self._evaluator
        if evaluator is None:
            raise DseError(f"the service {self.service_id!r} is not running")
        return evaluator.ask(job, _PATIENCE)

    def _known(self, policy: str) -> None:
        if policy not in self._policies:
            raise PolicyError(f"no policy {policy!r}; there are: {', '.join(sorted(self._policies)) or 'none'}")

    def _create_policy(self, name: str) -> bool:
        if name in self._policies:
            return False
        self._publish_policy(name)
        self._store.add_policy(name)
        return True

    def _publish_policy(self, name: str) -> None:
        service = DataService(name)
        try:
            self.node.register(service)
        except ServiceExists:
            raise PolicyError(f"{name!r} is a service on this node: a policy needs a name of its own") from None
        self._policies[name] = service

    def _withdraw_policy(self, name: str) -> None:
        del self._policies[name]
        try:
            self.node.unregister(name)
        except DseError:
            pass  # the node stops, and has taken it off already

    def _delete_policy(self, name: str) -> int:
        self._known(name)
        if name in self._configured:
            raise PolicyError(f"the policy {name!r} stands in the configuration: delete it there")
        rules = self._the_rules
        own = [key for key in rules.rules if key[0] == name]
        rules.delete(*own)
        self._store.delete_policy(name)
        for key in own:
            self._end_action(key)
        self._withdraw_policy(name)
        self._follow()
        return len(own)

    def _insert_rule(self, rule: Rule) -> dict[str, Any]:
        self._known(rule.policy)
        if rule.key in self._the_rules.rules:
            raise PolicyError(f"there is a rule {'.'.join(rule.key)} already: delete it first")
        self._the_rules.insert(rule)
        try:
            self._store.add_rule(StoredRule(rule.policy, rule.name, rule.statement.text, rule.action))
        except BaseException:
            self._the_rules.delete(rule.key)
            raise
        self._follow()
        self._settle()
        return _described(rule)

    def _delete_rule(self, policy: str, name: str) -> bool:
        self._known(policy)
        rule = self._the_rules.rules.get((policy, name))
        if rule is None:
            known = ", ".join(sorted(r for p, r in self._the_rules.rules if p == policy)) or "none"
            raise PolicyError(f"the policy {policy!r} has no rule {name!r}; it has: {known}")
        if rule.fixed:
            raise PolicyError(f"the rule {policy}.{name} stands in the configuration: delete it there")
        self._the_rules.delete(rule.key)
        self._store.delete_rule(policy, name)
        self._end_action(rule.key)
        if name in self._policies[policy].published_tables:
            self._policies[policy].remove_table(name)
        self._follow()
        return True

    def _end_action(self, key: Key) -> None:
        self._runner_is().end(key)
        self.actions.delete([row for row in self.actions.rows if row[:2] == key])

    def _runner_is(self) -> ActionRunner:
        assert self._runner is not None
        return self._runner

    def _columns_of(self, key: Key) -> tuple[str, ...] | None:
        for node in self.node.status().nodes.values():
            for info in node.services:
                if info.service_id == key[0] and key[1] in info.published_tables:
                    return tuple(info.published_tables[key[1]])
        return None

    def _follow(self) -> None:
        """Subscribe to exactly the tables that are needed."""
        needed = self._the_rules.tables()
        for key in [key for key in self._replicas if key not in needed]:
            self.unsubscribe(self._replicas.pop(key))
        for key in sorted(needed - self._replicas.keys()):
            # The callbacks come in a thread of the node's, and wait for the evaluator's.
            self._replicas[key] = self.subscribe(
                *key, partial(self._heard, key), on_state=partial(self._turned, key), patient=True
            )

    def _heard(self, key: Key, change: Change) -> None:
        evaluator = self._evaluator
        if evaluator is not None:
            evaluator.put(partial(self._changed, key, change, tracing.current()))

    def _changed(self, key: Key, change: Change, trace: Any) -> None:
        if trace is not None:
            causes = self._causes.setdefault(key, [])
            if len(causes) < _MOST_CAUSES:
                causes.append(trace)
        self._the_rules.changed(key, change.added, change.removed)

    def _turned(self, key: Key, state: ReplicaState) -> None:
        evaluator = self._evaluator
        if evaluator is not None and state is ReplicaState.LIVE:
            evaluator.put(partial(self._is_live, key))

    def _is_live(self, key: Key) -> None:
        replica = self._replicas.get(key)
        if replica is not None:
            self._the_rules.live(key, replica.columns)
            with self._completed:
                self._completions += 1
                self._completed.notify_all()

    def _retry(self) -> None:
        self._the_rules.retry()

    def _settle(self) -> None:
        """Work out what is to be worked out, publish it, and have actions called."""
        rules = self._rules
        if rules is None:
            return
        outcomes = rules.settle()
        for rule in rules.rules.values():
            self._offer(rule)
        causes, self._causes = self._causes, {}
        for outcome in outcomes:
            # Rules come after those that they build on: what led to those rows leads to these.
            rule = outcome.rule
            led = [each for key in sorted(rule.statement.tables) for each in causes.get(key, ())][:_MOST_CAUSES]
            if led:
                causes[rule.key] = led
            try:
                with tracing.evaluating(".".join(rule.key), led):
                    self._publish(outcome)
            except DseError as error:  # a row that no table can hold, or a disk that is full
                rules.fail(outcome.rule, str(error))
                outcome.rule.known = False  # what was published is to be compared anew
        self.rules.replace(
            (rule.policy, rule.name, rule.state.value, rule.reason, rule.statement.text)
            for rule in rules.rules.values()
        )

    def _offer(self, rule: Rule) -> None:
        """Have the rule's table on the bus as soon as its columns are known; it is pending until its rows are, too."""
        service = self._policies.get(rule.policy)
        if service is None or rule.compiled is None:
            return
        table = service.published_tables.get(rule.name)
        if table is not None and table.columns != rule.compiled.columns:
            service.remove_table(rule.name)
            table = None
        if table is None:
            service.add_table(rule.name, *rule.compiled.columns, pending=True)

    def _publish(self, outcome: Outcome) -> None:
        rule = outcome.rule
        service = self._policies.get(rule.policy)
        if service is None or rule.compiled is None:
            return
        table = service.published_tables[rule.name]
        if outcome.first:
            table.replace(rule.rows)
        else:
            table.apply(outcome.added, outcome.removed)
        if rule.action is not None:
            if outcome.first:
                self._runner_is().begin(rule.key, rule.action, rule.compiled.columns, rule.rows)
            else:
                self._runner_is().differ(rule.key, outcome.added, outcome.removed)

    def _tell_action(self, key: Key, state: tuple[int, int, int, str]) -> None:
        old = [row for row in self.actions.rows if row[:2] == key]
        self.actions.apply([(*key, *state)], old)

    # Queries

    def _hold(self, statement: Statement) -> None:
        self._the_rules.hold(statement.tables)
        self._follow()

    def _release(self, statement: Statement) -> None:
        self._the_rules.release(statement.tables)
        self._follow()

    def _query(self, statement: Statement) -> dict[str, Any]:
        columns, rows = self._the_rules.query(statement, self._query_limits)
        return {"columns": list(columns), "rows": [list(row) for row in rows]}

    def _simulate(
        self, added: Mapping[Key, set[Row]], removed: Mapping[Key, set[Row]], new: list[Rule]
    ) -> dict[str, dict[str, Any]]:
        found = self._the_rules.simulate(added, removed, new)
        return {
            ".".join(key): {"added": [list(row) for row in came], "removed": [list(row) for row in went]}
            for key, (came, went) in sorted(found.items())
        }

    def _when_complete(self, job: Callable[[], Any], timeout: float) -> Any:
        """Do a job, again when one more table is complete, until none is missing or time is up."""
        timeout = max(0.0, min(timeout, _PATIENCE))
        deadline = time.monotonic() + timeout
        while True:
            with self._completed:
                completed = self._completions
            try:
                return self._ask(job)
            except Incomplete as missing:
                with self._completed:
                    if not self._completed.wait_for(
                        partial(self._more_than, completed), max(0.0, deadline - time.monotonic())
                    ):
                        raise PolicyError(f"{missing}; not there within {timeout:g} s") from None

    def _more_than(self, completions: int) -> bool:
        return self._completions > completions


def _described(rule: Rule) -> dict[str, Any]:
    return {
        "policy": rule.policy,
        "name": rule.name,
        "sql": rule.statement.text,
        "columns": list(rule.compiled.columns) if rule.compiled is not None else [],
        "action": msgspec.to_builtins(rule.action),
        "configured": rule.fixed,
        "state": rule.state.value,
        "reason": rule.reason,
        "rows": len(rule.rows),
    }


def _split(what: str, name: str) -> Key:
    first, dot, second = name.partition(".")
    if not (dot and first.isidentifier() and second.isidentifier()):
        raise PolicyError(f"a {what} is named in two parts, as in security.open_ports, not {name[:100]!r}")
    return first, second


def _read_policies(policies: Mapping[str, Mapping[str, str | RuleOptions]]) -> dict[str, list[Rule]]:
    found: dict[str, list[Rule]] = {}
    for policy, rules in policies.items():
        identifier("policy's name", policy)
        found[policy] = []
        for name, options in rules.items():
            identifier("rule's name", name)
            if isinstance(options, str):
                options = RuleOptions(sql=options)
            try:
                rule = Rule(policy, name, read(options.sql), options.action, fixed=True)
                if rule.action is not None:
                    rule.action.check()
            except (PolicyError, ConfigError) as error:
                raise ConfigError(f"{policy}.{name}: {error}", key=("policies", policy, name)) from None
            found[policy].append(rule)
    return found
