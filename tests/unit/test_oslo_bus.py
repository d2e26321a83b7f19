"""Programs written for oslo.messaging, over DSE: what they ask of it, on the in-process broker and on Redis."""

from __future__ import annotations

import secrets
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from dse.core.transport import Address, Delivery, TransportUrl
from dse.errors import UnknownTransport
from dse.oslo.messages import Ask, Back, Here, News, Reply, Request, encode
from dse.testing.contract.bus_peer import node_threads
from dse.testing.contract.recorder import Client
from dse.transports._oslo_library import oslo_messaging

sys.path.insert(0, str(Path(__file__).parent))
from oslo_programs import Audience, Batches, Endpoint, Programs, end, soon

REDIS = [pytest.mark.redis, pytest.mark.xdist_group("redis-test_oslo_bus")]


@pytest.fixture(params=["fake", pytest.param("redis", marks=REDIS)])
def url(request: pytest.FixtureRequest) -> str:
    bus = f"bus=test-{secrets.token_hex(4)}"
    if request.param == "fake":
        return f"dse+fake://{secrets.token_hex(4)}?{bus}"
    return f"dse+{request.getfixturevalue('redis_server').url}?{bus}"


@pytest.fixture
def programs(url: str) -> Iterator[Programs]:
    made = Programs(url)
    try:
        yield made
    finally:
        made.close()
    soon(lambda: not node_threads())


class TestCalls:
    def test_a_call_returns_what_the_server_answers(self, programs: Programs) -> None:
        programs.server(Endpoint())
        answer = programs.client().call({"user": "me"}, "echo", numbers=(1, 2), text="ü", nothing=None)
        assert answer == {"context": {"user": "me"}, "arguments": {"numbers": [1, 2], "text": "ü", "nothing": None}}

    def test_servers_on_a_topic_share_the_calls(self, programs: Programs) -> None:
        for name in "abc":
            programs.server(Endpoint(name), name)
        client = programs.client()
        soon(lambda: {client.call({}, "who") for _ in range(60)} == {"a", "b", "c"})

    def test_servers_take_turns_as_soon_as_they_are_known(self, programs: Programs) -> None:
        endpoints = {name: Endpoint(name) for name in "abc"}
        for name, endpoint in endpoints.items():
            programs.server(endpoint, name)
        client = programs.client()
        client.call({}, "who")
        turns, topic = client.transport._driver._router._turns, f"a:rpc/openstack/{programs.topic}"
        soon(lambda: turns.known(topic) == 3)  # on a busy machine one may be later than the first message waits for
        for number in range(30):
            client.cast({}, "tell", what=number)
        soon(lambda: sum(len(endpoint.heard_so_far) for endpoint in endpoints.values()) == 30)
        assert [len(endpoint.heard_so_far) for endpoint in endpoints.values()] == [10, 10, 10]

    def test_a_server_that_has_gone_is_left_out(self, programs: Programs) -> None:
        first = programs.server(Endpoint("a"), "a")
        programs.server(Endpoint("b"), "b")
        client = programs.client()
        soon(lambda: {client.call({}, "who") for _ in range(6)} == {"a", "b"})
        first.transport.cleanup()  # without a word of stopping
        assert {client.call({}, "who") for _ in range(6)} == {"b"}

    def test_what_comes_to_a_server_that_has_just_stopped_goes_to_the_next(self, programs: Programs) -> None:
        servers = [programs.server(Endpoint(name), name) for name in "ab"]
        client = programs.client()
        soon(lambda: {client.call({}, "who") for _ in range(6)} == {"a", "b"})
        driver = servers[0].transport._driver
        driver._registry.remove(servers[0].listener)  # as between two steps of stopping: nobody has been told
        driver._connection.port.unlisten(servers[0].listener.addresses[0])
        assert {client.call({}, "who") for _ in range(6)} == {"b"}

    def test_a_server_that_comes_takes_its_turn(self, programs: Programs) -> None:
        programs.server(Endpoint("a"), "a")
        client = programs.client()
        assert {client.call({}, "who") for _ in range(6)} == {"a"}
        programs.server(Endpoint("b"), "b")
        soon(lambda: client.call({}, "who") == "b")
        assert Counter(client.call({}, "who") for _ in range(10)) == {"a": 5, "b": 5}

    def test_servers_on_one_transport_share_the_calls(self, programs: Programs) -> None:
        on = programs.transport()
        for name in "ab":
            programs.server(Endpoint(name), name, on=on)
        assert Counter(programs.client(on=on).call({}, "who") for _ in range(10)) == {"a": 5, "b": 5}

    def test_a_call_to_a_server_by_name_reaches_that_one(self, programs: Programs) -> None:
        for name in "abc":
            programs.server(Endpoint(name), name)
        client = programs.client()
        assert {client.prepare(server=name).call({}, "who") for name in "b" * 20} == {"b"}

    def test_workers_with_one_server_name_share_its_calls(self, programs: Programs) -> None:
        for name in "ab":
            programs.server(Endpoint(name), "host")
        client = programs.client(server="host")
        assert {client.call({}, "who") for _ in range(40)} == {"a", "b"}

    def test_names_are_never_confused(self, programs: Programs) -> None:
        places = [
            {"exchange": "a", "topic": "b/c"},
            {"exchange": "a/b", "topic": "c"},
            {"exchange": "a%2Fb", "topic": "c"},
            {"exchange": "a", "topic": "b.c"},
            {"exchange": "a", "topic": "b c*"},
        ]
        for number, place in enumerate(places):
            programs.server(Endpoint(str(number)), "c", **place)
        on = programs.transport()
        clients = [programs.client(on=on, **place) for place in places]
        assert [client.call({}, "who") for client in clients] == ["0", "1", "2", "3", "4"]
        named = [client.prepare(server="c").call({}, "who") for client in clients]
        assert named == ["0", "1", "2", "3", "4"]

    def test_many_threads_call_at_once_and_each_gets_its_own_answer(self, programs: Programs) -> None:
        programs.server(Endpoint())
        client = programs.client()

        def calls(thread: int) -> bool:
            return all(client.call({}, "echo", x=[thread, n])["arguments"]["x"] == [thread, n] for n in range(40))

        with ThreadPoolExecutor(16) as threads:
            assert all(threads.map(calls, range(16)))

    def test_a_server_calls_another_one_and_itself(self, programs: Programs) -> None:
        on = programs.transport()
        client = programs.client(on=on)

        class Relay(Endpoint):
            def relay(self, ctxt: object, left: int) -> list[int]:
                return [left, *(client.call({}, "relay", left=left - 1) if left else [])]

        programs.server(Relay(), on=on)
        assert programs.client().call({}, "relay", left=5) == [5, 4, 3, 2, 1, 0]

    def test_namespace_and_version_are_looked_at(self, programs: Programs) -> None:
        endpoint = Endpoint("v2")
        endpoint.target = oslo_messaging.Target(namespace="n", version="2.1")  # type: ignore[attr-defined]
        programs.server(endpoint)
        client = programs.client()
        assert client.prepare(namespace="n", version="2.0").call({}, "who") == "v2"
        for other in ({"namespace": "m", "version": "2.0"}, {"namespace": "n", "version": "2.2"}):
            with pytest.raises(oslo_messaging.RemoteError, match="UnsupportedVersion"):
                client.prepare(**other).call({}, "who")


class TestTimeouts:
    def test_a_call_that_no_server_takes_times_out_and_says_so(self, programs: Programs) -> None:
        began = time.monotonic()
        with pytest.raises(oslo_messaging.MessagingTimeout, match=f"no server has listened.*{programs.topic}"):
            programs.client(timeout=0.6).call({}, "who")
        assert time.monotonic() - began < 3

    def test_a_call_that_is_not_answered_times_out(self, programs: Programs) -> None:
        endpoint = Endpoint()
        programs.server(endpoint)
        with pytest.raises(oslo_messaging.MessagingTimeout, match="no answer"):
            programs.client(timeout=0.5).call({}, "wait")
        assert endpoint.entered.is_set()
        endpoint.go_on.set()

    def test_a_call_made_before_its_server_starts_is_answered(self, programs: Programs) -> None:
        client = programs.client()
        with ThreadPoolExecutor(1) as thread:
            answer = thread.submit(client.call, {}, "who")
            soon(lambda: len(client.transport._driver._keeper))
            programs.server(Endpoint("late"))
            assert answer.result(5) == "late"

    def test_a_call_that_timed_out_unheard_is_never_run(self, programs: Programs) -> None:
        client = programs.client(timeout=0.4)
        with pytest.raises(oslo_messaging.MessagingTimeout):
            client.call({}, "tell", what="old")
        endpoint = Endpoint()
        programs.server(endpoint)
        client.prepare(timeout=5).call({}, "tell", what="new")
        assert endpoint.heard() == ["new"]

    def test_at_least_once_says_at_once_that_nobody_listens(self, programs: Programs) -> None:
        options = oslo_messaging.TransportOptions(at_least_once=True)
        client = programs.client(timeout=30, transport_options=options)
        began = time.monotonic()
        with pytest.raises(oslo_messaging.MessageUndeliverable) as caught:
            client.call({}, "who")
        assert caught.value.routing_key == programs.topic
        with pytest.raises(oslo_messaging.MessageUndeliverable):
            client.cast({}, "who")
        assert time.monotonic() - began < 5

    def test_a_cast_with_at_least_once_returns_when_it_has_arrived(self, programs: Programs) -> None:
        endpoint = Endpoint()
        programs.server(endpoint)
        options = oslo_messaging.TransportOptions(at_least_once=True)
        programs.client(transport_options=options).cast({}, "tell", what=1)
        assert endpoint.told.get(timeout=5) == 1

    def test_a_monitored_call_may_last_as_long_as_its_server_lives(self, programs: Programs) -> None:
        programs.server(Endpoint())
        client = programs.client(timeout=60, call_monitor_timeout=2)
        assert client.call({}, "last", seconds=3.0) == "done"

    def test_a_monitored_call_ends_when_nothing_is_heard_of_it(self, programs: Programs) -> None:
        client = programs.client(timeout=60, call_monitor_timeout=1)
        began = time.monotonic()
        with pytest.raises(oslo_messaging.MessagingTimeout):
            client.call({}, "who")
        assert time.monotonic() - began < 4


class TestCasts:
    def test_a_cast_returns_at_once_and_is_run(self, programs: Programs) -> None:
        endpoint = Endpoint()
        programs.server(endpoint)
        programs.client().cast({}, "tell", what=7)
        assert endpoint.told.get(timeout=5) == 7

    def test_a_fanout_cast_reaches_every_server_once(self, programs: Programs) -> None:
        on = programs.transport()
        endpoints = [Endpoint() for _ in range(4)]
        for number, endpoint in enumerate(endpoints):
            programs.server(endpoint, f"s{number}", on=on if number < 2 else None)
        programs.server(other := Endpoint(), topic="another")
        client = programs.client()
        client.prepare(fanout=True).cast({}, "tell", what="all")
        for endpoint in endpoints:
            assert endpoint.told.get(timeout=5) == "all"
        for number in range(4):  # each has handled what came before
            client.prepare(server=f"s{number}").call({}, "who")
        assert [endpoint.heard() for endpoint in (*endpoints, other)] == [[]] * 5

    def test_casts_made_before_their_server_starts_reach_it_once_each(self, programs: Programs) -> None:
        client = programs.client()
        for number in range(50):
            client.cast({}, "tell", what=number)
        soon(lambda: len(client.transport._driver._keeper) == 50)
        endpoint = Endpoint()
        programs.server(endpoint)
        assert sorted(endpoint.told.get(timeout=5) for _ in range(50)) == list(range(50))
        client.call({}, "who")
        assert endpoint.heard() == []

    def test_a_cast_that_is_kept_too_long_is_lost(self, programs: Programs) -> None:
        client = programs.client(on=programs.transport(hold_timeout=0.2))
        client.cast({}, "tell", what="old")
        keeper = client.transport._driver._keeper
        soon(lambda: len(keeper))
        soon(lambda: not len(keeper))
        endpoint = Endpoint()
        programs.server(endpoint)
        client.call({}, "tell", what="new")
        assert endpoint.heard() == ["new"]

    def test_more_casts_than_are_kept_are_refused(self, programs: Programs) -> None:
        client = programs.client(on=programs.transport(hold_messages=3))
        for number in range(3):
            client.cast({}, "tell", what=number)
            soon(lambda held=number + 1: len(client.transport._driver._keeper) == held)
        with pytest.raises(oslo_messaging.MessageDeliveryFailure, match=f"nobody listens on .*{programs.topic}.*=3"):
            client.cast({}, "tell", what=3)

    def test_one_that_is_too_large_is_refused(self, programs: Programs) -> None:
        with pytest.raises(oslo_messaging.MessageDeliveryFailure, match="limit"):
            programs.client().cast({}, "tell", what="x" * (9 * 2**20))


class TestFailures:
    def test_a_builtin_exception_comes_as_itself(self, programs: Programs) -> None:
        programs.server(Endpoint())
        with pytest.raises(ValueError, match="no such value"):
            programs.client().call({}, "fail", error="value")

    def test_an_exception_of_an_allowed_module_comes_as_itself(self, programs: Programs) -> None:
        class Raises:
            def go(self, ctxt: object) -> None:
                raise UnknownTransport("gone")

        programs.server(Raises())
        allowed = programs.client(on=programs.transport(allowed=["dse.errors"]))
        with pytest.raises(UnknownTransport, match="gone") as caught:
            allowed.call({}, "go")
        assert type(caught.value).__name__ == "UnknownTransport_Remote"
        with pytest.raises(oslo_messaging.RemoteError, match="UnknownTransport gone") as other:
            programs.client().call({}, "go")
        assert other.value.exc_type == "UnknownTransport"

    def test_nothing_is_imported_that_the_peer_names(self, programs: Programs, hostile: Client) -> None:
        failure = '{"class": "X", "module": "antigravity", "message": "boo", "args": [], "kwargs": {}, "tb": []}'
        hostile.answer(programs, failure)
        with pytest.raises(oslo_messaging.RemoteError, match="X boo"):
            programs.client().call({}, "who")
        assert "antigravity" not in sys.modules

    @pytest.mark.parametrize(
        "failure", ["", "{", "[]", '{"class": 7}', "[" * 5000, '{"module": "builtins", "class": "x"}']
    )
    def test_a_failure_that_is_none_ends_the_call(self, programs: Programs, hostile: Client, failure: str) -> None:
        hostile.answer(programs, failure)
        with pytest.raises(oslo_messaging.RemoteError):
            programs.client().call({}, "who")

    def test_a_result_that_cannot_be_sent_is_said(self, programs: Programs) -> None:
        programs.server(Endpoint())
        client = programs.client()
        with pytest.raises((ValueError, RecursionError)):
            client.call({}, "strange")
        with pytest.raises(oslo_messaging.RemoteError, match=r"MessageDeliveryFailure.*limit"):
            client.call({}, "big", size=9 * 2**20)

    def test_an_exception_that_cannot_be_sent_is_said(self, programs: Programs) -> None:
        programs.server(Endpoint())
        with pytest.raises(RuntimeError, match="Odd"):
            programs.client().call({}, "fail", error="odd")

    def test_a_method_that_does_not_exist_is_said(self, programs: Programs) -> None:
        programs.server(Endpoint())
        with pytest.raises(oslo_messaging.RemoteError, match=r"NoSuchMethod.*nothing"):
            programs.client().call({}, "nothing")


class Hostile(Client):
    """A transport of DSE's on the bus of the programs, which says what it likes."""

    def answer(self, programs: Programs, failure: str) -> None:
        """Answer the next call to the topic with a failure."""

        def reply(address: Address, frame: bytes) -> None:
            request = Request(*_decode(frame))
            self.transport.send(
                Address(Delivery.DIRECT, request.sender[2:]), encode(Reply(request.number, None, failure))
            )

        self.received = reply  # type: ignore[method-assign]
        self.transport.listen(Address(Delivery.ANYCAST, f"rpc/openstack/{programs.topic}"))


def _decode(frame: bytes) -> list[object]:
    import msgspec

    kind, *fields = msgspec.msgpack.decode(frame[1:])
    assert kind == "q"
    return fields  # type: ignore[no-any-return]


@pytest.fixture
def hostile(programs: Programs) -> Iterator[Hostile]:
    from dse.core.plugins import load_transport

    text, _, bus = programs.url.removeprefix("dse+").partition("?bus=")
    client = Hostile(load_transport(text), TransportUrl.parse(text), bus)
    client.transport.open()
    yield client
    client.transport.close()


WHO = "d:reply/x"


class TestHostileFrames:
    def test_frames_that_are_none_are_dropped_and_calls_go_on(self, programs: Programs, hostile: Client) -> None:
        endpoint = Endpoint("here")
        programs.server(endpoint)
        client = programs.client()
        assert client.call({}, "who") == "here"
        body = b'[{}, {"method": "tell", "args": {"what": "evil"}}]'
        frames = [
            b"",
            b"\x00",
            b"\x02" + encode(Request(1, WHO, body))[1:],
            encode(Request(1, WHO, body))[:-3],
            b"\x01" + b"\x91" * 100_000,
            encode(Request(1, WHO, b"{")),
            encode(Request(1, WHO, b"[" * 100_000)),
            encode(Request(1, WHO, b"[1, 2, 3]")),
            encode(Request(1, WHO, b'[{}, "x"]')),
            encode(Request(1, WHO, b"\xff\xfe")),
            encode(Request(1, "a:rpc/x/y", body)),
            encode(Request(1, "d:", body, True)),
            encode(Back(WHO, b"\x01")),
            encode(Back(WHO, encode(Request(1, WHO, body)))),
            encode(News("a:rpc/x", ["a:rpc/openstack/t"], [("x", "y")])),
            encode(Here("d:", [""], [("", "")])),
            encode(Ask([""], "f:news")),
            encode(Reply(1, b"1")),
            encode(Reply(-1, None, "{")),
        ]
        reply_to = client.transport._driver._reply_to[2:]
        for frame in frames:
            hostile.transport.send(Address(Delivery.ANYCAST, f"rpc/openstack/{programs.topic}"), frame)
            hostile.transport.send(Address(Delivery.FANOUT, f"rpc/openstack/{programs.topic}"), frame)
            hostile.transport.send(Address(Delivery.FANOUT, "news"), frame)
            hostile.transport.send(Address(Delivery.DIRECT, reply_to), frame)
        misled = encode(Request(1, WHO, body, topic="a:rpc/openstack/nowhere"))
        hostile.transport.send(Address(Delivery.DIRECT, reply_to), misled)
        assert [client.call({}, "who") for _ in range(5)] == ["here"] * 5
        assert endpoint.heard() == []

    def test_an_answer_that_cannot_be_read_ends_the_call(self, programs: Programs, hostile: Hostile) -> None:
        def reply(address: Address, frame: bytes) -> None:
            request = Request(*_decode(frame))
            hostile.transport.send(Address(Delivery.DIRECT, request.sender[2:]), encode(Reply(request.number, b"{")))

        hostile.received = reply  # type: ignore[method-assign]
        hostile.transport.listen(Address(Delivery.ANYCAST, f"rpc/openstack/{programs.topic}"))
        with pytest.raises(oslo_messaging.MessagingException, match="cannot be read"):
            programs.client().call({}, "who")


class TestNotifications:
    def test_a_listener_hears_the_priorities_it_has_methods_for(self, programs: Programs) -> None:
        audience = Audience()
        programs.listener(audience)
        notifier = programs.notifier()
        notifier.info({}, "event", {"n": 1})
        notifier.debug({}, "event", {"n": 2})
        notifier.error({}, "event", {"n": 3})
        soon(lambda: len(audience.heard) == 2)
        assert sorted(audience.heard) == [("error", "event", {"n": 3}), ("info", "event", {"n": 1})]

    def test_listeners_share_what_comes(self, programs: Programs) -> None:
        audiences = [Audience(), Audience()]
        for audience in audiences:
            programs.listener(audience)
        notifier = programs.notifier()
        for number in range(40):
            notifier.info({}, "event", number)
        soon(lambda: sum(len(a.heard) for a in audiences) == 40)
        assert sorted(n for a in audiences for _, _, n in a.heard) == list(range(40))
        assert all(a.heard for a in audiences)

    def test_every_pool_gets_a_copy_which_its_members_share(self, programs: Programs) -> None:
        plain, red, blue = Audience(), [Audience(), Audience()], Audience()
        programs.listener(plain)
        for audience in red:
            programs.listener(audience, pool="red")
        programs.listener(blue, pool="blue")
        notifier = programs.notifier()
        for number in range(30):
            notifier.info({}, "event", number)
        everything = [("info", "event", number) for number in range(30)]
        soon(lambda: len(plain.heard) == len(blue.heard) == sum(len(a.heard) for a in red) == 30)
        for heard in (plain.heard, blue.heard, red[0].heard + red[1].heard):
            assert sorted(heard) == everything
        assert all(a.heard for a in red)

    def test_a_pool_that_comes_later_gets_what_is_said_from_then_on(self, programs: Programs) -> None:
        programs.listener(plain := Audience())
        notifier = programs.notifier()
        notifier.info({}, "event", "before")
        soon(lambda: plain.heard)
        programs.listener(late := Audience(), pool="late")
        book = notifier.transport._driver._router._pools
        soon(lambda: any(page.pools for page in book._pages.values()))
        notifier.info({}, "event", "after")
        soon(lambda: late.heard)
        assert late.heard == [("info", "event", "after")]

    def test_what_is_said_before_anybody_listens_is_heard(self, programs: Programs) -> None:
        notifier = programs.notifier()
        for number in range(20):
            notifier.info({}, "event", number)
        soon(lambda: len(notifier.transport._driver._keeper) == 20)
        programs.listener(audience := Audience())
        soon(lambda: len(audience.heard) == 20)
        assert sorted(n for _, _, n in audience.heard) == list(range(20))

    def test_the_oldest_notifications_go_when_too_many_are_kept(self, programs: Programs) -> None:
        notifier = programs.notifier(hold_messages=5)
        keeper = notifier.transport._driver._keeper
        notifier.info({}, "event", 0)
        soon(lambda: len(keeper))
        for number in range(1, 20):
            notifier.info({}, "event", number)
        soon(lambda: len(keeper) == 5)
        programs.listener(audience := Audience())
        soon(lambda: len(audience.heard) >= 5)
        assert {n for _, _, n in audience.heard} >= {16, 17, 18, 19}

    def test_batches_are_as_long_as_wanted_and_the_last_comes_in_time(self, programs: Programs) -> None:
        batches = Batches()
        programs.listener(batches, batch_size=10, batch_timeout=0.5)
        notifier = programs.notifier()
        for number in range(25):
            notifier.info({}, "event", number)
        soon(lambda: len(batches.heard) == 3)
        assert sorted(len(batch) for batch in batches.heard) == [5, 10, 10]
        assert sorted(n for batch in batches.heard for n in batch) == list(range(25))

    def test_a_batch_that_is_not_full_is_handed_on_when_the_listener_stops(self, programs: Programs) -> None:
        batches = Batches()
        listener = programs.listener(batches, batch_size=10, batch_timeout=None)
        notifier = programs.notifier()
        for number in range(3):
            notifier.info({}, "event", number)
        soon(lambda: len(listener.listener._waiting) == 3)
        end(listener)
        assert batches.heard == [[0, 1, 2]]

    def test_requeueing_is_refused(self, programs: Programs) -> None:
        on = programs.transport(notifications=True)
        on._require_driver_features(requeue=False)
        with pytest.raises(NotImplementedError, match="requeu"):
            on._require_driver_features(requeue=True)
        listener = on._driver.listen_for_notifications([(programs.target(), "info")], None, 1, None)
        got: list[object] = []
        listener.start(got.extend)
        programs.notifier().info({}, "event", 1)
        (message,) = soon(lambda: got)
        message.acknowledge()
        with pytest.raises(NotImplementedError, match="requeued"):
            message.requeue()


class TestEnding:
    def test_a_call_that_runs_while_its_server_stops_is_answered(self, programs: Programs) -> None:
        endpoint = Endpoint("last words")
        server = programs.server(endpoint)
        client = programs.client()
        with ThreadPoolExecutor(2) as threads:
            answer = threads.submit(client.call, {}, "wait")
            assert endpoint.entered.wait(5)
            server.stop()
            waits = threads.submit(server.wait)
            endpoint.go_on.set()
            assert answer.result(5) == "last words"
            waits.result(5)

    def test_calls_while_servers_come_and_go_are_all_answered(self, programs: Programs) -> None:
        client = programs.client(timeout=20)
        stop = threading.Event()

        def calls() -> int:
            count = 0
            while not stop.is_set():
                assert client.call({}, "who") in {"a", "b"}
                count += 1
            return count

        on = programs.transport()
        server = programs.server(Endpoint("a"), on=on)
        with ThreadPoolExecutor(4) as threads:
            counts = [threads.submit(calls) for _ in range(4)]
            for name in "babab":
                end(server)
                server = programs.server(Endpoint(name), on=on)
                client.call({}, "who")
            stop.set()
            assert all(count.result(20) for count in counts)

    def test_a_server_that_was_stopped_hears_nothing_and_can_start_again(self, programs: Programs) -> None:
        endpoint = Endpoint("again")
        server = programs.server(endpoint)
        client = programs.client()
        assert client.call({}, "who") == "again"
        end(server)
        with pytest.raises(oslo_messaging.MessagingTimeout):
            client.prepare(timeout=0.5).call({}, "who")
        server.start()
        assert client.call({}, "who") == "again"

    def test_cleaning_up_ends_what_waits_and_nothing_is_left(self, programs: Programs) -> None:
        on = programs.transport()
        endpoint = Endpoint()
        programs.server(endpoint)
        client = programs.client(on=on)
        client.cast({}, "tell", what=1)
        with ThreadPoolExecutor(1) as thread:
            answer = thread.submit(client.call, {}, "wait")
            assert endpoint.entered.wait(5)
            on.cleanup()
            with pytest.raises(oslo_messaging.MessageDeliveryFailure, match="cleaned up"):
                answer.result(5)
        with pytest.raises(oslo_messaging.MessageDeliveryFailure, match="cleaned up"):
            client.call({}, "who")
        on.cleanup()
        endpoint.go_on.set()

    def test_a_transport_that_is_not_used_connects_to_nothing(self, programs: Programs) -> None:
        programs.transport()
        assert not node_threads()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dse+nothing://host", "no transport 'nothing' is installed"),
        ("dse+fake://a?colour=red", "unknown option 'colour'"),
        ("dse+fake://a,b", "takes one broker name"),
        ("dse+redis://u:s3cr3t@a,v:other@b/0", "must be the same for all hosts"),
        ("dse+fake://a?hold_timeout=soon", "hold_timeout"),
        ("dse+fake://a?hold_messages=0", "hold_messages"),
        ("dse://", "which transport of DSE"),
        ("dse://host/?url=fake%3A%2F%2Fa", "which transport of DSE"),
        ("dse://?url=nonsense", "begins with"),
    ],
)
def test_a_url_that_is_wrong_is_refused_at_once_and_says_why(text: str, said: str) -> None:
    with pytest.raises(oslo_messaging.MessagingException, match=said) as caught:
        Programs(text).transport()
    assert "s3cr3t" not in str(caught.value)


def test_any_url_of_dse_may_stand_in_an_option() -> None:
    made = Programs(f"dse://?url=fake%3A%2F%2F{secrets.token_hex(4)}")
    try:
        made.server(Endpoint("there"))
        assert made.client().call({}, "who") == "there"
    finally:
        made.close()


def test_a_user_sees_no_warning_and_no_log_line() -> None:
    code = """
import warnings
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # importing oslo.messaging warns of eventlet, in any program
    import oslo_messaging
    from oslo_config import cfg
class Endpoint:
    def echo(self, ctxt, x): return x
cfg.CONF([], default_config_files=[])
transport = oslo_messaging.get_rpc_transport(cfg.CONF, url="dse+fake://a")
target = oslo_messaging.Target(topic="t", server="s")
server = oslo_messaging.get_rpc_server(transport, target, [Endpoint()])
server.start()
print(oslo_messaging.get_rpc_client(transport, target).call({}, "echo", x=7))
server.stop()
server.wait()
transport.cleanup()
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "7\n", "")


def test_the_options_are_listed_for_the_generator_of_configuration_files() -> None:
    (listed,) = (entry.load() for entry in entry_points(group="oslo.config.opts") if entry.name == "oslo.messaging.dse")
    ((group, options),) = listed()
    assert group == "oslo_messaging_dse"
    assert {option.name for option in options} == {"bus", "hold_timeout", "hold_messages", "hold_bytes"}


def test_the_options_may_stand_in_a_configuration_file(tmp_path: Path) -> None:
    made = Programs("dse+fake://a?hold_messages=5")
    (tmp_path / "app.conf").write_text("[oslo_messaging_dse]\nbus = b1\nhold_messages = 7\nhold_timeout = 2\n")
    made.conf(["--config-file", str(tmp_path / "app.conf")])
    settings = made.transport()._driver.settings
    assert (settings.bus, settings.hold_messages, settings.hold_timeout) == ("b1", 5, 2.0)
    made.close()
