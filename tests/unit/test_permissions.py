"""Permissions: what rules decide, that a rule which cannot be meant is refused, and what a check costs."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dse import ConfigError, Permission
from dse.core import permissions as module
from dse.core.permissions import ACTIONS, FIGURES_SERVICE, NODE, Permissions

ALL = Permission(allow=list(ACTIONS))
JOIN = Permission(allow="join")
REST = Permission(allow=["join", "publish", "subscribe"])


def allowed(rules: list[Permission], action: Any, service: str = "s", name: str | None = "m", **who: str) -> bool:
    return Permissions(rules).allows(action, who.get("key", "k"), who.get("node", "n"), service, name)


# What rules decide, by a model that a reader can check: the words of the documentation, one by one.

NAMES = st.text("ab", min_size=1, max_size=3)
GLOBS = st.text("ab*?", min_size=1, max_size=3)
PATTERNS = st.one_of(GLOBS, GLOBS.map("!{}".format))
SOME = st.none() | PATTERNS | st.lists(PATTERNS, min_size=1, max_size=3)


def glob_fits(glob: str, name: str) -> bool:
    if not glob:
        return not name
    if glob[0] == "*":
        return any(glob_fits(glob[1:], name[skipped:]) for skipped in range(len(name) + 1))
    return bool(name) and glob[0] in ("?", name[0]) and glob_fits(glob[1:], name[1:])


def pattern_fits(pattern: str | list[str] | None, name: str) -> bool:
    if pattern is None:
        return True
    globs = [pattern] if isinstance(pattern, str) else pattern
    named = [glob for glob in globs if glob[0] != "!"]
    excluded = [glob[1:] for glob in globs if glob[0] == "!"]
    is_named = not named or any(glob_fits(glob, name) for glob in named)
    return is_named and not any(glob_fits(glob, name) for glob in excluded)


def applies(rule: Permission, action: str, key: str, node: str, service: str, name: str | None) -> bool:
    said = rule.method if rule.method is not None else rule.table
    offered = name is None  # the service as a whole
    name_fits = (said is None or bool(rule.allow)) if offered else pattern_fits(said, name or "")
    return (
        action in rule.actions
        and pattern_fits(rule.key, key)
        and pattern_fits(rule.node, node)
        and pattern_fits(rule.service, service)
        and name_fits
    )


def model(rules: list[Permission], action: str, *asked: Any) -> bool:
    def one(action: str, *asked: Any) -> bool:
        about = [rule for rule in rules if applies(rule, action, *asked)]
        return any(rule.allow for rule in about) and not any(rule.deny for rule in about)

    key, node, service, name = asked
    return one("join", key, node, "", None) and (action == "join" or one(action, key, node, service, name))


@st.composite
def rules(draw: st.DrawFn) -> Permission:
    actions = draw(st.lists(st.sampled_from(ACTIONS), min_size=1, max_size=3, unique=True))
    kept: dict[str, Any] = {draw(st.sampled_from(["allow", "allow", "deny"])): actions}
    kept |= {"key": draw(SOME), "node": draw(SOME)}
    if "join" not in actions:
        kept["service"] = draw(SOME)
        if actions == ["call"]:
            kept["method"] = draw(SOME)
        elif "call" not in actions:
            kept["table"] = draw(SOME)
    return Permission(**kept)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(rules(), max_size=6),
    st.lists(st.tuples(st.sampled_from(ACTIONS), NAMES, NAMES, NAMES, st.none() | NAMES), min_size=1, max_size=20),
    st.booleans(),
)
def test_rules_decide_what_the_words_of_the_documentation_say(
    listed: list[Permission], questions: list[tuple[Any, ...]], open_to_all: bool
) -> None:
    listed = [*listed, ALL] if open_to_all else [*listed, *(Permission(allow=[each], key="a*") for each in ACTIONS)]
    decider = Permissions(listed)
    for action, key, node, service, name in questions * 2:  # twice: the second answer is remembered
        wanted = model(listed, action, key, node, service, name)
        if action == "join":
            assert decider.joins(key, node) is wanted
            assert (decider.explain(action, key, node) == "") is wanted
        else:
            assert decider.allows(action, key, node, service, name) is wanted
            assert (decider.explain(action, key, node, service, name) == "") is wanted


@settings(deadline=None)
@given(st.lists(rules(), max_size=5), st.permutations(range(6)), NAMES, NAMES, NAMES, NAMES)
def test_the_order_of_rules_means_nothing(
    listed: list[Permission], order: list[int], key: str, node: str, service: str, name: str
) -> None:
    listed = [ALL, *listed]
    shuffled = [listed[index] for index in order if index < len(listed)]
    for action in ("call", "publish", "subscribe"):
        answers = {Permissions(each).allows(action, key, node, service, name) for each in (listed, shuffled)}
        assert len(answers) == 1


def test_what_no_rule_allows_is_denied() -> None:
    assert allowed([REST, Permission(allow="call", key="ops")], "call", key="ops")
    assert not allowed([REST, Permission(allow="call", key="ops")], "call", key="web")


def test_a_rule_that_denies_wins_wherever_it_stands() -> None:
    deny = Permission(deny="call", service="host", method="kill", key="!ops")
    for listed in ([ALL, deny], [deny, ALL]):
        assert not allowed(listed, "call", "host", "kill", key="web")
        assert allowed(listed, "call", "host", "kill", key="ops")
        assert allowed(listed, "call", "host", "list", key="web")


def test_a_pattern_is_for_the_whole_name_and_minds_capitals() -> None:
    for pattern, name in (
        ("kill", "killall"),
        ("kill", "skill"),
        ("Kill", "kill"),
        ("kill", "kill\n"),
        ("k?ll", "kll"),
    ):
        assert not allowed([REST, Permission(allow="call", method=pattern)], "call", "s", name), (pattern, name)
    for pattern, name in (("kill*", "kill"), ("*", "any\nthing"), ("k?ll", "kell"), ("k[ie]ll", "kell"), ("_*", "_x")):
        assert allowed([REST, Permission(allow="call", method=pattern)], "call", "s", name), (pattern, name)


def test_who_may_not_join_may_do_nothing() -> None:
    listed = [Permission(allow="join", key="web", node="web-*"), Permission(allow=["call", "publish", "subscribe"])]
    decider = Permissions(listed)
    assert decider.joins("web", "web-1")
    assert decider.allows("call", "web", "web-1", "host", "kill")
    assert not decider.joins("web", "ops-1")
    assert not decider.allows("call", "web", "ops-1", "host", "kill")
    assert decider.explain("call", "web", "ops-1", "host", "kill") == "no rule allows it to join"


def test_a_node_and_its_figures_are_services_with_names_that_no_service_has() -> None:
    listed = [REST, Permission(allow="call", service=[NODE, "host"]), Permission(allow="call", service=FIGURES_SERVICE)]
    assert allowed(listed, "call", NODE, "restart")
    assert allowed(listed, "call", FIGURES_SERVICE, "_dse_figures")
    assert not allowed(listed, "call", "other", "restart")
    everything_of_services = [REST, Permission(allow="call", service="*")]
    assert allowed(everything_of_services, "call", NODE, "restart")  # deny with * denies these as well


def test_a_service_may_be_offered_by_who_may_publish_some_of_its_tables_and_is_not_hidden_with_one_of_them() -> None:
    listed = [Permission(allow=["join", "call", "subscribe"]), Permission(allow="publish", service="i", table="mine*")]
    assert allowed(listed, "publish", "i", None)
    assert allowed(listed, "publish", "i", "mine1")
    assert not allowed(listed, "publish", "i", "yours")
    assert not allowed(listed, "publish", "other", None)
    denied = [ALL, Permission(deny="publish", service="i", table="secret")]
    assert allowed(denied, "publish", "i", None)
    assert not allowed(denied, "publish", "i", "secret")


# What cannot be meant is refused, in words.


@pytest.mark.parametrize(
    ("rule", "key", "words"),
    [
        ({}, (), "either allow or deny"),
        ({"allow": "call", "deny": "call"}, (), "either allow or deny"),
        ({"allow": []}, ("allow",), "one or several of join, call, publish, subscribe"),
        ({"allow": "calls"}, ("allow",), "unknown action 'calls'; known are join, call, publish, subscribe"),
        ({"deny": ["call", "Call"]}, ("deny",), "unknown action 'Call'"),
        ({"deny": 7}, ("deny",), "unknown action 7"),
        ({"allow": "call", "key": ""}, ("key",), "1 to 1000 characters"),
        ({"allow": "call", "node": "!"}, ("node",), "1 to 1000 characters"),
        ({"allow": "call", "node": []}, ("node",), "at least one"),
        ({"allow": "call", "node": ["a", 3]}, ("node",), "a pattern is text, not int"),
        ({"allow": "call", "service": "host.kill"}, ("service",), "'host.kill' is no pattern of a service"),
        ({"allow": "call", "service": "@nodes"}, ("service",), "or @node or @figures"),
        ({"allow": "call", "method": "@node"}, ("method",), "no pattern of a method"),
        ({"allow": "call", "method": "kill()"}, ("method",), "no pattern of a method"),
        ({"allow": "call", "key": "ops:secret"}, ("key",), "no pattern of a key id"),
        ({"allow": "call", "table": "t"}, ("table",), "belongs to publish and subscribe; a rule that is for call"),
        ({"allow": ["call", "publish"], "method": "m"}, ("method",), "belongs to call; a rule that is for publish"),
        ({"allow": "join", "service": "s"}, ("service",), "a rule that is for join"),
    ],
)
def test_a_rule_that_cannot_be_meant_is_refused(rule: dict[str, Any], key: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Permission(**rule)
    assert words in str(refused.value)
    assert refused.value.key == key


@pytest.mark.parametrize(
    ("listed", "words"),
    [
        ([], "at least one rule; leave them out to allow everything"),
        (
            [Permission(allow="call")],
            "no rule is about 'join', so that it would be denied to all: add a rule allow = \"join\"",
        ),
        (
            [REST, Permission(deny="call", method="kill")],
            "deny some of 'call' and none that allows it, so that all of it would be denied",
        ),
        ("allow", "a list of Permission, not str"),
        ([{"allow": "call"}], "permissions[0] is a Permission, not dict"),
        ([ALL] * 1001, "at most 1000 rules, not 1001"),
    ],
)
def test_a_list_that_would_shut_everybody_out_unsaid_is_refused(listed: Any, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Permissions(listed)
    assert words in str(refused.value)


def test_everything_of_an_action_may_be_denied_where_that_is_said() -> None:
    listed = [Permission(allow=["join", "subscribe"]), Permission(deny=["call", "publish"])]
    assert not allowed(listed, "call")
    assert not allowed(listed, "publish", name=None)
    assert allowed(listed, "subscribe")


def test_the_operator_is_told_which_rule_denied() -> None:
    decider = Permissions([ALL, Permission(deny="call", key="!ops", service="host", method=["kill", "stop"])])
    assert decider.explain("call", "web", "n", "host", "kill") == (
        "permissions[1] denies it (deny call, key !ops, service host, method kill, stop)"
    )
    assert decider.explain("call", "ops", "n", "host", "kill") == ""
    assert Permissions([REST, Permission(deny="call")]).explain("call", "k", "n", "s", "m") == (
        "permissions[1] denies it (deny call)"
    )
    assert Permissions([REST, Permission(allow="call", key="x")]).explain("call", "k", "n", "s", "m") == (
        "no rule allows it"
    )


def test_keys_that_rules_name_and_nobody_holds_are_found() -> None:
    decider = Permissions([ALL, Permission(deny="call", key=["ops", "!wbe", "w*"])])
    assert decider.unheld_keys(["ops", "web"]) == [(1, "wbe")]


# What a check costs, and that it cannot be made to cost memory.


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_IDENTITIES", 5)
    monkeypatch.setattr(module, "MOST_DECISIONS", 7)
    decider = Permissions([REST, Permission(allow="call", method="m*")])
    for number in range(100):
        assert decider.allows("call", "k", f"n{number}", "s", "m") is True
        assert decider.allows("call", "k", "n", "s", f"x{number}") is False
        assert len(decider._identities) <= 5
        assert sum(len(each.decisions) for each in decider._identities.values()) <= 7


def test_names_longer_than_any_can_be_are_not_remembered() -> None:
    decider = Permissions([REST, Permission(allow="call", method="m*")])
    for number in range(50):
        long = "m" * 300 + str(number)
        assert decider.allows("call", "k", "n", "s", long) is True
        assert decider.allows("call", "k", "n", long, "x") is False
        assert decider.allows("call", "k", long, "s", "m") is True
    assert [len(each.decisions) for each in decider._identities.values()] == [0]


def test_a_check_costs_a_fraction_of_a_microsecond_however_many_rules_there_are() -> None:
    decider = Permissions([Permission(deny="call", key=f"k{n}", node=f"*{n}*") for n in range(200)] + [ALL])
    best = min(_seconds(decider) for _ in range(20))
    assert best < 2e-6, f"{best * 1e9:.0f} ns"  # 400 ns on a slow machine; to ask 200 rules takes a hundred times that


def _seconds(decider: Permissions) -> float:
    allows = decider.allows
    began = time.perf_counter()
    for _ in range(1000):
        allows("call", "web", "web-1", "host", "kill")
    return (time.perf_counter() - began) / 1000


@pytest.mark.parametrize("name", ["a" * 1000, "a" * 999 + "b", "*" * 1000, "\x00" * 1000])
def test_a_hostile_name_does_not_hold_a_check_up(name: str) -> None:
    decider = Permissions([REST, Permission(allow="call", service="*a*a*a*a*a*a*a*a*a*a*c", method="*")])
    began = time.perf_counter()
    assert not decider.allows("call", "k", name, name, name)
    assert time.perf_counter() - began < 0.5
