"""The ages of frames: exact on one machine, never above the truth from another."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dse.core import age as age_module
from dse.core.age import CLOCK_ID, STAMP, FrameAges
from dse.core.connection import BrokerTransport, Session
from dse.core.transport import Address, Capabilities, Delivery
from dse.core.url import TransportUrl

OTHER = b"other---"


class Believed(FrameAges):
    """Every frame is delivered, if not stale, and not refused."""

    def age(self, now: float, clock_id: bytes, stamp: float) -> float:
        age = super().age(now, clock_id, stamp)
        self.believe(now, clock_id, stamp)
        return age


def test_a_frame_that_is_refused_makes_no_other_stale() -> None:
    ages = FrameAges()
    ages.believe(100.0, OTHER, 1000.0)
    assert ages.age(101.0, OTHER, 1e12) == 0.0  # far from the future, and not believed
    assert ages.age(101.0, OTHER, 1001.0) == 0.0
    assert ages.age(131.0, OTHER, 1001.0) == 30.0


def test_frames_that_seem_stale_are_learned_from_or_a_clock_that_was_set_back_would_be_stale_for_ever() -> None:
    ages = FrameAges()
    ages.believe(100.0, OTHER, 1000.0)
    ages_seen = [ages.age(100.0 + 10 * step, OTHER, 900.0 + 10 * step) for step in range(40)]
    assert ages_seen[1] == 100.0
    assert ages_seen[-1] == 0.0


def test_on_one_machine_the_age_is_exact() -> None:
    ages = FrameAges()
    assert ages.age(100.0, CLOCK_ID, 97.5) == 2.5
    assert ages.age(100.0, CLOCK_ID, 100.0) == 0.0


def test_the_first_frame_of_another_machine_counts_as_fresh() -> None:
    assert FrameAges().age(100.0, OTHER, 9_999_999.0) == 0.0
    assert FrameAges().age(100.0, OTHER, -9_999_999.0) == 0.0


def test_a_stale_frame_is_found_once_a_quick_one_came() -> None:
    ages = Believed()
    assert ages.age(100.0, OTHER, 1000.0) == 0.0
    assert ages.age(130.0, OTHER, 1001.0) == 29.0
    assert ages.age(131.0, OTHER, 1031.0) == 0.0


@given(
    offset=st.floats(-1e6, 1e6),
    journeys=st.lists(st.tuples(st.floats(0, 50), st.floats(0, 300)), min_size=1, max_size=50),
)
def test_an_age_is_never_above_the_truth(offset: float, journeys: list[tuple[float, float]]) -> None:
    ages = Believed()
    arrival = 1000.0
    for journey, pause in journeys:
        arrival += pause
        found = ages.age(arrival, OTHER, arrival - journey + offset)
        assert -1e-3 <= found <= journey + 1e-3


def test_clocks_that_drift_apart_are_followed() -> None:
    ages = Believed()
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
        ages.believe(1.0, number.to_bytes(8, "big"), 0.0)
    assert len(ages._offsets) <= age_module._MAX_CLOCKS


def test_a_stamp_is_what_it_says() -> None:
    packed = STAMP.pack(1, CLOCK_ID, 12.5, 3.0)
    assert len(CLOCK_ID) == 8
    assert STAMP.unpack(packed) == (1, CLOCK_ID, 12.5, 3.0)


class Handler:
    """Takes frames, and says of those that begin with ``forged`` that it does not believe them."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    def received(self, address: Address, frame: bytes) -> bool | None:
        self.frames.append(frame)
        return False if frame.startswith(b"forged") else None

    def undeliverable(self, address: Address, frame: bytes) -> None: ...
    def state_changed(self, state: object) -> None: ...


class Bare(BrokerTransport):
    capabilities = Capabilities(undeliverable=False, max_frame=1000, survives_broker_restart=False)

    def session(self) -> Session:
        raise NotImplementedError


def test_a_transport_learns_from_no_frame_that_its_user_does_not_believe() -> None:
    handler = Handler()
    transport = Bare(TransportUrl.parse("bare://h"), bus="b", events=handler)  # type: ignore[arg-type]
    address = Address(Delivery.DIRECT, "a")
    transport._listeners[address] = None  # type: ignore[assignment]
    transport.deliver(address, STAMP.pack(1, OTHER, 1000.0, 5.0) + b"first")
    transport.deliver(address, STAMP.pack(1, OTHER, 1e12, 5.0) + b"forged")
    transport.deliver(address, STAMP.pack(1, OTHER, 1000.0, 5.0) + b"second")
    assert handler.frames == [b"first", b"forged", b"second"]
    transport.deliver(address, STAMP.pack(1, OTHER, 1e12, 5.0) + b"taken")
    transport.deliver(address, STAMP.pack(1, OTHER, 1000.0, 5.0) + b"stale by it")
    assert handler.frames[3:] == [b"taken"]
