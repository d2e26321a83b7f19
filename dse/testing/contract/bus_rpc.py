"""Level 2: calls."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from typing import Any

import pytest

from dse.core.transport import Transport
from dse.errors import (
    CallTimeout,
    ConfigError,
    FrameTooLarge,
    InvalidArguments,
    NodeLost,
    NoSuchMethod,
    NoSuchService,
    Overloaded,
    RemoteError,
    RpcError,
)
from dse.testing.contract.bus_network import BEAT, MARGIN, Network, together
from dse.testing.contract.bus_services import KnownError, Worker
from dse.testing.contract.fixtures import Contract, needs, within
from dse.testing.contract.recorder import DEADLINE, PROMPT, assert_each_once, eventually

__all__ = ["TestCalls", "TestLoad", "TestLostCallee"]

VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -(2**63),
    2**64 - 1,
    0.5,
    float("inf"),
    "",
    "Grüße \U0001f680 \x00",
    b"",
    bytes(range(256)),
    [],
    {},
    [1, [2, [b"3", None]], {"four": {"five": [5.5]}}],
    {"": 0, "key with spaces": [True]},
    "long" * 100_000,
]


class TestCalls(Contract):
    """A call returns what the method returned, on whichever node it ran, or a typed error that says why it did not."""

    guarantee = "calls"

    def test_values_of_all_kinds_go_and_come_back(self, network: Network) -> None:
        node, _ = network.pair({"local": Worker}, {"remote": Worker})
        for service_id in ("local", "remote"):
            for value in VALUES:
                got = node.call(service_id, "echo", {"value": value})
                assert got == value
                assert type(got) is type(value)
            assert node.call(service_id, "echo", {"value": (1, 2)}) == [1, 2]
            assert node.call(service_id, "caller") == node.node_id
            assert node.call(service_id, "relay", {"service_id": "remote", "method": "echo", "args": {"value": 1}}) == 1
            assert node.call(service_id, "typed", {"count": 1}) == [1, "nobody", None]
            assert node.call(service_id, "typed", {"count": 2, "tags": ["a"], "name": "b"}) == [2, "b", ["a"]]

    def test_arguments_that_do_not_fit_are_refused_by_name(self, network: Network) -> None:
        node, other = network.pair({"local": Worker}, {"remote": Worker})
        for service_id in ("local", "remote"):
            for args, why in (
                ({}, "count"),
                (None, "count"),
                ({"count": 1, "surplus": 2}, "surplus"),
                ({"count": "1"}, "count"),
                ({"count": 1.5}, "count"),
                ({"count": None}, "count"),
                ({"count": 1, "name": b"bytes"}, "name"),
                ({"count": 1, "tags": ["a", 1]}, "tags"),
                ({"count": 1, "name": object()}, "name"),
            ):
                with pytest.raises(InvalidArguments, match=why):
                    node.call(service_id, "typed", args)
            with pytest.raises(NoSuchMethod, match="echo"):
                node.call(service_id, "nothing_like_it")
            for hidden in ("on_start", "ran", "__init__", "_call"):
                with pytest.raises(NoSuchMethod):
                    node.call(service_id, hidden)
            # One that comes out of the method is the method's own.
            with pytest.raises(RemoteError, match="raised by the method itself"):
                node.call(service_id, "refuse")
        assert other.ask("remote", "ran") == []
        for name in ("", "no identifier", "a.b", 1):
            with pytest.raises(ConfigError):
                node.call(name, "echo", {"value": 1})  # type: ignore[arg-type]
        for timeout in (0, -1, float("nan"), float("inf"), "1"):
            with pytest.raises(InvalidArguments, match="timeout"):
                node.call("remote", "echo", {"value": 1}, timeout=timeout)  # type: ignore[arg-type]
        assert node.call("remote", "echo", {"value": "still there"}) == "still there"

    def test_a_service_that_nobody_offers_fails_at_once(self, network: Network) -> None:
        node = network.here({"mine": Worker})
        for _ in range(2):  # right after the start, and later
            with within(PROMPT, "a call to nobody"), pytest.raises(NoSuchService, match="absent"):
                node.call("absent", "echo", {"value": 1}, timeout=30)
            with within(PROMPT, "a call to nobody"), pytest.raises(NoSuchService):
                node.call_async("absent", "echo", {"value": 1}, timeout=30).result(30)
            with pytest.raises(NoSuchService):
                node.call_all("absent", "echo", {"value": 1}, timeout=30)
            network.far({"other": Worker})
            node.wait_for("other", DEADLINE)
        with within(PROMPT, "a call to a node without the service"), pytest.raises(NoSuchService):
            node.call("other", "echo", {"value": 1}, timeout=30, node_id=node.node_id)
        with within(PROMPT, "a call to no node"), pytest.raises(NoSuchService, match="absent"):
            node.call("other", "echo", {"value": 1}, timeout=30, node_id="absent")
        with within(PROMPT, "a call to no node"), pytest.raises(NodeLost, match="absent"):
            node.call_node("absent", "ping", {"text": "x"}, timeout=30)

    def test_a_service_is_found_right_after_its_node_has_started(self, network: Network) -> None:
        node = network.here()
        for turn in range(3):
            network.far({f"late{turn}": Worker})
            assert node.call(f"late{turn}", "echo", {"value": turn}) == turn

    def test_exceptions_of_the_method_come_with_type_message_and_traceback(self, network: Network) -> None:
        node, _ = network.pair({"local": Worker}, {"remote": Worker})
        for service_id in ("local", "remote"):
            with pytest.raises(RemoteError) as caught:
                node.call(service_id, "fail", {"text": "not there: ä \ud800".encode("utf-8", "replace").decode()})
            assert caught.value.type_name == "LookupError"
            assert "not there: ä" in caught.value.message
            assert "in fail" in caught.value.traceback
            assert "LookupError" in str(caught.value)
            with pytest.raises(KnownError) as known:
                node.call(service_id, "fail_known", {"what": "pump", "number": 7})
            assert (known.value.what, known.value.number) == ("pump", 7)
            with pytest.raises(RemoteError) as unsendable:
                node.call(service_id, "unsendable")
            assert "object" in str(unsendable.value)
            assert node.call(service_id, "echo", {"value": 1}) == 1

    def test_what_is_too_large_for_a_frame_says_so(self, network: Network, transport_class: type[Transport]) -> None:
        node, _ = network.pair({}, {"remote": Worker})
        limit = transport_class.capabilities.max_frame
        with pytest.raises(FrameTooLarge):
            node.call("remote", "length", {"data": bytes(limit + 1)})
        with pytest.raises(RemoteError, match=r"FrameTooLarge"):
            node.call("remote", "big", {"size": limit + 1})
        fits = limit - 4096
        assert node.call("remote", "length", {"data": bytes(fits)}) == fits
        assert len(node.call("remote", "big", {"size": fits})) == fits

    def test_a_timeout_is_kept_and_says_how_far_the_call_got(self, network: Network) -> None:
        node, other = network.pair({}, {"remote": Worker})
        began = time.monotonic()
        with pytest.raises(CallTimeout, match=other.node_id) as caught:
            node.call("remote", "hold", {"key": "held"}, timeout=3)  # time to ask the callee, on a busy machine too
        assert 3 <= time.monotonic() - began < 3 + PROMPT
        assert isinstance(caught.value, TimeoutError)
        assert "accepted" in str(caught.value)
        began = time.monotonic()
        with pytest.raises(CallTimeout):
            node.call_async("remote", "hold", {"key": "held"}, timeout=0.3).result(DEADLINE)
        assert 0.3 <= time.monotonic() - began < 0.3 + PROMPT
        other.ask("remote", "let_go")
        assert node.call("remote", "hold", {"key": "later"}) == "later"

    def test_futures_asyncio_and_proxies_are_calls_too(self, network: Network) -> None:
        node, _ = network.pair({}, {"remote": Worker})
        futures = [node.call_async("remote", "echo", {"value": number}) for number in range(20)]
        assert [future.result(DEADLINE) for future in futures] == list(range(20))
        with pytest.raises(RemoteError, match="in the future"):
            node.call_async("remote", "fail", {"text": "in the future"}).result(DEADLINE)
        done = threading.Event()
        node.call_async("remote", "echo", {"value": 1}).add_done_callback(lambda _: done.set())
        assert done.wait(DEADLINE)

        async def several() -> list[Any]:
            return await asyncio.gather(*(node.acall("remote", "echo", {"value": n}) for n in range(20)))

        assert asyncio.run(several()) == list(range(20))
        proxy = node.proxy("remote")
        assert proxy.typed(count=3, name="proxy") == [3, "proxy", None]
        with pytest.raises(RemoteError, match="by proxy"):
            proxy.fail(text="by proxy")
        with pytest.raises(InvalidArguments):
            proxy.echo(1)

    def test_all_replicas_can_be_called_or_one_of_them_chosen(self, network: Network) -> None:
        node, first, second = together(
            lambda: network.here({"many": Worker}),
            lambda: network.far({"many": Worker}),
            lambda: network.far({"many": Worker, "elsewhere": Worker}),
        )
        network.meet(node, "many", first, second)
        nodes = {node.node_id, first.node_id, second.node_id}
        for node_id in nodes:
            assert node.call("many", "mark", {"key": "chosen"}, node_id=node_id) == node_id
        outcomes = node.call_all("many", "mark", {"key": "all"})
        assert {name: outcome.unwrap() for name, outcome in outcomes.items()} == {name: name for name in nodes}
        failed = node.call_all("many", "fail", {"text": "everywhere"})
        assert set(failed) == nodes
        assert all(isinstance(outcome.error, RemoteError) and not outcome.ok for outcome in failed.values())

        node.broadcast("many", "mark", {"key": "broadcast"})
        node.cast("many", "mark", {"key": "cast"}, node_id=first.node_id)
        node.cast("elsewhere", "mark", {"key": "cast elsewhere"})
        for far in (first, second):
            far.ask("many", "wait_ran", "broadcast")
        first.ask("many", "wait_ran", "cast")
        second.ask("elsewhere", "wait_ran", "cast elsewhere")
        here = node.service("many")
        assert isinstance(here, Worker)
        here.wait_ran("broadcast")
        for ran in (here.ran(), first.ask("many", "ran"), second.ask("many", "ran")):
            assert ran.count("broadcast") == ran.count("all") == ran.count("chosen") == 1
        assert "cast" not in second.ask("many", "ran")
        with pytest.raises(NoSuchService):
            node.cast("many", "mark", {"key": "x"}, node_id="absent")

    def test_nodes_answer_for_themselves(self, network: Network) -> None:
        node, other = network.pair({}, {"any": Worker})
        assert node.call_node(other.node_id, "ping", {"text": "x"}) == "pong x"
        assert node.call_node(node.node_id, "ping", {"text": "myself"}) == "pong myself"
        with pytest.raises(NoSuchMethod, match="ping"):
            node.call_node(other.node_id, "nothing")
        with pytest.raises(InvalidArguments, match="text"):
            node.call_node(other.node_id, "ping")
        third = network.here()
        third.broadcast_nodes("ping", {"text": "everybody"})
        for each in (node, third):
            (endpoint,) = {method.function.__self__ for method in each.endpoints.values()}  # type: ignore[attr-defined]
            eventually(lambda heard=endpoint.heard: "everybody" in heard, f"{each} hears it")  # type: ignore[misc]

    def test_nothing_mutable_is_shared_between_caller_and_callee(self, network: Network) -> None:
        node = network.here({"local": Worker})
        service = node.service("local")
        assert isinstance(service, Worker)
        given: list[Any] = [1, [2]]
        got = node.call("local", "keep", {"value": given})
        assert got == given == service.kept
        given[1].append("the caller's")
        got[1].append("the result's")
        assert service.kept == [1, [2]]


class TestLoad(Contract):
    """Calls from many threads run at once, each at most once; what is too much, or too late, is not run."""

    guarantee = "load"

    def test_sixteen_threads_call_at_once_and_every_call_is_run_once(self, network: Network) -> None:
        node, other = network.pair({"local": Worker}, {"remote": Worker})
        keys = [[f"{thread}-{number}" for number in range(40)] for thread in range(16)]

        def call(mine: list[str]) -> None:
            for key in mine:
                assert node.call("remote", "mark", {"key": key}) == other.node_id
                assert node.call("local", "echo", {"value": key}) == key
                assert node.call("remote", "echo", {"value": key}) == key

        together(*(lambda mine=mine: call(mine) for mine in keys))
        assert_each_once(other.ask("remote", "ran"), (key for mine in keys for key in mine))

    def test_methods_run_at_the_same_time(self, network: Network) -> None:
        node, other = network.pair({}, {"remote": Worker})
        held = [node.call_async("remote", "hold", {"key": f"held {n}"}) for n in range(8)]
        for number in range(8):
            other.ask("remote", "wait_ran", f"held {number}")
        assert node.call("remote", "echo", {"value": "beside"}) == "beside"
        other.ask("remote", "let_go")
        assert [future.result(DEADLINE) for future in held] == [f"held {n}" for n in range(8)]
        with within(PROMPT, "40 coroutines of 0.5 s at the same time"):
            waiting = [node.call_async("remote", "amark", {"key": f"a {n}", "seconds": 0.5}) for n in range(40)]
            assert {future.result(DEADLINE) for future in waiting} == {other.node_id}

    def test_a_method_that_was_brief_so_far_holds_nothing_up_when_it_blocks(self, network: Network) -> None:
        node, other = network.pair({}, {"remote": Worker})
        for turn in range(2):
            other.ask("remote", "let_go")
            for number in range(100):
                assert node.call("remote", "hold", {"key": f"open {turn} {number}"}) == f"open {turn} {number}"
            other.ask("remote", "close_gate")
            held = [node.call_async("remote", "hold", {"key": f"held {turn} {n}"}) for n in range(4)]
            for n in range(4):
                other.ask("remote", "wait_ran", f"held {turn} {n}")
            with within(PROMPT, "what others do beside methods that block"):
                for number in range(50):
                    assert node.call("remote", "echo", {"value": number}) == number
            assert not any(future.done() for future in held)
            other.ask("remote", "let_go")
            assert [future.result(DEADLINE) for future in held] == [f"held {turn} {n}" for n in range(4)]

    def test_brief_methods_may_call_back(self, network: Network) -> None:
        node, other = network.pair({"here": Worker}, {"remote": Worker})
        other.ask("remote", "wait_service", "here")

        def relayed(service_id: str, method: str, args: dict[str, Any]) -> dict[str, Any]:
            return {"service_id": service_id, "method": method, "args": args}

        with within(DEADLINE, "calls that go to and fro"):
            for number in range(60):
                assert node.call("remote", "relay", relayed("here", "echo", {"value": number})) == number
                there_and_back = relayed("remote", "echo", {"value": number})
                assert node.call("remote", "relay", relayed("here", "relay", there_and_back)) == number

    def test_more_than_may_wait_is_refused_at_once(self, network: Network) -> None:
        node, other = network.pair({}, {"remote": Worker}, workers=1, max_pending=3)
        busy = node.call_async("remote", "hold", {"key": "busy"}, timeout=DEADLINE)
        other.ask("remote", "wait_ran", "busy")
        waiting = [node.call_async("remote", "mark", {"key": f"{n}"}, timeout=DEADLINE) for n in range(3)]
        with within(PROMPT, "to be refused"), pytest.raises(Overloaded, match=other.node_id):
            node.call("remote", "mark", {"key": "too many"}, timeout=30)
        other.ask("remote", "let_go")
        assert busy.result(DEADLINE) == "busy"
        assert [future.result(DEADLINE) for future in waiting] == [other.node_id] * 3
        assert node.call("remote", "mark", {"key": "again"}) == other.node_id
        assert other.ask("remote", "ran") == ["busy", "0", "1", "2", "again"]

    def test_a_request_past_its_deadline_is_not_run(self, network: Network) -> None:
        node, other = network.pair({}, {"remote": Worker}, workers=1)
        busy = node.call_async("remote", "hold", {"key": "busy"}, timeout=DEADLINE)
        other.ask("remote", "wait_ran", "busy")
        late = [node.call_async("remote", "mark", {"key": "late"}, timeout=0.3) for _ in range(3)]
        for future in late:
            with pytest.raises(CallTimeout):
                future.result(DEADLINE)
        time.sleep(0.3)  # the callee's deadline is the caller's and what the journey took
        other.ask("remote", "let_go")
        assert busy.result(DEADLINE) == "busy"
        node.call("remote", "mark", {"key": "in time"})
        assert other.ask("remote", "ran") == ["busy", "in time"]


class TestLostCallee(Contract):
    """Whoever waits for a node that is killed or leaves is told as soon as it is known; what may be repeated, is."""

    guarantee = "lost-callee"

    def test_a_killed_node_loses_its_callers_within_six_intervals(self, network: Network) -> None:
        node, other = network.pair({}, {"remote": Worker}, heartbeat_interval=BEAT)
        futures = [
            node.call_async("remote", "hold", {"key": "held"}, timeout=60),
            node.call_async("remote", "amark", {"key": "sleeping", "seconds": 60.0}, timeout=60),
        ]
        other.ask("remote", "wait_ran", "held")
        with within(6 * BEAT + MARGIN, "to learn that the node is lost"):
            other.kill()
            for future in futures:
                with pytest.raises(NodeLost, match=other.node_id):
                    future.result(DEADLINE)
        with within(PROMPT, "a call to a service that died"), pytest.raises((NoSuchService, NodeLost)):
            node.call("remote", "echo", {"value": 1}, timeout=30)

    def test_after_a_kill_calls_go_to_the_replica_that_is_left(self, network: Network) -> None:
        node, first, second = together(
            lambda: network.here(heartbeat_interval=BEAT),
            lambda: network.far({"many": Worker}, heartbeat_interval=BEAT),
            lambda: network.far({"many": Worker}, heartbeat_interval=BEAT),
        )
        network.meet(node, "many", first, second)
        keys = [uuid.uuid4().hex for _ in range(4)]
        steady = [node.call_async("many", "steady", {"key": key}, timeout=60) for key in keys]
        eventually(lambda: set(first.ask("many", "ran")) | set(second.ask("many", "ran")) >= set(keys), "all calls run")
        second.ask("many", "let_go")
        first.kill()
        with within(6 * BEAT + MARGIN, "to repeat what may be repeated"):
            assert {future.result(DEADLINE) for future in steady} == {second.node_id}
        assert set(second.ask("many", "ran")) == set(keys)
        for number in range(6):
            assert node.call("many", "echo", {"value": number}) == number

    @needs("undeliverable")
    def test_calls_find_the_replica_that_is_left_while_the_kill_is_not_known_yet(self, network: Network) -> None:
        node, first, second = together(
            lambda: network.here(heartbeat_interval=5.0),
            lambda: network.far({"many": Worker}, heartbeat_interval=5.0),
            lambda: network.far({"many": Worker}, heartbeat_interval=5.0),
        )
        network.meet(node, "many", first, second)
        first.kill()
        # Until the broker itself has noticed, a frame may vanish; it is then the caller who hears nothing.
        failures: list[RpcError] = []

        def called() -> bool:
            try:
                return bool(node.call("many", "echo", {"value": "x"}, timeout=1.0) == "x")
            except RpcError as error:
                failures.append(error)
                return False

        eventually(lambda: all(called() for _ in range(4)), "every call finds the replica that is left")
        assert node.status().nodes[first.node_id].state.value in ("JOINED", "SUSPECT")

    def test_a_node_that_stops_finishes_what_it_runs(self, network: Network) -> None:
        node, other = network.pair({}, {"remote": Worker})
        running = [node.call_async("remote", "amark", {"key": f"{n}", "seconds": 0.5}, timeout=30) for n in range(3)]
        node.call("remote", "echo", {"value": "all have arrived"})
        other.stop()
        assert [future.result(DEADLINE) for future in running] == [other.node_id] * 3
        with within(PROMPT, "a call to a service that left"), pytest.raises(NoSuchService):
            node.call("remote", "echo", {"value": 1}, timeout=30)

    def test_calls_to_a_service_that_moves_are_answered_or_refused(self, network: Network) -> None:
        """While replicas come and go, no call is lost: it has a result, or an error that says that it was not run."""
        node, steady = network.pair({}, {"many": Worker})
        ended = threading.Event()
        counts = {"ok": 0, "lost": 0}
        steady.ask("many", "let_go")

        def call() -> None:
            try:
                while not ended.is_set():
                    node.call("many", "again", {"key": "x"})
                    try:
                        node.call("many", "echo", {"value": 1})
                    except NodeLost:
                        counts["lost"] += 1  # sent in the very moment of the goodbye
                    counts["ok"] += 1
            finally:
                ended.set()

        def move() -> None:
            try:
                for _ in range(3):
                    coming = network.far({"many": Worker})
                    network.meet(node, "many", coming)
                    before = counts["ok"]
                    eventually(lambda before=before: counts["ok"] > before + 5 or ended.is_set(), "calls")  # type: ignore[misc]
                    coming.stop()
            finally:
                ended.set()

        together(call, move)
        assert counts["lost"] <= 3, f"{counts} over three moves"
        assert steady.node_id in node.call("many", "mark", {"key": "end"})
