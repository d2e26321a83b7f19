"""Who is held, greeted, listened to and not, by the machine alone; and how a window forgets."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from dse.core.admission import (
    GREETINGS_PER_SECOND,
    LONGEST_QUIET,
    PATIENCE,
    QUICK,
    SEEN,
    SLOW,
    Admission,
    Held,
    Limits,
    Window,
)
from dse.core.messages import CONTROL


def held(number: int = 1, size: int = 10) -> Held:
    return Held(CONTROL, number, bytes(size))


class TestWindow:
    @given(st.lists(st.integers(1, 60), max_size=300))
    def test_each_number_counts_once(self, numbers: list[int]) -> None:
        window, came = Window(0), set()
        for number in numbers:
            assert window.take(number) is (number not in came)
            came.add(number)

    @given(st.permutations(range(1, 41)), st.sets(st.integers(0, 40)))
    def test_nothing_counts_twice_however_often_it_is_swept(self, order: list[int], sweeps: set[int]) -> None:
        window, came = Window(0), set()
        for step, number in enumerate([*order, *order]):
            if step in sweeps:
                window.sweep()
            if window.take(number):
                assert number not in came
                came.add(number)

    def test_a_frame_that_thousands_overtook_still_counts(self) -> None:
        window = Window(0)
        for number in range(2, SEEN):
            assert window.take(number)
        assert window.take(1)

    def test_what_was_overtaken_by_more_does_not(self) -> None:
        window = Window(0)
        for number in range(2, 2 * SEEN + 2):
            assert window.take(number)
        assert not window.take(1)

    def test_what_it_remembers_is_bounded(self) -> None:
        window = Window(0)
        for number in range(1, 10 * SEEN):
            window.take(number)
            assert len(window._seen) <= 2 * SEEN

    def test_two_sweeps_leave_a_floor_alone(self) -> None:
        window = Window(0)
        window.take(7)
        assert not window.sweep()
        assert window.sweep()
        assert window.floor == 7
        assert not window.take(7)
        assert window.take(8)


class TestAdmission:
    def test_a_stranger_is_greeted_once_and_what_it_says_waits(self) -> None:
        machine = Admission()
        assert machine.hold(0.0, "x", held(1), True, 3)
        assert machine.hold(0.1, "x", held(2), True, 3)
        assert [instance for instance, _ in machine.to_greet] == ["x"]
        assert [each.number for each in machine.take("x")] == [1, 2]
        assert machine.take("x") == []
        assert not machine.strangers

    def test_only_the_answer_to_the_greeting_under_way_counts(self) -> None:
        machine = Admission()
        machine.hold(0.0, "x", held(), True, 3)
        ((_, token),) = machine.to_greet
        assert machine.answers("x", token)
        assert not machine.answers("x", token ^ 1)
        assert not machine.answers("y", token)

    def test_who_does_not_answer_is_not_listened_to_for_twice_as_long_each_time(self) -> None:
        machine, now, quiet = Admission(), 0.0, []
        machine.hold(now, "x", held(), True, 3)
        for _ in range(14):
            now += PATIENCE
            assert [each.number for each in machine.tick(now)["x"]] == [1]
            began = now
            while not machine.hold(now, "x", held(), True, 3):
                now += 0.5
            quiet.append(now - began)
        assert quiet[:4] == [1.0, 2.0, 4.0, 8.0]
        assert quiet[-1] == LONGEST_QUIET

    def test_a_greeting_that_reached_nobody_ends_the_wait_at_once(self) -> None:
        machine = Admission()
        machine.hold(0.0, "x", held(5), True, 3)
        assert [each.number for each in machine.unreachable(0.1, "x")] == [5]
        assert not machine.hold(0.2, "x", held(6), True, 3)

    def test_recordings_of_many_dead_keep_nobody_from_being_greeted_who_speaks_now(self) -> None:
        machine, greeted, dead = Admission(), 0, 0
        for step in range(1000):  # ten seconds, ten thousand recordings a second
            now = step / 100
            for _ in range(100):
                dead += 1
                machine.hold(now, f"dead{dead}", held(), False, 3)
            machine.tick(now)
            greeted += len(machine.to_greet)
            machine.to_greet.clear()
        assert greeted <= SLOW[1] + 10 * SLOW[0] + 1
        machine.hold(10.0, "new", held(), True, 3)
        assert [instance for instance, _ in machine.to_greet] == ["new"]

    def test_recordings_of_this_minute_have_a_bound_too(self) -> None:
        machine = Admission()
        for number in range(10_000):
            machine.hold(0.0, f"dead{number}", held(), True, 3)
        assert len(machine.to_greet) <= QUICK[1] + SLOW[1]
        assert len(machine.strangers) <= QUICK[1] + SLOW[1]

    def test_a_node_whose_clock_is_wrong_is_greeted_as_well(self) -> None:
        machine = Admission()
        assert machine.hold(0.0, "x", held(), False, 3)
        assert len(machine.to_greet) == 1

    def test_what_is_held_is_bounded_for_each_and_in_all(self) -> None:
        machine = Admission(limits=Limits(frames=4, size=100, frames_in_all=6, size_in_all=150))
        assert [machine.hold(0.0, "x", held(number, 10), True, 3) for number in range(5)] == [True] * 4 + [False]
        assert not machine.hold(0.0, "y", held(1, 101), True, 3)
        assert [machine.hold(0.0, "y", held(number, 10), True, 3) for number in range(3)] == [True, True, False]
        assert len(machine.take("x")) == 4
        assert machine.hold(0.0, "y", held(3, 10), True, 3)

    def test_on_a_large_bus_greetings_to_one_new_node_are_spread(self) -> None:
        nodes, rate = 2000, []
        at: list[float] = []
        for seed in range(nodes):
            machine = Admission(rng=random.Random(seed))
            machine.hold(0.0, "new", held(), True, nodes)
            while not machine.to_greet:
                now = machine.wakeup
                machine.tick(now)
            at.append(now)
        for second in range(int(max(at)) + 1):
            rate.append(sum(second <= when < second + 1 for when in at))
        assert max(rate) < GREETINGS_PER_SECOND * 1.5

    @given(st.lists(st.tuples(st.sampled_from("htatuk"), st.integers(0, 5), st.floats(0, 8)), max_size=120))
    @settings(max_examples=200)
    def test_nothing_is_lost_nothing_doubled_and_the_sums_are_right(self, steps: list[tuple[str, int, float]]) -> None:
        machine, now, number = Admission(rng=random.Random(1)), 0.0, 0
        inside: dict[str, list[int]] = {}
        for what, who, pause in steps:
            name = f"n{who}"
            now += pause
            if what == "h":
                number += 1
                if machine.hold(now, name, held(number), who % 2 == 0, who * 40):
                    inside.setdefault(name, []).append(number)
            elif what == "t":
                assert [each.number for each in machine.take(name)] == inside.pop(name, [])
            elif what == "u":
                out = [each.number for each in machine.unreachable(now, name)]
                assert out in ([], inside.get(name, []))
                if out:
                    del inside[name]
            else:
                for silent, out_held in machine.tick(now).items():
                    assert [each.number for each in out_held] == inside.pop(silent, [])
            assert machine._frames == sum(map(len, inside.values()))
            assert machine._size == 10 * machine._frames
            assert machine.wakeup > now or what != "k"
