"""Permissions in a run file: what is right becomes rules, what is wrong is said with its line; the page is true."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from dse import Permission
from dse.cli.run.file import RunFile, read_run_file
from dse.cli.run.problems import FileError
from dse.cli.run.reload import find_changes
from dse.core.keys import new_key
from dse.core.permissions import Permissions

KEYS = [new_key(name) for name in ("web", "ops")]
HEAD = f'transport = "fake://"\nkeys = {KEYS!r}\n'
OPEN = 'allow = ["join", "call", "publish", "subscribe"]\n'
PAGE = (Path(__file__).parents[2] / "docs" / "permissions.md").read_text()


def read(tmp_path: Path, text: str, **environment: str) -> RunFile:
    file = tmp_path / "run.toml"
    file.touch(mode=0o600)  # there are keys in it
    file.write_text(text)
    return read_run_file(str(file), environment=environment)


def wrong(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(FileError) as error:
        read(tmp_path, text)
    return [line.removeprefix(f"{tmp_path}/run.toml:") for line in error.value.lines]


def test_rules_become_permissions(tmp_path: Path) -> None:
    rule = 'deny = "call"\nkey = "!${WHO}"\nmethod = ["kill", "stop*"]\n'
    text = f"{HEAD}[[permissions]]\n{OPEN}\n[[permissions]]\n{rule}"
    file = read(tmp_path, text, WHO="ops")
    assert file.node.permissions == [
        Permission(allow=["join", "call", "publish", "subscribe"]),
        Permission(deny="call", key="!ops", method=["kill", "stop*"]),
    ]
    assert file.redact("key ops") == "key ops", "a name is no secret"
    node = file.node.make()
    assert node.permissions == tuple(file.node.permissions or ())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "[[permissions]]\nallow = 'all'\n",
            ["4: permissions[0].allow: 'all' is not allowed; did you mean 'call'? Known are"],
        ),
        (
            "[[permissions]]\nallow = ['call', 7]\n",
            ["4: permissions[0].allow[1]: must be 'join', 'call', 'publish' or"],
        ),
        (
            "[[permissions]]\nallow = 7\n",
            ["4: permissions[0].allow: must be 'join', 'call', 'publish' or 'subscribe' or an array of"],
        ),
        ("[[permissions]]\nkey = 'a'\n", ["3: permissions[0]: a rule has either allow or deny"]),
        (
            f"[[permissions]]\n{OPEN}\n[[permissions]]\ndeny = 'call'\nservices = 'host'\n",
            ["8: permissions[1].services: unknown key; did you mean 'service'? Known are"],
        ),
        (
            f"[[permissions]]\n{OPEN}\n[[permissions]]\ndeny = 'call'\nservice = ['a', 'host.kill']\n",
            ["8: permissions[1].service: 'host.kill' is no pattern of a service"],
        ),
        (
            "[[permissions]]\nallow = 'call'\ntable = 't'\n[[permissions]]\ndeny = 'join'\nnode = ''\n",
            ["5: permissions[0].table: belongs to publish and subscribe", "8: permissions[1].node: a pattern has 1 to"],
        ),
        ("[[permissions]]\nallow = ['call']\n", ["3: permissions: no rule is about 'join'"]),
        ("permissions = []\n", ["3: permissions: permissions are at least one rule; leave them out"]),
        ("permissions = 'all'\n", ["3: permissions: must be an array of tables, not a string"]),
        (
            f"node_id = 'n'\n[[permissions]]\n{OPEN}\n[[permissions]]\ndeny = 'join'\nkey = 'web'\n",
            ["4: permissions: node 'n' (key 'web') may not join itself: permissions[1] denies it (deny join, key web)"],
        ),
        (
            f"node_id = 'n'\n[[permissions]]\n{OPEN}\n[[permissions]]\ndeny = 'publish'\nservice = 'h*'\nkey = '!ops'\n"
            "[services.host]\nplugin = 'host'\n",
            ["11: services.host: node 'n' (key 'web') may not publish host by its own permissions: permissions[1]"],
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, text: str, said: list[str]) -> None:
    lines = wrong(tmp_path, HEAD + text)
    assert len(lines) == len(said), lines
    for line, expected in zip(lines, said, strict=True):
        assert line.startswith(expected)


def test_without_a_node_id_the_rules_are_judged_for_one_that_it_may_draw(tmp_path: Path) -> None:
    deny = '[[permissions]]\ndeny = "publish"\nkey = "web"\n[services.host]\nplugin = "host"\n'
    (line,) = wrong(tmp_path, f"{HEAD}[[permissions]]\n{OPEN}{deny}")
    assert "services.host: node " in line
    assert "may not publish host by its own permissions: permissions[1] denies it (deny publish, key web)" in line


def test_permissions_need_keys(tmp_path: Path) -> None:
    assert wrong(tmp_path, f'transport = "fake://"\n[[permissions]]\n{OPEN}') == [
        "2: permissions: permissions need keys: without keys a frame proves nothing, and whoever reaches the broker "
        "could say that it is any node"
    ]


def test_keys_that_are_wrong_do_not_hide_what_is_wrong_with_the_rules(tmp_path: Path) -> None:
    lines = wrong(tmp_path, 'transport = "fake://"\nkeys = ["x"]\n[[permissions]]\nallow = "call"\n')
    assert [line.split(":")[0] for line in lines] == ["2", "3"]
    assert "no rule is about 'join'" in lines[1]


def test_a_change_of_rules_alone_restarts_nothing(tmp_path: Path) -> None:
    one = read(tmp_path, f"{HEAD}[[permissions]]\n{OPEN}")
    two = read(tmp_path, f'{HEAD}[[permissions]]\n{OPEN}[[permissions]]\ndeny = "call"\nmethod = "kill"\n')
    changes = find_changes({}, one.node, {}, two.node)
    assert (changes.node, changes.permissions, bool(changes)) == ((), True, True)
    assert not find_changes({}, one.node, {}, one.node)
    with_workers = read(tmp_path, f"{HEAD}workers = 3\n[[permissions]]\n{OPEN}")
    assert find_changes({}, two.node, {}, with_workers.node).node == ("workers",)


# The page


def example(number: int) -> list[Permission]:
    block = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.M | re.S)[number]
    import tomllib

    return [Permission(**rule) for rule in tomllib.loads(block)["permissions"]]


def rows() -> list[tuple[str, ...]]:
    found = re.findall(r"^\| `(.*?)` with the key `(.*?)` \| (\w+)(?: to)?(?: `(.*?)`)? \| (yes|no) \|$", PAGE, re.M)
    assert len(found) == 11
    return found


@pytest.mark.parametrize(("node", "key", "action", "what", "answer"), rows())
def test_the_control_plane_of_the_page_decides_as_it_says(
    node: str, key: str, action: Any, what: str, answer: str
) -> None:
    rules = Permissions(example(2))
    if action == "join":
        allowed = rules.joins(key, node)
    else:
        service, name = what.split(".")
        allowed = rules.allows(action, key, node, service, name)
    assert allowed == (answer == "yes")
    assert (rules.explain(action, key, node, *(what.split(".") if what else ())) == "") == allowed


def test_the_messages_of_the_page_are_those_of_the_node() -> None:
    rules = Permissions(example(2))
    why = rules.explain("call", "control", "control-1", "host", "kill")
    assert f"may not call host.kill: {why} (denied_calls: 3 since the start)" in PAGE
    assert "does not let node 'control-1' (key 'control') call host.kill" in PAGE


def test_the_first_example_of_the_page_means_what_it_says() -> None:
    rules = Permissions(example(0))
    assert rules.allows("call", "ops", "n", "host", "kill")
    assert not rules.allows("call", "web", "n", "host", "kill")
    assert rules.allows("call", "web", "n", "host", "list")
