"""Guarantee 10."""

from __future__ import annotations

import dataclasses
import functools
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from dse.core.transport import Address, ConnectionState, Transport
from dse.core.url import TransportUrl
from dse.errors import InvalidUrl, TransportUnavailable
from dse.testing.contract.fixtures import ANYCAST, DELIVERIES, DIRECT, Connect, Contract, bounded, claimed_by, needs
from dse.testing.contract.recorder import DEADLINE, PROMPT, Client, address, assert_in_order, eventually, with_options

if TYPE_CHECKING:
    from dse.testing.brokers import Broker

__all__ = ["TestOutage"]

CONNECTED, DISCONNECTED = ConnectionState.CONNECTED, ConnectionState.DISCONNECTED

HEARTBEAT = 2.0
CONNECT_TIMEOUT = 1.5
MARGIN = 1.5  # seconds a busy machine may take for what has a deadline
SECRET = "s3cr3t-that-nobody-sees"


def break_and_repair(broker: Broker, how: str) -> tuple[Callable[[], None], Callable[[], None]]:
    return {
        "stop": (broker.stop, broker.start),
        "pause": (broker.pause, broker.resume),
        "cut": (broker.cut, broker.mend),
    }[how]


class TestOutage(Contract):
    """An outage is noticed within the heartbeat, blocks nobody, and ends with every listener restored.

    When the broker dies, hangs or is cut off, `state_changed(DISCONNECTED)` fires within the driver's heartbeat; `send`
    raises `TransportUnavailable` rather than block for ever; reconnection is automatic with jittered exponential
    backoff; every `listen` is restored before `CONNECTED` fires again.
    """

    guarantee = 10

    @needs("can_fail", "survives_broker_restart")
    @pytest.mark.parametrize("how", ["stop", "pause", "cut"])
    def test_an_outage_is_noticed_bounded_and_healed(
        self, connect: Connect, failing: Broker, transport_class: type[Transport], bus: str, how: str
    ) -> None:
        break_it, repair = break_and_repair(failing, how)
        client = connect(heartbeat=HEARTBEAT, connect_timeout=CONNECT_TIMEOUT)
        idle = connect(heartbeat=HEARTBEAT, connect_timeout=CONNECT_TIMEOUT)
        leaving = connect(heartbeat=HEARTBEAT, connect_timeout=CONNECT_TIMEOUT)
        kept = [address(delivery) for delivery in DELIVERIES]
        dropped = [address(delivery) for delivery in DELIVERIES]
        client.listen(*kept, *dropped)
        leaving.listen(address(ANYCAST), address(DIRECT))
        for where in kept:
            client.mark(where, client)

        break_it()
        broke = time.monotonic()
        self._send_raises(client, kept[0])
        for each in (client, idle, leaving):
            each.wait_state(DISCONNECTED, max(0.0, broke + HEARTBEAT + MARGIN - time.monotonic()))
        assert client.states[-1].cause is not None
        for where in kept:
            with pytest.raises(TransportUnavailable):
                bounded(PROMPT, "send without a connection", functools.partial(client.send, where, b"lost"))
        with pytest.raises(TransportUnavailable):
            bounded(PROMPT, "listen without a connection", lambda: client.listen(address(DIRECT)))
        bounded(PROMPT, "unlisten without a connection", lambda: client.unlisten(*dropped))
        bounded(PROMPT, "close without a connection", leaving.close)
        assert leaving.states[-1] == ConnectionState.CLOSED
        late = self._open_fails(connect, failing, transport_class, bus)
        self._open_can_be_given_up(connect)

        repair()
        for each in (client, idle):
            each.wait_state(CONNECTED, times=2)
        late.open()
        for where in kept:
            late.mark(where, client)
            idle.mark(where, client)
            client.mark(where, client)
        if claimed_by(transport_class, failing.url).undeliverable:
            for where in dropped:
                if where.delivery in (DIRECT, ANYCAST):
                    late.send(where, b"nobody")
                    late.wait_returned(where, b"nobody")
        for where, fence in zip(dropped, kept, strict=True):
            late.send(where, b"nobody")
            late.mark(fence, client)  # now the broker is done with what nobody hears
            client.listen(where)
            late.mark(where, client)
            assert client.count(where) == 1
        assert not any(b"lost" in client.frames(where) for where in kept)
        assert [s.name for s in client.states] == ["CONNECTED", "DISCONNECTED", "CONNECTED"]

    def _send_raises(self, client: Client, where: Address) -> None:
        """Send big frames in a tight loop, as a busy service would, until it is refused: in bounded time."""
        until = time.monotonic() + HEARTBEAT + 2 * MARGIN

        def send() -> None:
            frame = bytes(256 * 1024)
            while time.monotonic() < until:
                client.send(where, frame, ttl=0.001)

        with pytest.raises(TransportUnavailable):
            bounded(HEARTBEAT + 3 * MARGIN, "send into an outage", send)

    def _open_fails(self, connect: Connect, broker: Broker, transport_class: type[Transport], bus: str) -> Client:
        client = connect(opened=False, heartbeat=HEARTBEAT, connect_timeout=CONNECT_TIMEOUT)
        with pytest.raises(TransportUnavailable):
            bounded(CONNECT_TIMEOUT + MARGIN, "open", client.open)
        url = TransportUrl.parse(with_options(broker.url, connect_timeout=0.5))
        try:
            secretive = Client(transport_class, dataclasses.replace(url, username="somebody", password=SECRET), bus)
        except InvalidUrl:
            return client  # a driver that takes no password shows none
        with pytest.raises(TransportUnavailable) as caught:
            bounded(0.5 + MARGIN, "open with a password", secretive.open)
        error: BaseException | None = caught.value
        assert caught.value.url == str(secretive.transport.url)
        while error is not None:
            assert SECRET not in f"{error} {error!r}"
            error = error.__cause__ or error.__context__
        secretive.close()
        return client

    def _open_can_be_given_up(self, connect: Connect) -> None:
        client = connect(opened=False, heartbeat=60, connect_timeout=60)
        opening = threading.Thread(target=lambda: caught.append(_raises_unavailable(client.open)), daemon=True)
        caught: list[bool] = []
        opening.start()
        opening.join(0.05)
        bounded(PROMPT, "close during open", client.close)
        opening.join(PROMPT)
        assert caught == [True]

    @needs("can_fail", "survives_broker_restart")
    def test_every_listener_is_back_before_connected_fires(self, connect: Connect, failing: Broker) -> None:
        client = connect(heartbeat=1, connect_timeout=CONNECT_TIMEOUT)
        other = connect(failing.direct_url)
        addresses = [address(delivery) for delivery in DELIVERIES for _ in range(40)]
        client.listen(*addresses)
        failures: list[BaseException] = []

        def send_at_once(state: ConnectionState) -> None:
            if state == CONNECTED:
                try:
                    for where in addresses:
                        other.send(where, b"at once")
                except BaseException as error:
                    failures.append(error)

        client.on_state = send_at_once
        failing.cut()
        client.wait_state(DISCONNECTED, 1 + MARGIN)
        failing.mend()
        client.wait_state(CONNECTED, times=2)
        client.wait_count(len(addresses), *addresses)
        assert not failures
        assert all(client.frames(where) == [b"at once"] for where in addresses)
        assert not other.all_returned()
        assert len(other.states) == 1

    @needs("can_fail", "survives_broker_restart")
    def test_over_outages_nothing_arrives_twice_or_out_of_order(self, connect: Connect, failing: Broker) -> None:
        listener, sender = connect(heartbeat=1), connect(heartbeat=1)
        addresses = [address(delivery) for delivery in DELIVERIES]
        listener.listen(*addresses)
        ended = threading.Event()
        sent = 0

        def send() -> None:
            nonlocal sent
            while not ended.wait(0.001):
                for where in addresses:
                    try:
                        sender.send(where, b"%d" % sent)
                    except TransportUnavailable:
                        pass
                sent += 1

        sending = threading.Thread(target=send, daemon=True)
        sending.start()
        try:
            for turn in (1, 2):
                arrived = [listener.count(where) for where in addresses]
                failing.cut()
                for client in (listener, sender):
                    client.wait_state(DISCONNECTED, 1 + MARGIN, times=turn)
                failing.mend()
                for client in (listener, sender):
                    client.wait_state(CONNECTED, times=turn + 1)
                for where, before in zip(addresses, arrived, strict=True):
                    listener.wait_count(before + 20, where)
        finally:
            ended.set()
            sending.join(DEADLINE)
        for where in addresses:
            sender.mark(where, listener)
            got = [int(frame) for frame in listener.frames(where) if not frame.startswith(b"marker")]
            assert_in_order(got, sorted(set(got)))

    @needs("can_fail", "survives_broker_restart")
    def test_a_hiccup_shorter_than_the_heartbeat_loses_no_listener(self, connect: Connect, failing: Broker) -> None:
        listener, other = connect(heartbeat=4), connect(failing.direct_url)
        where = address(DIRECT)
        listener.listen(where)
        for hiccup, cure in ((failing.cut, failing.mend), (failing.pause, failing.resume)):
            hiccup()
            time.sleep(0.2)  # a hiccup lasts
            cure()
            before = listener.count(where)

            def arrives(before: int = before) -> bool:
                try:
                    other.send(where, b"arrives")
                except TransportUnavailable:
                    return False
                return listener.count(where) > before

            eventually(arrives, "frames arrive again")
            listener.wait_for(lambda: listener.states[-1] == CONNECTED, "CONNECTED")

    def test_silence_and_slow_handlers_are_no_outage(self, connect: Connect) -> None:
        quiet, slow, sender = connect(heartbeat=1), connect(heartbeat=1), connect(heartbeat=1)
        addresses = [address(delivery) for delivery in DELIVERIES]
        slow.listen(*addresses)
        quiet.listen(address(ANYCAST), address(DIRECT))
        busy = threading.Event()

        def block(_where: Address, frame: bytes) -> None:
            if frame == b"slow":
                busy.set()
                time.sleep(2.2)  # the condition is that more than two heartbeats pass

        slow.on_frame = block
        sender.send(addresses[0], b"slow")
        assert busy.wait(DEADLINE)
        for where in addresses:
            sender.mark(where, slow)
        for client in (quiet, slow, sender):
            assert [s.name for s in client.states] == ["CONNECTED"]


def _raises_unavailable(job: Callable[[], None]) -> bool:
    with pytest.raises(TransportUnavailable):
        job()
    return True
