"""Who may be on the bus, call, publish and subscribe: rules, and what they decide. No I/O, no clock.

Rules of the rules:

1. Without rules everything is allowed. With rules, what no rule allows is denied. A rule that denies wins over any that
   allows, in whatever order they stand.
2. A rule speaks of *actions*, of *who* (the key that sealed the frame, the node that sent it) and of *what* (a service,
   and a method or a table of it). What it leaves out it does not ask about. It applies where all that it says applies.
3. A pattern is one glob, or several. A glob is for the whole name and minds capitals; ``*`` is any text, ``?`` one
   character, ``[ab]`` one of these; with ``!`` in front it is for every name but those. Of several, one must fit,
   unless all are with ``!``, and none of those with ``!`` may refuse.
4. Every action is spoken of: by a rule that allows some of it, or by one that denies all of it. A list that leaves an
   action out, or only denies parts of it, would shut everybody out without saying so, and is refused.
5. The methods of a node itself are those of the service `NODE`, and its figures are the service `FIGURES_SERVICE`:
   names that no service can have.
6. To offer a service is to publish; for that a rule for some of its tables counts if it allows, and not if it denies.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from dse.errors import ConfigError

__all__ = ["ACTIONS", "FIGURES_SERVICE", "NODE", "Action", "Permission", "Permissions"]

Action = Literal["join", "call", "publish", "subscribe"]
ACTIONS: tuple[Action, ...] = get_args(Action)

NODE = "@node"
"""Stands in rules for the methods of a node itself (`Node.call_node`), where a service has its id."""

FIGURES_SERVICE = "@figures"
"""Stands in rules for the figures that every node tells (`dse top`)."""

MOST_RULES = 1000
LONGEST_PATTERN = 1000
MOST_IDENTITIES = 1000
MOST_DECISIONS = 10_000
LONGEST_REMEMBERED = 200
"""How many identities, and decisions in all, are kept in mind, and characters of their names, which are 200 at most but
for a peer that lies; beyond, what is decided is worked out anew."""

_WHO = ("key", "node")
_WHAT = ("service", "method", "table")
_BELONGS: dict[str, tuple[Action, ...]] = {
    "service": ("call", "publish", "subscribe"),
    "method": ("call",),
    "table": ("publish", "subscribe"),
}
_IDENTIFIER_GLOB = re.compile(r"!?[\w*?\[\]!-]*", re.DOTALL)
_KEY_GLOB = re.compile(r"!?[\w*?\[\]!.-]*", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Permission:
    """One rule: what it allows or denies (one of the two), to whom, of what.

    allow, deny: ``join``, ``call``, ``publish``, ``subscribe``, or several of them. key: the id of the key that the
    frame was sealed with. node: the node_id. service, method, table: of what is called, published or subscribed to;
    ``@node`` stands for the methods of a node itself, ``@figures`` for its figures. All of these are globs, one or
    several, ``!`` in front of one means all but those; what is left out may be anything.

        Permission(allow="call", key="ops", service="host", method="kill")
        Permission(deny=["publish", "call"], node=["web-*", "!web-1"])

    Raises `ConfigError` for a rule that says nothing, or what it cannot mean.
    """

    allow: Action | list[Action] | None = None
    deny: Action | list[Action] | None = None
    key: str | list[str] | None = None
    node: str | list[str] | None = None
    service: str | list[str] | None = None
    method: str | list[str] | None = None
    table: str | list[str] | None = None

    def __post_init__(self) -> None:
        if (self.allow is None) == (self.deny is None):
            raise ConfigError("a rule has either allow or deny: the actions that it allows or denies")
        actions = self.actions
        effect = "allow" if self.allow is not None else "deny"
        if not actions:
            raise ConfigError(f"is empty; it is one or several of {', '.join(ACTIONS)}", key=(effect,))
        for action in actions:
            if action not in ACTIONS:
                raise ConfigError(f"unknown action {action!r}; known are {', '.join(ACTIONS)}", key=(effect,))
        for name in (*_WHO, *_WHAT):
            self._check_pattern(name)
        for name, belongs in _BELONGS.items():
            others = [action for action in actions if action not in belongs]
            if getattr(self, name) is not None and others:
                raise ConfigError(
                    f"belongs to {' and '.join(belongs)}; a rule that is for {', '.join(others)} cannot ask for it "
                    "(make two rules)",
                    key=(name,),
                )

    def __str__(self) -> str:
        said = [(each.name, getattr(self, each.name)) for each in fields(self)]
        return ", ".join(f"{name} {_listed(value)}" for name, value in said if value is not None)

    @property
    def allows(self) -> bool:
        """Whether it allows rather than denies."""
        return self.allow is not None

    @property
    def actions(self) -> tuple[str, ...]:
        """What it allows or denies."""
        return _as_tuple(self.allow if self.allow is not None else self.deny)

    @property
    def restricted(self) -> bool:
        """Whether there is anything that it does not apply to."""
        return any(getattr(self, name) is not None for name in (*_WHO, *_WHAT))

    def _check_pattern(self, name: str) -> None:
        value = getattr(self, name)
        if value is None:
            return
        if not isinstance(value, str) and not (isinstance(value, list | tuple) and value):
            raise ConfigError("is a pattern, or a list of at least one", key=(name,))
        for pattern in _as_tuple(value):
            if not isinstance(pattern, str):
                raise ConfigError(f"a pattern is text, not {type(pattern).__name__}", key=(name,))
            if pattern in ("", "!") or len(pattern) > LONGEST_PATTERN:
                raise ConfigError(f"a pattern has 1 to {LONGEST_PATTERN} characters; * is for any name", key=(name,))
            shown = ascii(pattern[:60])
            if name in _WHAT and not _IDENTIFIER_GLOB.fullmatch(pattern):
                bare = pattern.removeprefix("!")
                if name != "service" or bare not in (NODE, FIGURES_SERVICE):
                    own = f", or {NODE} or {FIGURES_SERVICE}" if name == "service" else ""
                    raise ConfigError(
                        f"{shown} is no pattern of a {name}: its name is letters, digits and _{own}; "
                        "a method or a table has a key of its own",
                        key=(name,),
                    )
            if name == "key" and not _KEY_GLOB.fullmatch(pattern):
                raise ConfigError(
                    f"{shown} is no pattern of a key id: that is letters, digits, _, - and .", key=(name,)
                )


@dataclass(frozen=True, slots=True)
class _Compiled:
    """A rule with its patterns as predicates; None where it does not ask."""

    index: int
    allows: bool
    actions: tuple[str, ...]
    key: Callable[[str], bool] | None
    node: Callable[[str], bool] | None
    service: Callable[[str], bool] | None
    name: Callable[[str], bool] | None  # the method or the table

    def is_for(self, key_id: str, node_id: str) -> bool:
        return (self.key is None or self.key(key_id)) and (self.node is None or self.node(node_id))

    def covers(self, action: str, service: str, name: str | None) -> bool:
        if action not in self.actions or not (self.service is None or self.service(service)):
            return False
        if name is None:  # the service itself is offered: rule 6
            return self.name is None or self.allows
        return self.name is None or self.name(name)


class _Identity:
    """What applies to one sender, and what was decided for it."""

    __slots__ = ("decisions", "joins", "rules")

    def __init__(self, rules: tuple[_Compiled, ...]) -> None:
        self.rules = rules
        self.joins = _judge(rules, "join", "", None) is None
        self.decisions: dict[tuple[str, str, str | None], bool] = {}


class Permissions:
    """The rules of one node, ready to decide. Any thread may ask; nothing is locked, for two may work out the same.

    Raises `ConfigError` for a list that is empty, or leaves an action out.
    """

    def __init__(self, rules: Sequence[Permission]) -> None:
        if isinstance(rules, str | bytes) or not isinstance(rules, Sequence):
            raise ConfigError(f"permissions are a list of Permission, not {type(rules).__name__}")
        for index, rule in enumerate(rules):
            if not isinstance(rule, Permission):
                raise ConfigError(f"permissions[{index}] is a Permission, not {type(rule).__name__}")
        if len(rules) > MOST_RULES:
            raise ConfigError(f"permissions are at most {MOST_RULES} rules, not {len(rules)}")
        _check_complete(rules)
        self.rules = tuple(rules)
        self._compiled = tuple(_compile(index, rule) for index, rule in enumerate(rules))
        self._identities: dict[tuple[str, str], _Identity] = {}
        self._remembered = 0  # decisions of all identities, about

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Permissions) and self.rules == other.rules

    __hash__ = None  # type: ignore[assignment]

    def joins(self, key_id: str, node_id: str) -> bool:
        """Whether a node may be on the bus under this key."""
        identity = self._identities.get((key_id, node_id)) or self._identify(key_id, node_id)
        return identity.joins

    def allows(self, action: Action, key_id: str, node_id: str, service: str, name: str | None) -> bool:
        """Whether who sealed with this key on this node may do it. name: the method or the table.

        A service is offered where ``publish`` is allowed for it with the name None. No one may do what is allowed to
        nobody, and who may not join may do nothing.
        """
        identity = self._identities.get((key_id, node_id)) or self._identify(key_id, node_id)
        known = identity.decisions.get((action, service, name))
        if known is not None:
            return known
        decided = identity.joins and _judge(identity.rules, action, service, name) is None
        if self._remembered >= MOST_DECISIONS:
            self._identities, self._remembered = {}, 0
        elif len(service) <= LONGEST_REMEMBERED and len(name or "") <= LONGEST_REMEMBERED:
            self._remembered += 1
            identity.decisions[action, service, name] = decided
        return decided

    def explain(self, action: Action, key_id: str, node_id: str, service: str = "", name: str | None = None) -> str:
        """Say why something is denied, for the operator; '' when it is allowed."""
        rules = tuple(rule for rule in self._compiled if rule.is_for(key_id, node_id))
        for each in dict.fromkeys(("join", action)):
            why = _judge(rules, each, service, name) if each == action else _judge(rules, each, "", None)
            if why == _NO_RULE:
                return "no rule allows it" if each == action else "no rule allows it to join"
            if why is not None:
                return f"permissions[{why}] denies it ({self.rules[why]})"
        return ""

    def unheld_keys(self, held: Iterable[str]) -> list[tuple[int, str]]:
        """Return the keys that rules name in full and that are not among these: (index of the rule, key id)."""
        known = set(held)
        return [
            (index, name)
            for index, rule in enumerate(self.rules)
            for name in (each.removeprefix("!") for each in _as_tuple(rule.key))
            if name not in known and not set(name) & set("*?[")
        ]

    def _identify(self, key_id: str, node_id: str) -> _Identity:
        identity = _Identity(tuple(rule for rule in self._compiled if rule.is_for(key_id, node_id)))
        if len(self._identities) >= MOST_IDENTITIES:
            self._identities, self._remembered = {}, 0
        if len(node_id) <= LONGEST_REMEMBERED:
            self._identities[key_id, node_id] = identity
        return identity


_NO_RULE = -1


def _judge(rules: Iterable[_Compiled], action: str, service: str, name: str | None) -> int | None:
    """Return None when it is allowed, the index of the rule that denies it, or `_NO_RULE` where none allows it."""
    allowed = False
    for rule in rules:
        if rule.covers(action, service, name):
            if not rule.allows:
                return rule.index
            allowed = True
    return None if allowed else _NO_RULE


def _check_complete(rules: Sequence[Permission]) -> None:
    if not rules:
        raise ConfigError("permissions are at least one rule; leave them out to allow everything")
    for action in ACTIONS:
        about = [rule for rule in rules if action in rule.actions]
        if any(rule.allows or not rule.restricted for rule in about):
            continue
        advice = f'add a rule allow = "{action}", or deny = "{action}" without anything else to deny it to all'
        if about:
            raise ConfigError(
                f"there are rules that deny some of {action!r} and none that allows it, so that all of it would be "
                f"denied: {advice}"
            )
        raise ConfigError(f"no rule is about {action!r}, so that it would be denied to all: {advice}")


def _compile(index: int, rule: Permission) -> _Compiled:
    name = rule.method if rule.method is not None else rule.table
    return _Compiled(
        index, rule.allows, rule.actions, *(_predicate(each) for each in (rule.key, rule.node, rule.service, name))
    )


def _predicate(value: str | list[str] | None) -> Callable[[str], bool] | None:
    if value is None:
        return None
    patterns = _as_tuple(value)
    wanted = [_matcher(each) for each in patterns if not each.startswith("!")]
    refused = [_matcher(each[1:]) for each in patterns if each.startswith("!")]

    def fits(name: str) -> bool:
        return (not wanted or any(each(name) for each in wanted)) and not any(each(name) for each in refused)

    return fits


def _matcher(pattern: str) -> Callable[[str], Any]:
    return re.compile(fnmatch.translate(pattern)).match


def _as_tuple(value: Any) -> tuple[Any, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
