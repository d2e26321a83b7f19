"""Permissions over a real broker: processes that run from files with rules, and one that has another key."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dse import DataService, Node, Observer, Permission, Replica, ReplicaState, Untrusted
from dse.core.keys import new_key
from dse.errors import NoSuchService
from dse.testing.brokers import Broker
from dse.testing.contract.recorder import eventually

sys.path.insert(0, str(Path(__file__).parent))

from test_run import Supervised, outside  # noqa: F401  the fixture installs the plugin `probe`

DEADLINE = 20.0
AT_ONCE = 2.0
WEB, OPS, HOST = (new_key(name) for name in ("web", "ops", "host"))
ALL = Permission(allow=["join", "call", "publish", "subscribe"])
OPEN = '[[permissions]]\nallow = ["join", "call", "publish", "subscribe"]\n'
NO_PID = OPEN + '[[permissions]]\ndeny = "call"\nservice = "a"\nmethod = "pid"\nkey = "!ops"\n'
NOT_SEEN = OPEN + '[[permissions]]\ndeny = "subscribe"\ntable = "seen"\nkey = "!ops"\n'

Run = Callable[..., Supervised]


@pytest.fixture
def bus() -> str:
    return f"permissions-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def run(tmp_path: Path, outside: Path, redis_server: Broker, bus: str) -> Iterator[Run]:  # noqa: F811
    """Start a `dse run` with the key `host`, the plugin `probe` as service `a`, and these rules."""
    made: list[Supervised] = []

    def run(node_id: str, rules: str, *, keys: list[str] | None = None, ready: bool = True) -> Supervised:
        folder = tmp_path / node_id
        folder.mkdir()
        first, second, third = keys or [HOST, WEB, OPS]
        process = Supervised(folder, outside, URL=redis_server.url, KEY=first, KEY2=second, KEY3=third)
        made.append(process)
        process.write(file(node_id, rules, bus=bus))
        process.start()
        if ready:
            process.until_told("READY=1")
        return process

    yield run
    for process in made:
        process.close()


def file(node_id: str, rules: str, *, bus: str, value: int = 1) -> str:
    keys = 'keys = ["${KEY}", "${KEY2}", "${KEY3}"]'
    return (
        f'transport = "${{URL}}"\nbus = "{bus}"\nnode_id = "{node_id}"\n{keys}\n{rules}\n'
        f'[services.a]\nplugin = "probe"\ndiary = "diary"\nvalue = {value}\n'
    )


@pytest.fixture
def node(redis_server: Broker, bus: str) -> Iterator[Callable[..., Node]]:
    """Start a node in this process; its first key is the one that is named."""
    nodes: list[Node] = []

    def node(*keys: str, permissions: list[Permission] | None = None) -> Node:
        node_id = f"{keys[0].partition(':')[0]}-{uuid.uuid4().hex[:6]}"
        made = Node(redis_server.url, bus=bus, node_id=node_id, keys=keys, permissions=permissions)
        nodes.append(made)
        made.start()
        return made

    yield node
    for each in nodes:
        each.stop()


def follow(node: Node, service: str, table: str) -> Replica:
    follower = DataService(f"follower_{uuid.uuid4().hex}")
    node.register(follower)
    return follower.subscribe(service, table, patient=True)


def refused(node: Node, method: str, node_id: str | None = None) -> None:
    began = time.monotonic()
    with pytest.raises(Untrusted):
        node.call("a", method, timeout=DEADLINE, node_id=node_id)
    assert time.monotonic() - began < AT_ONCE


def denied(node: Node, node_id: str) -> int:
    """How often a node of another process has denied something, by its own figures."""
    figures = node.call_node(node_id, "_dse_figures", timeout=DEADLINE)
    return int(figures["counters"]["denied"])


def test_a_call_from_another_process_is_denied_by_its_key(run: Run, node: Callable[..., Node]) -> None:
    process = run("h1", NO_PID)
    web, ops = node(WEB, HOST), node(OPS, HOST)
    for each in (web, ops):
        each.wait_for("a", DEADLINE)
    assert web.call("a", "get", timeout=DEADLINE) == 1
    refused(web, "pid")
    refused(web, "pid", "h1")
    assert process.process is not None
    assert ops.call("a", "pid", timeout=DEADLINE) == process.process.pid
    assert denied(ops, "h1") == 2
    line = process.until_logged("denied:")
    assert f"node {web.node_id!r} (key 'web') may not call a.pid: permissions[1] denies it" in line
    assert process.end() == 0


def test_a_broadcast_to_processes_is_answered_by_each_as_its_rules_say(run: Run, node: Callable[..., Node]) -> None:
    run("h1", NO_PID)
    lax = run("h2", OPEN)
    web = node(WEB, HOST)
    eventually(lambda: len(web.control_bus.replicas.get("a", ())) == 2, "both are known", DEADLINE)
    outcomes = web.call_all("a", "pid", timeout=DEADLINE)
    assert isinstance(outcomes["h1"].error, Untrusted)
    assert lax.process is not None
    assert outcomes["h2"].result == lax.process.pid
    for _ in range(5):
        web.broadcast("a", "pid")
    eventually(lambda: denied(web, "h1") == 6, "what is cast is counted", DEADLINE)
    assert denied(web, "h2") == 0


def test_a_denied_subscriber_in_another_process_gets_no_row(run: Run, node: Callable[..., Node]) -> None:
    run("h1", NOT_SEEN)
    web, ops = node(WEB, HOST), node(OPS, HOST)
    replica, allowed = follow(web, "a", "seen"), follow(ops, "a", "seen")
    with pytest.raises(
        Untrusted, match=rf"node 'h1' does not let node {web.node_id!r} \(key 'web'\) subscribe to a\.seen"
    ):
        replica.wait(ReplicaState.LIVE, DEADLINE)
    allowed.wait(lambda each: set(each) == {(1,)}, DEADLINE)
    assert (len(replica), replica.columns) == (0, ())
    assert list(web.status().untrusted) == ["a.seen"]


def test_what_a_key_may_not_publish_nobody_sees(run: Run, node: Callable[..., Node]) -> None:
    run("rogue", OPEN, keys=[WEB, HOST, OPS])
    rules = [
        Permission(allow=["join", "call", "subscribe"]),
        Permission(allow="publish", key="host"),
        Permission(allow="publish", service="follower_*"),
    ]
    ops = node(OPS, HOST, WEB, permissions=rules)
    eventually(lambda: ops.status().counters.get("denied_publishers", 0) > 0, "it is left out", DEADLINE)
    assert ops.status().peers["rogue"].services == ()
    replica = follow(ops, "a", "seen")
    with pytest.raises((Untrusted, NoSuchService)):
        ops.call("a", "get", timeout=DEADLINE)
    with pytest.raises(Untrusted):
        ops.call("a", "get", node_id="rogue", timeout=DEADLINE)
    run("h1", OPEN)
    replica.wait(ReplicaState.LIVE, DEADLINE)
    assert set(ops.call_all("a", "get", timeout=DEADLINE)) == {"h1"}


def test_a_file_that_denies_its_own_service_is_wrong(run: Run) -> None:
    process = run("h1", OPEN + '[[permissions]]\ndeny = "publish"\nservice = "a"\n', ready=False)
    assert process.code() == 2
    assert process.log == [
        f"{process.file}:11: services.a: node 'h1' (key 'host') may not publish a by its own permissions: "
        "permissions[1] denies it (deny publish, service a)"
    ]


def test_other_rules_apply_at_a_reload_and_nothing_restarts(run: Run, node: Callable[..., Node], bus: str) -> None:
    process = run("h1", OPEN)
    web = node(WEB, HOST)
    web.wait_for("a", DEADLINE)
    replica = follow(web, "a", "seen")
    replica.wait(ReplicaState.LIVE, DEADLINE)
    web.call("a", "pid", timeout=DEADLINE)
    process.reload(file("h1", NO_PID + NOT_SEEN.removeprefix(OPEN), bus=bus))
    assert "enforces other permissions" in process.log[-1]
    refused(web, "pid")
    with pytest.raises(Untrusted):
        replica.wait(lambda each: False, DEADLINE)
    assert (replica.state, len(replica)) == (ReplicaState.STALE, 1)

    before = len(process.log)
    process.reload(file("h1", '[[permissions]]\nallow = "call"\n', bus=bus), says="is wrong: what runs goes on")
    process.reload(
        file("h1", OPEN + '[[permissions]]\ndeny = "publish"\n', bus=bus), says="is wrong: what runs goes on"
    )
    assert [line for line in process.log[before:] if "may not publish a by its own permissions" in line]
    refused(web, "pid")

    process.reload(file("h1", "", bus=bus))
    web.call("a", "pid", timeout=DEADLINE)
    eventually(lambda: replica.state is ReplicaState.LIVE and replica.error is None, "it follows again", DEADLINE)
    process.reload(file("h1", NO_PID, bus=bus, value=2))  # together with a service that restarts
    refused(web, "pid")
    replica.wait(lambda each: (2,) in each, DEADLINE)
    diary = process.diary_lines()
    assert process.end() == 0
    assert diary == ["starting a 1", "started a 1", "stopped a 1", "starting a 2", "started a 2"]


def test_while_rules_are_rolled_out_nothing_hangs(run: Run, node: Callable[..., Node], bus: str) -> None:
    processes = {name: run(name, OPEN) for name in ("h1", "h2")}
    web = node(WEB, HOST)
    eventually(lambda: len(web.control_bus.replicas.get("a", ())) == 2, "both are known", DEADLINE)
    replica = follow(web, "a", "seen")
    replica.wait(ReplicaState.LIVE, DEADLINE)
    over = threading.Event()
    answers = {"yes": 0, "no": 0}
    slowest = 0.0
    failed: list[BaseException] = []

    def call() -> None:
        nonlocal slowest
        while not over.is_set():
            began = time.monotonic()
            try:
                web.call("a", "get", timeout=DEADLINE)
                answers["yes"] += 1
            except Untrusted:
                answers["no"] += 1
            except BaseException as error:
                failed.append(error)
                return
            slowest = max(slowest, time.monotonic() - began)

    thread = threading.Thread(target=call)
    thread.start()
    strict = OPEN + '[[permissions]]\ndeny = ["call", "subscribe"]\nservice = "a"\nkey = "web"\n'
    try:
        processes["h1"].reload(file("h1", strict, bus=bus))
        eventually(lambda: replica.state is ReplicaState.LIVE, "the other one is followed", DEADLINE)
        assert replica.error is None
        eventually(lambda: answers["no"] > 0, "one of them denies", DEADLINE)
        processes["h2"].reload(file("h2", strict, bus=bus))
        eventually(lambda: replica.error is not None, "both deny", DEADLINE)
        said_no = answers["no"]
        eventually(lambda: answers["no"] > said_no + 10, "both deny calls", DEADLINE)
        for name, process in processes.items():
            process.reload(file(name, OPEN, bus=bus))
        eventually(lambda: replica.state is ReplicaState.LIVE and replica.error is None, "it follows again", DEADLINE)
    finally:
        over.set()
        thread.join(DEADLINE)
    assert failed == []
    assert slowest < AT_ONCE
    web.call("a", "get", timeout=DEADLINE)


def test_a_tool_sees_the_figures_only_where_it_may(run: Run, redis_server: Broker, bus: str) -> None:
    run("h1", OPEN + '[[permissions]]\ndeny = "call"\nservice = "@figures"\nkey = "!ops"\n')
    for key, seen in ((OPS, True), (WEB, False)):
        with Observer(redis_server.url, bus=bus, keys=[key, HOST]) as observer:
            eventually(lambda observer=observer: "h1" in observer.status().peers, "it is seen", DEADLINE)  # type: ignore[misc]
            assert (observer.figures(2.0)["h1"] is not None) is seen


def test_dse_watch_and_call_say_that_they_may_not(run: Run, redis_server: Broker, bus: str, tmp_path: Path) -> None:
    run("h1", NO_PID + NOT_SEEN.removeprefix(OPEN))
    keys = tmp_path / "keys"
    keys.touch(mode=0o600)
    keys.write_text(f"{WEB}\n{HOST}\n")
    where = ["--transport", redis_server.url, "--bus", bus, "--keys", str(keys)]
    for command, words in (
        (["watch", "a:seen", "--seconds", "20"], "dse watch: Untrusted: node 'h1' does not let node"),
        (["call", "a", "pid"], "Untrusted: node 'h1' does not let node"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "dse.cli.main", *command, *where], capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stdout) == (1, ""), done
        assert words in done.stderr
