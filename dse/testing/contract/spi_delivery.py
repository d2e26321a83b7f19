"""Guarantees 2, 3 and 4: who receives, in which order, and how often."""

from __future__ import annotations

import random
import struct
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from dse.core.transport import Address, Delivery
from dse.testing.contract.fixtures import (
    ANYCAST,
    DELIVERIES,
    DIRECT,
    FANOUT,
    Connect,
    Contract,
    StartPeer,
    each_delivery,
    needs,
)
from dse.testing.contract.recorder import DEADLINE, address, assert_each_once, assert_in_order, wait_total

__all__ = ["TestAtMostOnce", "TestDelivery", "TestOrder"]

_NUMBER = struct.Struct(">HI")  # who sent it, and its number among the sender's frames to the address


def run_together(jobs: Sequence[Callable[[], None]], deadline: float = 3 * DEADLINE) -> None:
    """Run each job in a thread of its own, all beginning together; fail if one fails or does not end."""
    start = threading.Barrier(len(jobs))
    failures: list[BaseException] = []

    def run(job: Callable[[], None]) -> None:
        start.wait(DEADLINE)
        try:
            job()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(job,), name=f"job-{n}", daemon=True) for n, job in enumerate(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(deadline)
    assert not [thread.name for thread in threads if thread.is_alive()], "a thread hangs"
    if failures:
        raise failures[0]


def numbered(sender: int, number: int, size: int = 0) -> bytes:
    return _NUMBER.pack(sender, number) + bytes(size)


def numbers(frames: Iterable[bytes]) -> dict[int, list[int]]:
    """Return each sender's numbers in the order of arrival."""
    found: dict[int, list[int]] = {}
    for frame in frames:
        sender, number = _NUMBER.unpack_from(frame)
        found.setdefault(sender, []).append(number)
    return found


def assert_numbers(frames: Iterable[bytes], *, senders: int, count: int) -> None:
    """Fail unless these are the numbers 0 to count - 1 of each sender, each sender's in order."""
    found = numbers(frames)
    assert sorted(found) == list(range(senders)), "not every sender was heard"
    for got in found.values():
        assert_in_order(got, range(count))


class TestDelivery(Contract):
    """DIRECT and ANYCAST reach exactly one listener, FANOUT each listener once, the sender too if it listens."""

    guarantee = 2

    def test_direct_reaches_its_listener_and_nobody_else(self, connect: Connect) -> None:
        clients = [connect() for _ in range(4)]
        own = [address(DIRECT) for _ in clients]
        for client, where in zip(clients, own, strict=True):
            client.listen(where)
        for number, sender in enumerate(clients):
            for where in own:
                sender.send(where, b"%d" % number)
        for client, where in zip(clients, own, strict=True):
            client.wait_count(len(clients), where)
        for client, where in zip(clients, own, strict=True):
            clients[0].mark(where, client)
        for client, where in zip(clients, own, strict=True):
            assert list(client.all_frames()) == [where]
            assert sorted(client.frames(where)[:4]) == [b"0", b"1", b"2", b"3"]
            assert client.count(where) == 5

    def test_anycast_reaches_exactly_one_of_the_listeners(self, connect: Connect) -> None:
        where, done = address(ANYCAST), address(FANOUT)
        listeners = [connect() for _ in range(4)]
        senders = [connect(), listeners[0]]
        for listener in listeners:
            listener.listen(where, done)
        for number in range(400):
            senders[number % 2].send(where, b"%d" % number)
        wait_total(listeners, where, 400)
        for sender in senders:
            sender.mark(done, *listeners)
        got = [frame for listener in listeners for frame in listener.frames(where)]
        assert_each_once(got, (b"%d" % number for number in range(400)))

    def test_anycast_goes_on_with_the_listeners_that_remain(self, connect: Connect) -> None:
        where, sender = address(ANYCAST), connect()
        listeners = [connect() for _ in range(3)]
        for listener in listeners:
            listener.listen(where)
        for turn, leaving in enumerate((None, 0, 1)):
            if leaving == 0:
                listeners[0].unlisten(where)
            elif leaving == 1:
                listeners[1].close()
            for number in range(50):
                sender.send(where, b"%d/%d" % (turn, number))
            wait_total(listeners, where, 50 * (turn + 1))
        got = [frame for listener in listeners for frame in listener.frames(where)]
        assert_each_once(got, (b"%d/%d" % (turn, number) for turn in range(3) for number in range(50)))

    def test_fanout_reaches_every_listener_once_the_sender_too(self, connect: Connect) -> None:
        where = address(FANOUT)
        clients = [connect() for _ in range(5)]
        deaf = connect()
        for client in clients:
            client.listen(where)
        for number, client in enumerate([*clients, deaf]):
            for turn in range(20):
                client.send(where, numbered(number, turn))
        for client in clients:
            client.wait_count(120, where)
        deaf.mark(where, *clients)
        for client in clients:
            assert_numbers(client.frames(where)[:120], senders=6, count=20)
            assert client.count(where) == 121
        assert not deaf.all_frames()

    @each_delivery
    def test_nothing_comes_after_unlisten(self, connect: Connect, delivery: Delivery) -> None:
        listener, sender = connect(), connect()
        where, other = address(delivery), address(delivery)
        listener.listen(where, other)
        sender.mark(where, listener)
        listener.unlisten(where)
        listener.unlisten(where)
        for _ in range(20):
            sender.send(where, b"too late")
        sender.mark(other, listener)
        # Broker and driver have passed all that came before this, whichever way addresses travel.
        listener.listen(where)
        sender.mark(where, listener)
        assert b"too late" not in listener.frames(where)

    def test_unlisten_of_one_leaves_the_others_listening(self, connect: Connect) -> None:
        where = address(FANOUT)
        clients = [connect() for _ in range(3)]
        for client in clients:
            client.listen(where)
        clients[0].unlisten(where)
        clients[1].mark(where, *clients[1:])
        clients[0].mark(where, *clients[1:])
        assert not clients[0].frames(where)

    @each_delivery
    def test_empty_and_binary_frames_arrive_as_they_are(self, connect: Connect, delivery: Delivery) -> None:
        listener, sender = connect(), connect()
        where = address(delivery)
        listener.listen(where)
        frames = [b"", bytes(range(256)), b"\r\n", b"\0" * 100, b"\xce\xff", uuid.uuid4().bytes, b"", b"\x00", b"\x01"]
        for frame in frames:
            sender.send(where, frame)
        listener.wait_count(len(frames), where)
        assert listener.frames(where) == frames
        assert all(type(frame) is bytes for frame in listener.frames(where))

    @needs("multiprocess")
    def test_the_same_holds_across_processes(self, connect: Connect, start_peer: StartPeer) -> None:
        here, peers = connect(), [start_peer() for _ in range(2)]
        direct, anycast, fanout = (address(delivery) for delivery in DELIVERIES)
        back = address(DIRECT)
        here.listen(fanout, back)
        for peer in peers:
            peer.listen(fanout)
            peer.echo(anycast, back)
        peers[0].listen(direct)
        everything = [b"%d" % number for number in range(100)]
        for frame in everything:
            for where in (direct, anycast, fanout):
                here.send(where, frame)
        peers[0].wait_count(100, direct)
        here.wait_count(100, fanout)
        here.wait_count(100, back)
        for peer in peers:
            peer.wait_count(100, fanout)
            assert_in_order(peer.frames(fanout), everything)
        assert_in_order(peers[0].frames(direct), everything)
        assert not peers[1].frames(direct)
        here.mark(fanout, here)
        assert_each_once(here.frames(back), everything)


class TestOrder(Contract):
    """Frames from one transport to one address arrive in the order sent."""

    guarantee = 3

    @each_delivery
    def test_order_holds_from_several_senders_at_once(self, connect: Connect, delivery: Delivery) -> None:
        listener, senders = connect(), [connect() for _ in range(4)]
        addresses = [address(delivery) for _ in range(3)]
        listener.listen(*addresses)
        count = 300
        dice = random.Random(4)
        sizes = [dice.choice((0, 10, 500, 3000, 20_000)) for _ in range(97)]

        def send(number: int) -> Callable[[], None]:
            def job() -> None:
                for turn in range(count):
                    for where in addresses:
                        senders[number].send(where, numbered(number, turn, sizes[(turn + number) % len(sizes)]))

            return job

        run_together([send(number) for number in range(len(senders))])
        for where in addresses:
            listener.wait_count(count * len(senders), where)
            assert_numbers(listener.frames(where), senders=len(senders), count=count)

    @each_delivery
    def test_order_holds_for_each_of_several_listeners(self, connect: Connect, delivery: Delivery) -> None:
        listeners, senders = [connect() for _ in range(1 if delivery is DIRECT else 3)], [connect() for _ in range(2)]
        where = address(delivery)
        for listener in listeners:
            listener.listen(where)
        count = 500

        def send(number: int) -> Callable[[], None]:
            def job() -> None:
                for turn in range(count):
                    senders[number].send(where, numbered(number, turn, 50))

            return job

        run_together([send(number) for number in range(len(senders))])
        copies = len(listeners) if delivery is FANOUT else 1
        wait_total(listeners, where, count * len(senders) * copies)
        for listener in listeners:
            for got in numbers(listener.frames(where)).values():
                assert_in_order(got, sorted(got))

    @each_delivery
    def test_order_holds_over_threads_that_take_turns(self, connect: Connect, delivery: Delivery) -> None:
        listener, sender = connect(), connect()
        where = address(delivery)
        listener.listen(where)
        turns, lock = iter(range(400)), threading.Lock()

        def job() -> None:
            while True:
                with lock:
                    turn = next(turns, None)
                    if turn is None:
                        return
                    sender.send(where, numbered(0, turn, 5000 if turn % 7 == 0 else 0))

        run_together([job] * 4)
        listener.wait_count(400, where)
        assert_numbers(listener.frames(where), senders=1, count=400)

    @each_delivery
    def test_ttl_does_not_change_the_order(self, connect: Connect, delivery: Delivery) -> None:
        listener, sender = connect(), connect()
        where = address(delivery)
        listener.listen(where)
        for turn in range(300):
            sender.send(where, numbered(0, turn), (None, 60.0, 600.0)[turn % 3])
        listener.wait_count(300, where)
        assert_numbers(listener.frames(where), senders=1, count=300)


class TestAtMostOnce(Contract):
    """At most once while connected, with no loss while connected and below the limits. No duplicates, ever."""

    guarantee = 4

    @each_delivery
    def test_of_ten_thousand_frames_from_eight_threads_each_arrives_once(
        self, connect: Connect, delivery: Delivery
    ) -> None:
        listeners = [connect() for _ in range({DIRECT: 1, ANYCAST: 3, FANOUT: 2}[delivery])]
        sender, threads, count = connect(), 8, 1250
        where = address(delivery)
        for listener in listeners:
            listener.listen(where)

        def send(number: int) -> Callable[[], None]:
            def job() -> None:
                for turn in range(count):
                    sender.send(where, numbered(number, turn))

            return job

        run_together([send(number) for number in range(threads)])
        copies = len(listeners) if delivery is FANOUT else 1
        wait_total(listeners, where, threads * count * copies)
        done = address(FANOUT)
        for listener in listeners:
            listener.listen(done)
        sender.mark(done, *listeners)
        expected = [numbered(n, turn) for n in range(threads) for turn in range(count)] * copies
        assert_each_once((frame for listener in listeners for frame in listener.frames(where)), expected)
        assert not sender.all_returned()

    @each_delivery
    def test_listeners_that_come_and_go_lose_and_double_nothing(self, connect: Connect, delivery: Delivery) -> None:
        stable, fickle, sender = connect(), connect(), connect()
        where, elsewhere = address(delivery), address(delivery)
        shared = elsewhere if delivery is DIRECT else where  # a second DIRECT listener would be misuse
        stable.listen(where)
        ended = threading.Event()

        def come_and_go() -> None:
            while not ended.is_set():
                fickle.listen(shared)
                fickle.unlisten(shared)

        def send() -> None:
            try:
                for turn in range(2000):
                    sender.send(where, numbered(0, turn))
            finally:
                ended.set()

        run_together([send, come_and_go])
        both = [stable] if delivery is FANOUT else [stable, fickle]
        wait_total(both, where, 2000)
        sender.mark(where, stable)
        got = [frame for client in both for frame in client.frames(where) if not frame.startswith(b"marker")]
        assert_each_once(got, (numbered(0, turn) for turn in range(2000)))
        assert max(Counter(fickle.frames(where)).values(), default=1) == 1

    @each_delivery
    def test_a_burst_waits_for_a_slow_handler(self, connect: Connect, delivery: Delivery) -> None:
        listener, sender = connect(), connect()
        where = address(delivery)
        release, busy = threading.Event(), threading.Event()

        def block(_where: Address, _frame: bytes) -> None:
            busy.set()
            release.wait(DEADLINE)

        listener.on_frame = block
        listener.listen(where)
        try:
            for turn in range(3000):
                sender.send(where, numbered(0, turn, 200))
            assert busy.wait(DEADLINE)
        finally:
            release.set()
        listener.wait_count(3000, where)
        sender.mark(where, listener)
        assert_numbers(listener.frames(where)[:3000], senders=1, count=3000)
        assert listener.count(where) == 3001

    def test_listeners_that_come_and_go_do_not_drown_the_one_that_stays(self, connect: Connect) -> None:
        stable, fickle, sender = connect(), connect(), connect()
        where = address(ANYCAST)
        release, busy = threading.Event(), threading.Event()

        def block(_where: Address, _frame: bytes) -> None:
            busy.set()
            release.wait(DEADLINE)

        stable.on_frame = block
        stable.listen(where)
        try:
            for turn in range(1000):
                sender.send(where, numbered(0, turn))
            assert busy.wait(DEADLINE)
            for _ in range(150):
                fickle.listen(where)
                fickle.unlisten(where)
        finally:
            release.set()
        wait_total([stable, fickle], where, 1000)
        got = stable.frames(where) + fickle.frames(where)
        assert_each_once(got, (numbered(0, turn) for turn in range(1000)))

    @needs("multiprocess")
    def test_an_echo_in_another_process_answers_each_frame_once(self, connect: Connect, start_peer: StartPeer) -> None:
        here, peer = connect(), start_peer()
        there, back = address(ANYCAST), address(DIRECT)
        here.listen(back)
        peer.echo(there, back)
        for turn in range(1000):
            here.send(there, numbered(0, turn))
        here.wait_count(1000, back)
        here.send(there, b"the last")
        here.wait_frame(back, b"the last")
        assert_numbers(here.frames(back)[:1000], senders=1, count=1000)
        assert here.count(back) == 1001
