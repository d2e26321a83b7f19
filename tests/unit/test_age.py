"""The ages of frames: exact on one machine, never above the truth from another."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dse.core import age as age_module
from dse.core.age import CLOCK_ID, STAMP, FrameAges

OTHER = b"other---"


def test_on_one_machine_the_age_is_exact() -> None:
    ages = FrameAges()
    assert ages.age(100.0, CLOCK_ID, 97.5) == 2.5
    assert ages.age(100.0, CLOCK_ID, 100.0) == 0.0


def test_the_first_frame_of_another_machine_counts_as_fresh() -> None:
    assert FrameAges().age(100.0, OTHER, 9_999_999.0) == 0.0
    assert FrameAges().age(100.0, OTHER, -9_999_999.0) == 0.0


def test_a_stale_frame_is_found_once_a_quick_one_came() -> None:
    ages = FrameAges()
    assert ages.age(100.0, OTHER, 1000.0) == 0.0
    assert ages.age(130.0, OTHER, 1001.0) == 29.0
    assert ages.age(131.0, OTHER, 1031.0) == 0.0


@given(
    offset=st.floats(-1e6, 1e6),
    journeys=st.lists(st.tuples(st.floats(0, 50), st.floats(0, 300)), min_size=1, max_size=50),
)
def test_an_age_is_never_above_the_truth(offset: float, journeys: list[tuple[float, float]]) -> None:
    ages = FrameAges()
    arrival = 1000.0
    for journey, pause in journeys:
        arrival += pause
        found = ages.age(arrival, OTHER, arrival - journey + offset)
        assert -1e-3 <= found <= journey + 1e-3


def test_clocks_that_drift_apart_are_followed() -> None:
    ages = FrameAges()
    now, stamp = 0.0, 0.0
    for _ in range(3000):
        now += 1.0
        stamp += 0.999  # the other clock is slow: every frame seems to be later than the one before
        assert ages.age(now, OTHER, stamp) < 0.3
    for _ in range(3000):
        now += 1.0
        stamp += 1.001
        assert ages.age(now, OTHER, stamp) < 0.3


def test_machines_without_number_cost_no_memory_without_bound() -> None:
    ages = FrameAges()
    for number in range(age_module._MAX_CLOCKS + 100):
        ages.age(1.0, number.to_bytes(8, "big"), 0.0)
    assert len(ages._offsets) <= age_module._MAX_CLOCKS


def test_a_stamp_is_what_it_says() -> None:
    packed = STAMP.pack(1, CLOCK_ID, 12.5, 3.0)
    assert len(CLOCK_ID) == 8
    assert STAMP.unpack(packed) == (1, CLOCK_ID, 12.5, 3.0)
