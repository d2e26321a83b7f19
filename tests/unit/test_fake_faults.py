"""The fake driver and the faults of its broker."""

from __future__ import annotations

import gc
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator

import pytest

from dse.core.transport import Address, ConnectionState, Delivery
from dse.core.url import TransportUrl
from dse.errors import ConfigError, FrameTooLarge, InvalidUrl, TransportUnavailable
from dse.testing.faults import FakeServer, Faults, InFlight
from dse.transports import fake
from dse.transports.fake import FakeTransport

DEADLINE = 10.0  # seconds for what takes milliseconds
BEAT = 0.3  # a heartbeat, in seconds, for tests that wait for one to be missed


class Events:
    """Records what a transport says; `wait` returns when a condition on it holds."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.frames: list[tuple[Address, bytes]] = []
        self.returned: list[tuple[Address, bytes]] = []
        self.states: list[ConnectionState] = []
        self.threads: set[threading.Thread] = set()
        self.on_frame: Callable[[Address, bytes], None] | None = None

    def received(self, address: Address, frame: bytes) -> None:
        with self.changed:
            self.frames.append((address, frame))
            self.threads.add(threading.current_thread())
            self.changed.notify_all()
        if self.on_frame is not None:
            self.on_frame(address, frame)

    def undeliverable(self, address: Address, frame: bytes) -> None:
        with self.changed:
            self.returned.append((address, frame))
            self.threads.add(threading.current_thread())
            self.changed.notify_all()

    def state_changed(self, state: ConnectionState) -> None:
        with self.changed:
            self.states.append(state)
            self.changed.notify_all()

    def wait(self, condition: Callable[[], bool], within: float = DEADLINE) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, within), (self.frames[-5:], self.returned[-5:], self.states)

    def payloads(self, address: Address | None = None) -> list[bytes]:
        with self.changed:
            return [frame for at, frame in self.frames if address in (None, at)]


class Peer(FakeTransport):
    """A transport that keeps its events at hand."""

    def __init__(self, broker: str, *, bus: str, options: str = "") -> None:
        self.heard = Events()
        super().__init__(TransportUrl.parse(f"fake://{broker}{options}"), bus=bus, events=self.heard)

    def wait_state(self, state: ConnectionState, count: int = 1) -> ConnectionState:
        self.heard.wait(lambda: self.heard.states.count(state) >= count)
        return next(s for s in reversed(self.heard.states) if s == state)


class Lab:
    def __init__(self) -> None:
        self.broker = uuid.uuid4().hex
        self.bus = uuid.uuid4().hex
        self.faults = Faults(self.broker, seed=1)
        self.peers: list[Peer] = []

    def peer(self, options: str = "", bus: str | None = None) -> Peer:
        peer = Peer(self.broker, bus=bus or self.bus, options=options)
        peer.open()
        self.peers.append(peer)
        return peer


@pytest.fixture
def lab() -> Iterator[Lab]:
    lab = Lab()
    yield lab
    lab.faults.close()
    for peer in lab.peers:
        peer.close()
    assert lab.faults.broker.leftovers(lab.bus) == set()


@pytest.fixture(autouse=True)
def _no_thread_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    left = [t.name for t in set(threading.enumerate()) - before if t.name.startswith("dse-")]
    assert not left


def direct() -> Address:
    return Address(Delivery.DIRECT, uuid.uuid4().hex)


def anycast() -> Address:
    return Address(Delivery.ANYCAST, uuid.uuid4().hex)


def fanout() -> Address:
    return Address(Delivery.FANOUT, uuid.uuid4().hex)


def numbers(count: int) -> list[bytes]:
    return [str(i).encode() for i in range(count)]


def hold(release: threading.Event) -> None:
    release.wait(DEADLINE)


def eventually(condition: Callable[[], bool], within: float = DEADLINE) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


class TestDriver:
    def test_no_handler_runs_in_the_thread_that_sends(self, lab: Lab) -> None:
        peer, place, nowhere = lab.peer(), fanout(), direct()
        peer.listen(place)
        peer.send(place, b"to myself")
        peer.send(nowhere, b"to nobody")
        peer.heard.wait(lambda: bool(peer.heard.frames and peer.heard.returned))
        assert peer.heard.returned == [(nowhere, b"to nobody")]
        assert threading.current_thread() not in peer.heard.threads
        assert len(peer.heard.threads) == 1

    def test_anycast_goes_round(self, lab: Lab) -> None:
        sender, place = lab.peer(), anycast()
        listeners = [lab.peer() for _ in range(3)]
        for peer in listeners:
            peer.listen(place)
        for number in range(30):
            sender.send(place, b"%d" % number)
            eventually(lambda: sum(len(peer.heard.frames) for peer in listeners) == number + 1)  # noqa: B023
        assert [len(peer.heard.frames) for peer in listeners] == [10, 10, 10]

    def test_what_a_leaving_listener_has_not_taken_goes_to_the_others_in_order(self, lab: Lab) -> None:
        sender, busy, other, place = lab.peer(), lab.peer(), lab.peer(), anycast()
        release = threading.Event()
        busy.heard.on_frame = lambda *_: hold(release)
        busy.listen(place)
        for number in numbers(10):
            sender.send(place, number)
        busy.heard.wait(lambda: len(busy.heard.frames) == 1)
        other.listen(place)
        busy.unlisten(place)
        other.heard.wait(lambda: len(other.heard.frames) == 9)
        release.set()
        assert other.heard.payloads() == numbers(10)[1:]
        assert busy.heard.payloads() == [b"0"]

    def test_what_the_last_listener_has_not_taken_is_returned(self, lab: Lab) -> None:
        sender, busy, place = lab.peer(), lab.peer(), anycast()
        release = threading.Event()
        busy.heard.on_frame = lambda *_: hold(release)
        busy.listen(place)
        for number in numbers(3):
            sender.send(place, number)
        busy.heard.wait(lambda: len(busy.heard.frames) == 1)
        busy.unlisten(place)
        sender.heard.wait(lambda: len(sender.heard.returned) == 2)
        release.set()
        assert [frame for _, frame in sender.heard.returned] == [b"1", b"2"]

    def test_two_direct_listeners_do_not_both_get_a_frame(self, lab: Lab) -> None:
        sender, place = lab.peer(), direct()
        first, second = lab.peer(), lab.peer()
        first.listen(place)
        second.listen(place)
        for number in numbers(50):
            sender.send(place, number)
        eventually(lambda: len(first.heard.frames) + len(second.heard.frames) >= 50)
        assert len(first.heard.frames) + len(second.heard.frames) == 50

    def test_buses_and_brokers_are_apart(self, lab: Lab) -> None:
        place = fanout()
        here, other_bus = lab.peer(), lab.peer(bus=uuid.uuid4().hex)
        elsewhere = Peer(uuid.uuid4().hex, bus=lab.bus)
        elsewhere.open()
        lab.peers.append(elsewhere)
        for peer in (here, other_bus, elsewhere):
            peer.listen(place)
        for peer in (other_bus, elsewhere, here):
            peer.send(place, peer.bus.encode() + peer.broker_name.encode())
            peer.heard.wait(lambda: len(peer.heard.frames) == 1)  # noqa: B023
        assert here.heard.payloads() == [(lab.bus + lab.broker).encode()]

    def test_frames_from_before_an_address_was_left_do_not_come_after_it_is_back(self, lab: Lab) -> None:
        sender, peer, blocker, place = lab.peer(), lab.peer(), direct(), fanout()
        release, entered = threading.Event(), threading.Event()

        def block(address: Address, frame: bytes) -> None:
            if address == blocker:
                entered.set()
                release.wait(DEADLINE)

        peer.heard.on_frame = block
        peer.listen(blocker)
        peer.listen(place)
        sender.send(blocker, b"")
        assert entered.wait(DEADLINE)
        sender.send(place, b"old")
        peer.unlisten(place)
        peer.listen(place)
        sender.send(place, b"new")
        release.set()
        peer.heard.wait(lambda: peer.heard.payloads(place) != [])
        assert peer.heard.payloads(place) == [b"new"]

    def test_a_slow_consumer_is_disconnected_and_hurts_nobody_else(
        self, lab: Lab, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(fake, "_INBOX_FRAMES", 500)
        sender, slow, quick, place = lab.peer(), lab.peer(), lab.peer(), fanout()
        release, blocked = threading.Event(), threading.Event()

        def block(*_: object) -> None:
            blocked.set()
            release.wait(DEADLINE)

        slow.heard.on_frame = block
        slow.listen(place)
        quick.listen(place)
        for count, number in enumerate(numbers(1000), 1):
            sender.send(place, number)
            if count == 1:
                assert blocked.wait(DEADLINE)
            if count % 100 == 0:
                quick.heard.wait(lambda: len(quick.heard.frames) == count)  # noqa: B023
        assert quick.heard.payloads() == numbers(1000)
        release.set()
        state = slow.wait_state(ConnectionState.DISCONNECTED)
        assert "slow consumer" in str(state.cause)
        slow.wait_state(ConnectionState.CONNECTED, 2)
        assert len(slow.heard.frames) < 500
        slow.heard.on_frame = None
        sender.send(place, b"after")
        slow.heard.wait(lambda: slow.heard.frames[-1] == (place, b"after"))

    def test_a_backlog_of_too_many_bytes_disconnects_too(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fake, "_INBOX_BYTES", 10_000)
        for place in (direct(), anycast()):
            sender, slow = lab.peer(), lab.peer()
            release = threading.Event()
            slow.heard.on_frame = lambda *_, release=release: hold(release)
            slow.listen(place)
            for _ in range(20):
                sender.send(place, bytes(1000))
            release.set()
            assert "slow consumer" in str(slow.wait_state(ConnectionState.DISCONNECTED).cause)
            slow.wait_state(ConnectionState.CONNECTED, 2)

    def test_handlers_may_use_and_close_the_transport(self, lab: Lab) -> None:
        sender, peer, start, more = lab.peer(), lab.peer(), direct(), direct()

        def handle(address: Address, frame: bytes) -> None:
            if address == start:
                peer.listen(more)
                peer.send(more, b"from the handler")
            else:
                peer.unlisten(start)
                peer.close()

        peer.heard.on_frame = handle
        peer.listen(start)
        sender.send(start, b"")
        peer.wait_state(ConnectionState.CLOSED)
        assert peer.heard.payloads() == [b"", b"from the handler"]
        eventually(lambda: lab.faults.broker.leftovers(lab.bus) == {f"connection {id(sender._session):x} on {lab.bus}"})

    def test_what_a_memory_of_senders_forgets_lets_no_frame_through_twice(
        self, lab: Lab, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(fake, "_SEEN", 4)
        lab.faults.duplicate(1.0)
        listener, sender = lab.peer(), lab.peer()
        places = [direct() for _ in range(40)]
        for place in places:
            listener.listen(place)
            sender.send(place, b"once")
            listener.heard.wait(lambda: (place, b"once") in listener.heard.frames)  # noqa: B023
            listener.unlisten(place)
        assert len(listener.heard.frames) == 40
        session = listener._session
        assert isinstance(session, fake._FakeSession)
        assert len(session._seen) < 40

    @pytest.mark.parametrize(
        "text", ["fake://a:1", "fake://u@a", "fake://u:p@a", "fake://a/b", "fake://a,b", "fake+x://a"]
    )
    def test_a_url_with_parts_that_mean_nothing_is_refused(self, text: str) -> None:
        with pytest.raises(InvalidUrl):
            FakeTransport(TransportUrl.parse(text), bus="b", events=Events())

    def test_an_unknown_option_is_refused_with_those_that_are_known(self) -> None:
        with pytest.raises(InvalidUrl, match="heartbeat"):
            FakeTransport(TransportUrl.parse("fake://a?speed=1"), bus="b", events=Events())

    def test_the_largest_frame_arrives_and_a_larger_one_is_refused(self, lab: Lab) -> None:
        peer, place = lab.peer(), direct()
        peer.listen(place)
        with pytest.raises(FrameTooLarge):
            peer.send(place, bytes(8 * 2**20 + 1))
        peer.send(place, bytes(8 * 2**20))
        peer.heard.wait(lambda: len(peer.heard.frames) == 1)
        assert len(peer.heard.frames[0][1]) == 8 * 2**20

    def test_a_broker_that_nobody_uses_is_forgotten(self) -> None:
        name = uuid.uuid4().hex
        peer = Peer(name, bus="b")
        peer.open()
        assert name in fake._brokers
        peer.close()
        del peer
        gc.collect()
        assert name not in fake._brokers

    @pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
    def test_a_forked_child_has_brokers_of_its_own(self, lab: Lab) -> None:
        peer, place = lab.peer(), fanout()
        peer.listen(place)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                own = Peer(lab.broker, bus=lab.bus)
                own.open()
                own.listen(place)
                own.send(place, b"child")
                own.heard.wait(lambda: own.heard.payloads() == [b"child"])
                own.close()
                try:
                    peer.send(place, b"inherited")
                except TransportUnavailable:
                    status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        peer.send(place, b"parent")
        peer.heard.wait(lambda: peer.heard.payloads() == [b"parent"])


class TestLossyNetwork:
    def test_drop_loses_its_share_and_counts_it(self, lab: Lab) -> None:
        sender, listener, place, last = lab.peer(), lab.peer(), direct(), direct()
        listener.listen(place)
        listener.listen(last)
        lab.faults.drop(0.3, match=lambda sent: sent.address == place)
        for number in numbers(1000):
            sender.send(place, number)
        sender.send(last, b"")
        listener.heard.wait(lambda: (last, b"") in listener.heard.frames)
        got = listener.heard.payloads(place)
        assert len(got) == 1000 - lab.faults.dropped
        assert 200 < lab.faults.dropped < 400
        assert got == sorted(got, key=int)

    def test_the_same_seed_draws_the_same_faults(self) -> None:
        def survivors() -> list[bytes]:
            name = uuid.uuid4().hex
            with Faults(name, seed=42) as faults:
                faults.drop(0.5, match=lambda sent: sent.frame != b"end")
                peer, place = Peer(name, bus="b"), direct()
                peer.open()
                peer.listen(place)
                for number in numbers(200):
                    peer.send(place, number)
                peer.send(place, b"end")
                peer.heard.wait(lambda: peer.heard.payloads()[-1:] == [b"end"])
                peer.close()
                return peer.heard.payloads()

        assert survivors() == survivors()

    def test_a_rule_sees_bus_address_frame_sender_and_receiver(self, lab: Lab) -> None:
        sender, listener, place = lab.peer(), lab.peer(), fanout()
        listener.listen(place)
        seen: list[InFlight] = []
        lab.faults.drop(0, match=lambda sent: bool(seen.append(sent)) or True)  # type: ignore[func-returns-value]
        sender.send(place, b"plain")
        sender.send(place, b"with ttl", ttl=5)
        listener.heard.wait(lambda: len(listener.heard.frames) == 2)
        assert seen == [InFlight(lab.bus, place, f, sender, listener) for f in (b"plain", b"with ttl")]

    @pytest.mark.parametrize("address", [direct, anycast, fanout])
    def test_no_second_attempt_gets_through(self, lab: Lab, address: Callable[[], Address]) -> None:
        lab.faults.duplicate(1.0)
        place, end = address(), fanout()
        sender, listeners = lab.peer(), [lab.peer() for _ in range(1 if address is direct else 3)]
        for peer in listeners:
            peer.listen(place)
            peer.listen(end)
        for number in numbers(200):
            sender.send(place, number)
        sender.send(end, b"")
        for peer in listeners:
            peer.heard.wait(lambda: peer.heard.payloads(end) == [b""])  # noqa: B023
        assert lab.faults.duplicated >= 200
        got = [frame for peer in listeners for frame in peer.heard.payloads(place)]
        if address is fanout:
            assert all(peer.heard.payloads(place) == numbers(200) for peer in listeners)
        else:
            assert sorted(got, key=int) == numbers(200)

    def test_delayed_frames_come_late_in_order_and_once(self, lab: Lab) -> None:
        lab.faults.delay(0.0, 0.05, match=lambda sent: int(sent.frame) % 3 == 0)
        lab.faults.duplicate(0.5)
        senders, listener, place = [lab.peer(), lab.peer()], lab.peer(), fanout()
        listener.listen(place)
        for number in range(200):
            senders[number % 2].send(place, b"%d" % number)
        listener.heard.wait(lambda: len(listener.heard.frames) >= 200)
        got = [int(frame) for frame in listener.heard.payloads()]
        assert [n for n in got if n % 2 == 0] == list(range(0, 200, 2))
        assert [n for n in got if n % 2 == 1] == list(range(1, 200, 2))
        assert lab.faults.delayed == 67
        lab.faults.clear()
        assert len(listener.heard.frames) == 200

    def test_a_delay_is_as_long_as_asked_for(self, lab: Lab) -> None:
        lab.faults.delay(0.1, 0.1)
        peer, place = lab.peer(), direct()
        peer.listen(place)
        sent = time.monotonic()
        peer.send(place, b"")
        peer.heard.wait(lambda: len(peer.heard.frames) == 1)
        assert time.monotonic() - sent >= 0.1

    def test_a_frame_delayed_beyond_its_ttl_is_never_delivered(self, lab: Lab) -> None:
        lab.faults.delay(0.05, 0.05)
        peer, place = lab.peer(), direct()
        peer.listen(place)
        peer.send(place, b"short", ttl=0.02)
        peer.send(place, b"long", ttl=DEADLINE)
        peer.heard.wait(lambda: len(peer.heard.frames) > 0)
        assert peer.heard.payloads() == [b"long"]

    def test_clear_delivers_what_is_late_before_what_is_sent_next(self, lab: Lab) -> None:
        lab.faults.delay(60, 90)
        peer, place = lab.peer(), direct()
        peer.listen(place)
        for number in numbers(50):
            peer.send(place, number)
        lab.faults.clear()
        peer.send(place, b"50")
        peer.heard.wait(lambda: len(peer.heard.frames) == 51)
        assert peer.heard.payloads() == numbers(51)

    @pytest.mark.parametrize("address", [direct, anycast])
    def test_an_anycast_frame_whose_listeners_left_meanwhile_is_returned(
        self, lab: Lab, address: Callable[[], Address]
    ) -> None:
        sender, listener, place = lab.peer(), lab.peer(), address()
        listener.listen(place)
        lab.faults.delay(60, 60)
        sender.send(place, b"late")
        listener.unlisten(place)
        lab.faults.clear()
        sender.send(place, b"next")
        sender.heard.wait(lambda: (place, b"next") in sender.heard.returned)
        if address is anycast:
            assert (place, b"late") in sender.heard.returned
        assert listener.heard.frames == []

    def test_only_one_object_controls_a_broker(self, lab: Lab) -> None:
        lab.faults.drop(0.5)
        with Faults(lab.broker) as second, pytest.raises(ConfigError):
            second.drop(0.1)

    @pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
    def test_a_rate_is_a_share(self, lab: Lab, rate: float) -> None:
        with pytest.raises(ConfigError):
            lab.faults.drop(rate)
        with pytest.raises(ConfigError):
            lab.faults.delay(0.2, 0.1)


class TestCut:
    def test_a_cut_transport_is_deaf_and_dumb_until_its_heartbeat_notices(self, lab: Lab) -> None:
        cut, other, to_cut, to_other = lab.peer(f"?heartbeat={BEAT}"), lab.peer(), direct(), direct()
        cut.listen(to_cut)
        other.listen(to_other)
        began = time.monotonic()
        lab.faults.cut(cut)
        cut.send(to_other, b"into the void")
        other.send(to_cut, b"into the void")
        state = cut.wait_state(ConnectionState.DISCONNECTED)
        assert BEAT * 0.6 < time.monotonic() - began < BEAT + 1
        assert isinstance(state.cause, TimeoutError)
        with pytest.raises(TransportUnavailable):
            cut.send(to_other, b"now it knows")
        other.send(to_cut, b"now the broker knows")
        other.heard.wait(lambda: other.heard.returned == [(to_cut, b"now the broker knows")])
        lab.faults.mend()
        cut.wait_state(ConnectionState.CONNECTED, 2)
        other.send(to_cut, b"again")
        cut.send(to_other, b"again")
        for peer in (cut, other):
            peer.heard.wait(lambda: peer.heard.payloads() == [b"again"])  # noqa: B023

    def test_a_short_cut_that_lost_nothing_goes_unnoticed(self, lab: Lab) -> None:
        peer, place = lab.peer(), direct()
        peer.listen(place)
        lab.faults.cut(peer)
        lab.faults.mend()
        peer.send(place, b"")
        peer.heard.wait(lambda: len(peer.heard.frames) == 1)
        assert peer.heard.states == [ConnectionState.CONNECTED]

    @pytest.mark.parametrize("way", ["out", "in"])
    def test_a_short_cut_that_lost_something_resets_the_connection(self, lab: Lab, way: str) -> None:
        cut, other, place = lab.peer(), lab.peer(), direct()
        listener, sender = (other, cut) if way == "out" else (cut, other)
        listener.listen(place)
        lab.faults.cut(cut)
        sender.send(place, b"lost")
        lab.faults.mend()
        cut.wait_state(ConnectionState.DISCONNECTED)
        cut.wait_state(ConnectionState.CONNECTED, 2)
        sender.send(place, b"kept")
        listener.heard.wait(lambda: listener.heard.payloads() == [b"kept"])
        assert other.heard.states == [ConnectionState.CONNECTED]

    def test_what_a_cut_listener_was_invited_to_take_goes_to_another(self, lab: Lab) -> None:
        sender, cut, other, place = lab.peer(), lab.peer(f"?heartbeat={BEAT}"), lab.peer(), anycast()
        cut.listen(place)
        other.listen(place)
        lab.faults.cut(cut)
        for number in numbers(10):
            sender.send(place, number)
        other.heard.wait(lambda: len(other.heard.frames) == 10)
        assert other.heard.payloads() == numbers(10)
        assert cut.heard.frames == []

    def test_connecting_while_cut_fails_within_the_connect_timeout(self, lab: Lab) -> None:
        lab.faults.cut(lambda transport: transport.link == "bad")
        with pytest.raises(TransportUnavailable):
            lab.peer("?link=bad&connect_timeout=0.05")
        lab.peer("?link=good&connect_timeout=0.05")

    def test_a_node_is_cut_by_its_transport(self, lab: Lab) -> None:
        class Node:
            transport = lab.peer(f"?heartbeat={BEAT}")

        lab.faults.cut(Node())
        Node.transport.wait_state(ConnectionState.DISCONNECTED)

    def test_closing_a_cut_transport_is_prompt_and_leaves_nothing(self, lab: Lab) -> None:
        peer = lab.peer()
        peer.listen(direct())
        lab.faults.cut(peer)
        began = time.monotonic()
        peer.close()
        assert time.monotonic() - began < 2
        assert lab.faults.broker.leftovers(lab.bus) == set()

    def test_close_interrupts_a_reconnection_that_hangs(self, lab: Lab) -> None:
        peer = lab.peer("?connect_timeout=60")
        lab.faults.stop()
        lab.faults.cut(peer)
        lab.faults.start()
        eventually(lambda: peer._opening is not None)
        began = time.monotonic()
        peer.close()
        assert time.monotonic() - began < 2

    def test_a_cut_transport_does_not_hear_that_the_broker_died_but_notices(self, lab: Lab) -> None:
        peer = lab.peer(f"?heartbeat={BEAT}")
        lab.faults.cut(peer)
        lab.faults.stop()
        lab.faults.start()
        assert isinstance(peer.wait_state(ConnectionState.DISCONNECTED).cause, TimeoutError)


class TestBroker:
    def test_all_connections_break_when_it_dies_and_come_back(self, lab: Lab) -> None:
        peers, place = [lab.peer() for _ in range(3)], fanout()
        for peer in peers:
            peer.listen(place)
        lab.faults.stop()
        for peer in peers:
            assert isinstance(peer.wait_state(ConnectionState.DISCONNECTED).cause, ConnectionError)
            with pytest.raises(TransportUnavailable):
                peer.send(place, b"lost")
        with pytest.raises(TransportUnavailable):
            lab.peer()
        lab.faults.start()
        for peer in peers:
            peer.wait_state(ConnectionState.CONNECTED, 2)
        peers[0].send(place, b"back")
        for peer in peers:
            peer.heard.wait(lambda: peer.heard.payloads() == [b"back"])  # noqa: B023

    def test_its_queues_die_with_it(self, lab: Lab) -> None:
        sender, listener, place = lab.peer(), lab.peer(), anycast()
        listener.listen(place)
        lab.faults.delay(0.05, 0.05)
        sender.send(place, b"late")
        lab.faults.stop()
        lab.faults.start()
        for peer in (sender, listener):
            peer.wait_state(ConnectionState.CONNECTED, 2)
        sender.send(place, b"new")
        listener.heard.wait(lambda: len(listener.heard.frames) > 0)
        assert listener.heard.payloads() == [b"new"]

    def test_a_short_pause_only_delays(self, lab: Lab) -> None:
        peer, place, nowhere = lab.peer(), direct(), direct()
        peer.listen(place)
        lab.faults.pause()
        peer.send(place, b"patient", ttl=DEADLINE)
        peer.send(place, b"impatient", ttl=0.001)
        peer.send(place, b"last")
        peer.send(nowhere, b"")
        assert peer.heard.frames == []
        # Older than the ttl for certain, whatever the machine does.
        deadline = time.monotonic() + 0.002
        eventually(lambda: time.monotonic() > deadline)
        lab.faults.resume()
        peer.heard.wait(lambda: len(peer.heard.frames) == 2 and peer.heard.returned == [(nowhere, b"")])
        assert peer.heard.payloads() == [b"patient", b"last"]
        assert peer.heard.states == [ConnectionState.CONNECTED]

    def test_a_hung_broker_is_noticed_by_the_heartbeat(self, lab: Lab) -> None:
        peer, place = lab.peer(f"?heartbeat={BEAT}&connect_timeout=0.1"), direct()
        peer.listen(place)
        began = time.monotonic()
        lab.faults.pause()
        peer.wait_state(ConnectionState.DISCONNECTED)
        assert time.monotonic() - began < BEAT + 1
        lab.faults.resume()
        peer.wait_state(ConnectionState.CONNECTED, 2)
        peer.send(place, b"")
        peer.heard.wait(lambda: len(peer.heard.frames) == 1)

    def test_a_hung_broker_accepts_a_bounded_backlog(self, lab: Lab) -> None:
        peer, place = lab.peer(), fanout()
        lab.faults.pause()
        with pytest.raises(TransportUnavailable):
            for number in numbers(100_000):
                peer.send(place, number)
        assert len(lab.faults.broker._held) == 1000
        peer.wait_state(ConnectionState.DISCONNECTED)

    def test_listen_on_a_hung_broker_fails_in_bounded_time(self, lab: Lab) -> None:
        peer = lab.peer(f"?heartbeat={BEAT}")
        lab.faults.pause()
        began = time.monotonic()
        with pytest.raises(TransportUnavailable):
            peer.listen(direct())
        assert time.monotonic() - began < BEAT + 1

    def test_listen_waits_for_a_broker_that_comes_round(self, lab: Lab) -> None:
        peer, place = lab.peer(), direct()
        lab.faults.pause()
        thread = threading.Thread(target=peer.listen, args=(place,))
        thread.start()
        eventually(lambda: place in peer._listeners)
        assert thread.is_alive()
        lab.faults.resume()
        thread.join(DEADLINE)
        peer.send(place, b"")
        peer.heard.wait(lambda: len(peer.heard.frames) == 1)

    def test_a_block_of_faults_leaves_the_broker_sound(self) -> None:
        name = uuid.uuid4().hex
        peer, place = Peer(name, bus="b"), direct()
        with Faults(name) as faults:
            faults.drop(1.0)
            faults.delay(60, 60)
            faults.cut(lambda transport: True)
            faults.stop()
        peer.open()
        peer.listen(place)
        peer.send(place, b"")
        peer.heard.wait(lambda: len(peer.heard.frames) == 1)
        peer.close()


class TestServer:
    def test_it_is_looked_at_and_broken_as_a_broker(self) -> None:
        bus, place = uuid.uuid4().hex, direct()
        with FakeServer() as server:
            name = server.url.removeprefix("fake://")
            cut = Peer(name, bus=bus, options=f"?heartbeat={BEAT}")
            spared = Peer(name, bus=bus, options="?" + server.direct_url.partition("?")[2])
            for peer in (cut, spared):
                peer.open()
            cut.listen(place)
            assert len(server.leftovers(bus)) == 3
            server.cut()
            cut.wait_state(ConnectionState.DISCONNECTED)
            server.mend()
            cut.wait_state(ConnectionState.CONNECTED, 2)
            server.restart()
            for peer, connected in ((cut, 3), (spared, 2)):
                peer.wait_state(ConnectionState.CONNECTED, connected)
            spared.send(place, b"")
            cut.heard.wait(lambda: len(cut.heard.frames) == 1)
            for peer in (cut, spared):
                peer.close()
            assert server.leftovers(bus) == set()


def test_order_and_at_most_once_hold_under_everything_at_once(lab: Lab) -> None:
    """Every sender's frames arrive in order and once, while the broker misbehaves in each way it knows."""
    lab.faults.drop(0.05)
    lab.faults.duplicate(0.2)
    lab.faults.delay(0, 0.005)
    options = f"?heartbeat={BEAT}&connect_timeout=0.2"
    senders, listeners, place = [lab.peer(options) for _ in range(3)], [lab.peer(options) for _ in range(2)], fanout()
    for peer in listeners:
        peer.listen(place)
    stop = threading.Event()

    def talk(name: int, peer: Peer) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            try:
                peer.send(place, b"%d %d" % (name, number), ttl=DEADLINE)
            except TransportUnavailable:
                stop.wait(0.005)
            stop.wait(0.0005)

    threads = [threading.Thread(target=talk, args=item) for item in enumerate(senders)]
    for thread in threads:
        thread.start()
    try:
        for round_ in range(3):
            lab.faults.cut(listeners[round_ % 2])
            lab.faults.pause()
            listeners[round_ % 2].wait_state(ConnectionState.DISCONNECTED, 1)
            lab.faults.resume()
            lab.faults.mend()
            lab.faults.stop()
            lab.faults.start()
            for peer in listeners:
                heard = len(peer.heard.frames)
                peer.heard.wait(lambda: len(peer.heard.frames) > heard + 20)  # noqa: B023
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    for peer in listeners:
        for name in range(3):
            got = [int(f.split()[1]) for f in peer.heard.payloads() if int(f.split()[0]) == name]
            assert got == sorted(set(got))
