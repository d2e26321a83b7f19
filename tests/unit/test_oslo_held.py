"""What a sender keeps for those who do not listen yet, which pools it knows, and whose turn it is: by the clock."""

from __future__ import annotations

import random

from dse.oslo.held import RETRY, SETTLE, Held, Parcel
from dse.oslo.pools import WINDOW, PoolBook
from dse.oslo.turns import ASK_AGAIN, Turns

A, B = "a:rpc/x/a", "a:note/x/b"


def parcel(number: int, address: str = A, deadline: float = 1e9) -> Parcel:
    return Parcel(address, b"%d" % number, deadline, number)


def numbers(parcels: list[Parcel]) -> list[int]:
    return [each.number for each in parcels]


def held(*numbers_of_a: int, messages: int = 100, size: int = 10_000) -> Held:
    made = Held(messages, size)
    for number in numbers_of_a:
        assert made.hold(0.0, parcel(number), lossy=False) == []
    return made


class TestHeld:
    def test_all_leave_in_order_as_soon_as_somebody_listens(self) -> None:
        machine = held(3, 1, 2)
        machine.heard(5.0, [A])
        assert machine.wakeup == 5.0
        send, expired = machine.tick(5.0)
        assert (numbers(send), expired, len(machine)) == ([1, 2, 3], [], 0)

    def test_somebody_elsewhere_is_not_meant(self) -> None:
        machine = held(1, 2)
        machine.heard(0.1, [B, A + "/server"])
        assert machine.tick(0.1) == ([], [])

    def test_the_oldest_is_tried_alone_and_the_rest_follows_when_it_stays_away(self) -> None:
        machine = held(1, 2, 3)
        now = machine.wakeup
        assert numbers(machine.tick(now)[0]) == [1]
        now = machine.wakeup
        assert numbers(machine.tick(now)[0]) == [2, 3]

    def test_the_oldest_is_tried_again_while_it_comes_back(self) -> None:
        machine = held(1, 2)
        tries = 0
        now = 0.0
        while now < 10.0:
            now = machine.wakeup
            for sent in machine.tick(now)[0]:
                assert sent.number == 1
                tries += 1
                machine.hold(now + 0.01, parcel(1), lossy=False)
        assert len(machine) == 2
        assert 10.0 / (SETTLE + RETRY) <= tries <= 10.0 / RETRY

    def test_a_report_that_is_late_finds_that_somebody_has_come_meanwhile(self) -> None:
        machine = Held(10, 1000)
        machine.heard(1.0, [A])
        machine.hold(1.5, parcel(1), lossy=False)
        assert numbers(machine.tick(1.5)[0]) == [1]

    def test_what_comes_back_keeps_its_place_and_its_deadline(self) -> None:
        machine = Held(10, 1000)
        for number in (1, 2):
            machine.hold(0.0, parcel(number, deadline=7.0), lossy=False)
        machine.heard(1.0, [A])
        for sent in reversed(machine.tick(1.0)[0]):
            machine.hold(1.1, Parcel(A, sent.frame, 99.0, 50), lossy=False)
        machine.heard(2.5, [A])
        assert [(p.number, p.deadline) for p in machine.tick(2.5)[0]] == [(1, 7.0), (2, 7.0)]

    def test_one_whose_deadline_has_passed_is_given_up(self) -> None:
        machine = Held(10, 1000)
        machine.hold(0.0, parcel(1, deadline=0.5), lossy=False)
        machine.hold(0.0, parcel(2, deadline=50.0), lossy=False)
        _, expired = machine.tick(0.5)
        assert numbers(expired) == [1]

    def test_nothing_is_sent_while_there_is_no_connection(self) -> None:
        machine = held(1, 2)
        for step in range(10):
            assert machine.tick(float(step), may_send=False) == ([], [])
        machine.heard_all(10.0)
        assert numbers(machine.tick(10.0)[0]) == [1, 2]

    def test_beyond_the_bound_the_newest_is_refused(self) -> None:
        machine = held(1, 2, messages=2)
        assert numbers(machine.hold(0.0, parcel(3), lossy=False)) == [3]
        assert machine.hold(0.0, parcel(4, B), lossy=False) == []

    def test_of_notifications_the_oldest_goes_instead(self) -> None:
        machine = Held(2, 1000)
        lost = [numbers(machine.hold(0.0, parcel(n, B), lossy=True)) for n in range(4)]
        assert lost == [[], [], [0], [1]]
        machine.heard(1.0, [B])
        assert numbers(machine.tick(1.0)[0]) == [2, 3]

    def test_the_bytes_of_all_addresses_are_bounded(self) -> None:
        machine = Held(100, 10)
        assert machine.hold(0.0, Parcel(A, b"x" * 6, 9.0, 1), lossy=False) == []
        assert numbers(machine.hold(0.0, Parcel(B, b"x" * 6, 9.0, 2), lossy=True)) == [2]
        machine.withdraw(A, b"x" * 6)
        assert machine.hold(0.0, Parcel(B, b"x" * 6, 9.0, 2), lossy=True) == []

    def test_one_that_is_withdrawn_is_not_sent(self) -> None:
        machine = held(1, 2, 3)
        machine.withdraw(A, b"2")
        machine.withdraw(A, b"9")
        machine.withdraw(B, b"1")
        machine.heard(1.0, [A])
        assert numbers(machine.tick(1.0)[0]) == [1, 3]

    def test_nothing_is_remembered_when_all_has_been_sent(self) -> None:
        machine = held(1)
        machine.heard(1.0, [A, B])
        machine.tick(1.0)
        machine.tick(machine.wakeup)
        assert (machine.wakeup, machine._shelves, machine._heard) == (float("inf"), {}, {})

    def test_every_message_reaches_a_listener_once_whatever_happens(self) -> None:
        for seed in range(300):
            chance = random.Random(seed)
            machine = Held(1000, 100_000)
            now, got, told = 0.0, [], 0
            listens = False
            on_the_way = [parcel(number) for number in range(20)]
            while len(got) < 20:
                now += chance.random()
                assert now < 500, f"seed {seed}: {len(got)} of 20"
                if chance.random() < 0.3:
                    listens = not listens
                    if listens and chance.random() < 0.5:  # or word of it is lost
                        machine.heard(now, [A])
                        told += 1
                for each in on_the_way:
                    if listens:
                        got.append(each.number)
                    else:
                        machine.hold(now + 0.001, Parcel(A, each.frame, 1e9, each.number), lossy=False)
                on_the_way, expired = machine.tick(now + 0.002)
                assert expired == []
            assert sorted(got) == list(range(20)), f"seed {seed}"


class TestPoolBook:
    def test_the_first_notification_asks_and_the_next_does_not(self) -> None:
        book = PoolBook()
        assert book.notified(0.0, B, b"1") == (True, [])
        assert book.notified(0.1, B, b"2") == (False, [])

    def test_a_pool_that_answers_gets_what_was_sent_since_it_was_asked(self) -> None:
        book = PoolBook()
        book.notified(0.0, B, b"1")
        book.notified(0.1, B, b"2")
        pool = f"{B}/red"
        assert book.told(0.2, [(B, "red")], asked=True) == [(pool, b"1"), (pool, b"2")]
        assert book.told(0.3, [(B, "red")], asked=True) == []
        assert book.notified(0.4, B, b"3") == (False, [pool])

    def test_a_pool_that_says_that_it_has_come_gets_what_is_sent_from_then_on(self) -> None:
        book = PoolBook()
        book.notified(0.0, B, b"1")
        assert book.told(0.1, [(B, "red")], asked=False) == []
        assert book.notified(0.2, B, b"2") == (False, [f"{B}/red"])

    def test_an_answer_that_is_late_brings_no_copies(self) -> None:
        book = PoolBook()
        book.notified(0.0, B, b"1")
        assert book.told(WINDOW, [(B, "red")], asked=True) == []

    def test_pools_of_what_is_never_notified_are_not_remembered(self) -> None:
        book = PoolBook()
        assert book.told(0.0, [(B, "red")], asked=False) == []
        assert book.notified(0.1, B, b"1") == (True, [])

    def test_after_an_outage_all_is_asked_for_again(self) -> None:
        book = PoolBook()
        book.notified(0.0, B, b"1")
        assert book.ask_again(5.0) == [B]
        assert book.told(5.1, [(B, "red")], asked=True) == []  # what was sent before the outage, it had or missed
        book.notified(5.2, B, b"2")
        assert book.told(5.3, [(B, "blue")], asked=True) == [(f"{B}/blue", b"2")]

    def test_a_pool_of_which_nobody_is_left_is_forgotten(self) -> None:
        book = PoolBook()
        book.notified(0.0, B, b"1")
        book.told(0.1, [(B, "red"), (B, "a/b")], asked=True)
        book.forget(f"{B}/red")
        assert book.notified(0.2, B, b"2") == (False, [f"{B}/a%2Fb"])


class TestTurns:
    def test_the_first_message_to_a_topic_asks_and_then_one_every_half_minute(self) -> None:
        turns = Turns()
        assert [turns.asks(now, A) for now in (0.0, 1.0, ASK_AGAIN, ASK_AGAIN + 1)] == [
            (True, True),
            (False, False),
            (True, False),
            (False, False),
        ]

    def test_servers_take_turns(self) -> None:
        turns = Turns()
        turns.asks(0.0, A)
        assert turns.next(A) is None
        for server in ("x", "y", "x"):
            turns.here(server, [A, B])
        assert [turns.next(A) for _ in range(4)] in (["x", "y"] * 2, ["y", "x"] * 2)
        assert (turns.known(A), turns.known(B), turns.next(B)) == (2, 0, None)

    def test_who_has_gone_has_no_turn(self) -> None:
        turns = Turns()
        for address in (A, B):
            turns.asks(0.0, address)
        for server in ("x", "y"):
            turns.here(server, [A, B])
        turns.gone("x", [A])
        assert {turns.next(A) for _ in range(4)} == {"y"}
        assert {turns.next(B) for _ in range(4)} == {"x", "y"}
        turns.gone("y")
        assert (turns.next(A), turns.next(B)) == (None, "x")

    def test_after_an_outage_nobody_is_known(self) -> None:
        turns = Turns()
        turns.asks(0.0, A)
        turns.here("x", [A])
        assert turns.ask_again(9.0) == [A]
        assert turns.next(A) is None
        assert turns.asks(10.0, A) == (False, False)
