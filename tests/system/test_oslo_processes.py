"""Programs of oslo.messaging over DSE in several processes: what happens when one dies, or the broker does."""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dse.testing.broker import Broker
from dse.testing.contract.bus_peer import node_threads
from dse.testing.piped import PipedProcess
from dse.transports._oslo_library import oslo_messaging

sys.path.insert(0, str(Path(__file__).parent.parent / "unit"))
from oslo_programs import Audience, Endpoint, Programs, soon

Start = Callable[..., "Child"]


class Child(PipedProcess):
    """A process of `oslo_child`."""

    def call(self, target: dict[str, Any], method: str, **arguments: Any) -> Any:
        return json.loads(self.ask(json.dumps([target, method, arguments]), 30))


@pytest.fixture
def bus() -> str:
    return f"test-{secrets.token_hex(4)}"


@pytest.fixture
def programs(redis_server: Broker, bus: str) -> Iterator[Programs]:
    made = Programs(f"dse+{redis_server.url}?bus={bus}&heartbeat=2")
    try:
        yield made
    finally:
        made.close()
    soon(lambda: not node_threads())
    soon(lambda: not redis_server.leftovers(bus))


@pytest.fixture
def start(programs: Programs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Start]:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    children: list[Child] = []

    def start_one(name: str, threads: str = "threads") -> Child:
        with open(tmp_path / f"{name}.err", "w") as stderr:
            child = Child("oslo_child", programs.url, programs.topic, name, threads, stderr=stderr)
        children.append(child)
        assert json.loads(child.answer(60)) == "ready", (tmp_path / f"{name}.err").read_text()
        return child

    yield start_one
    for child in children:
        assert child.process.stdin is not None
        child.process.stdin.close()
    for child in children:
        child.process.wait(20)


def test_processes_share_the_calls_of_a_topic_and_all_hear_a_fanout(programs: Programs, start: Start) -> None:
    children = {name: start(name) for name in ("a", "b")}
    client = programs.client()
    with ThreadPoolExecutor(8) as threads:
        pids = Counter(threads.map(lambda _: client.call({}, "pid"), range(200)))
    assert pids.keys() == {child.pid for child in children.values()}
    assert children["a"].call({"server": "b"}, "who") == "b"
    client.prepare(fanout=True).cast({}, "tell", what="all")
    for name in children:
        soon(lambda name=name: client.prepare(server=name).call({}, "told") == ["all"])


def test_a_server_killed_during_a_call_is_missed_in_time_and_the_others_go_on(programs: Programs, start: Start) -> None:
    child = start("victim")
    client = programs.client(timeout=60, call_monitor_timeout=2)
    assert client.call({}, "who") == "victim"

    def missed() -> float:
        with pytest.raises(oslo_messaging.MessagingTimeout):
            client.call({}, "last", seconds=50)
        return time.monotonic()

    with ThreadPoolExecutor(1) as thread:
        missed_at = thread.submit(missed)
        soon(lambda: client.call({}, "told") == ["last"])
        os.kill(child.pid, signal.SIGKILL)
        killed_at = time.monotonic()
        start("other")
        assert client.call({}, "who") == "other"
        assert missed_at.result(10) - killed_at < 5


def test_after_a_restart_of_the_broker_all_goes_on(programs: Programs, start: Start, redis_server: Broker) -> None:
    start("there")
    plain, pooled = Audience(), Audience()
    programs.listener(plain)
    programs.listener(pooled, pool="p")
    notifier = programs.notifier()
    notifier.info({}, "event", "before")
    soon(lambda: plain.heard and pooled.heard)
    programs.server(endpoint := Endpoint("here"), "here")
    client = programs.client(timeout=20)
    assert client.prepare(server="there").call({}, "who") == "there"
    redis_server.stop()
    try:
        soon(lambda: not client.transport._driver._connection.connected)
        began = time.monotonic()
        with pytest.raises(oslo_messaging.MessagingTimeout):
            client.prepare(timeout=0.5).call({}, "who")
        with pytest.raises(oslo_messaging.MessageDeliveryFailure, match="could not be reached, after 0 retries"):
            client.prepare(retry=0).cast({}, "tell", what="lost")
        assert time.monotonic() - began < 3
        with ThreadPoolExecutor(2) as threads:
            call = threads.submit(client.prepare(server="there").call, {}, "who")
            cast = threads.submit(client.prepare(server="here").cast, {}, "tell", what="late")
            redis_server.start()
            assert call.result(20) == "there"
            cast.result(20)
    finally:
        redis_server.start()
    assert endpoint.told.get(timeout=10) == "late"
    soon(lambda: notifier.transport._driver._connection.connected)
    notifier.info({}, "event", "after")
    soon(lambda: plain.heard[-1][2] == pooled.heard[-1][2] == "after")
    assert [[n for _, _, n in audience.heard] for audience in (plain, pooled)] == [["before", "after"]] * 2
    soon(lambda: {client.call({}, "who") for _ in range(20)} == {"here", "there"})


def test_an_answer_that_is_ready_while_the_broker_is_away_comes_when_it_is_back(
    programs: Programs, redis_server: Broker
) -> None:
    server_side = programs.transport()
    programs.server(endpoint := Endpoint("kept"), on=server_side)
    client = programs.client(timeout=30)
    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(client.call, {}, "wait")
        assert endpoint.entered.wait(10)
        redis_server.stop()
        try:
            soon(lambda: not server_side._driver._connection.connected)
            endpoint.go_on.set()
            assert endpoint.left.wait(10)  # the answer is tried, and is not lost by it
        finally:
            redis_server.start()
        assert answer.result(20) == "kept"


def test_a_broker_that_hangs_keeps_nobody_longer_than_his_timeout(
    programs: Programs, start: Start, redis_server: Broker
) -> None:
    start("there")
    client = programs.client(timeout=20)
    assert client.call({}, "who") == "there"
    redis_server.pause()
    try:
        began = time.monotonic()
        with pytest.raises(oslo_messaging.MessagingTimeout):
            client.prepare(timeout=1).call({}, "who")
        assert time.monotonic() - began < 4
    finally:
        redis_server.resume()
    assert client.call({}, "who") == "there"


def test_a_program_started_before_its_broker_waits_for_it(programs: Programs, redis_server: Broker) -> None:
    redis_server.stop()
    try:
        with ThreadPoolExecutor(2) as threads:
            server = threads.submit(programs.server, Endpoint("early"))
            call = threads.submit(programs.client(timeout=30).call, {}, "who")
            assert not server.done()
            redis_server.start()
            assert call.result(20) == "early"
            server.result(20)
    finally:
        redis_server.start()


def test_a_program_that_forks_has_a_connection_in_each_process(programs: Programs) -> None:
    on = programs.transport()
    programs.server(Endpoint("parent"), "parent")
    client = programs.client(on=on)
    assert client.call({}, "who") == "parent"
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, json.dumps([client.call({}, "who"), client.call({}, "echo", x=1)]).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        assert json.loads(pipe.read()) == ["parent", {"context": {}, "arguments": {"x": 1}}]
    os.waitpid(child, 0)
    assert client.call({}, "who") == "parent"


def test_a_program_that_eventlet_has_patched_serves_and_calls_as_any_other(programs: Programs, start: Start) -> None:
    programs.server(Endpoint("threads"), "threads")
    child = start("green", "eventlet")
    assert child.call({"server": "threads"}, "who") == "threads"
    assert child.call({"server": "threads"}, "echo", x=[1]) == {"context": {}, "arguments": {"x": [1]}}
    assert child.call({"server": "green"}, "who") == "green"
    client = programs.client(server="green")
    with ThreadPoolExecutor(8) as threads:
        began = time.monotonic()
        assert list(threads.map(lambda _: client.call({}, "last", seconds=0.5), range(8))) == ["green"] * 8
        assert time.monotonic() - began < 3.5, "its coroutines did not run at once"
    assert client.prepare(call_monitor_timeout=2).call({}, "last", seconds=2.5) == "green"
