"""What happened on a transport: a recorder of events, and a client that is a transport with its recorder."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence

from dse.core.transport import Address, ConnectionState, Delivery, Transport
from dse.core.url import TransportUrl

__all__ = [
    "DEADLINE",
    "PROMPT",
    "Client",
    "Recorder",
    "address",
    "assert_each_once",
    "assert_in_order",
    "eventually",
    "wait_total",
    "with_options",
]

DEADLINE = float(os.environ.get("DSE_CONTRACT_DEADLINE", "20"))
"""Seconds until a test gives up on something that must happen; generous, for a machine under load."""

PROMPT = 4.0
"""Seconds that count as prompt: below the default connect timeout and heartbeat, above a busy machine's hiccups."""

Hook = Callable[[Address, bytes], None]


def address(delivery: Delivery = Delivery.DIRECT, name: str = "") -> Address:
    """Return an address that no other test uses."""
    return Address(delivery, f"{name}{uuid.uuid4().hex[:12]}")


def with_options(url: str, **options: object) -> str:
    """Return a transport URL with options added."""
    query = "&".join(f"{name}={value}" for name, value in options.items())
    return f"{url}{'&' if '?' in url else '?'}{query}" if query else url


class Recorder:
    """Transport events that remembers everything, and lets a test wait for it.

    on_frame, on_returned, on_state: called from the driver's thread after the event was recorded, without the lock.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        # Protected by _changed.
        self._frames: dict[Address, list[bytes]] = defaultdict(list)
        self._returned: dict[Address, list[bytes]] = defaultdict(list)
        self._states: list[ConnectionState] = []
        self._events = 0
        self.on_frame: Hook | None = None
        self.on_returned: Hook | None = None
        self.on_state: Callable[[ConnectionState], None] | None = None

    # TransportEvents

    def received(self, address: Address, frame: bytes) -> None:
        with self._changed:
            self._frames[address].append(frame)
            self._events += 1
            self._changed.notify_all()
        if self.on_frame is not None:
            self.on_frame(address, frame)

    def undeliverable(self, address: Address, frame: bytes) -> None:
        with self._changed:
            self._returned[address].append(frame)
            self._events += 1
            self._changed.notify_all()
        if self.on_returned is not None:
            self.on_returned(address, frame)

    def state_changed(self, state: ConnectionState) -> None:
        with self._changed:
            self._states.append(state)
            self._events += 1
            self._changed.notify_all()
        if self.on_state is not None:
            self.on_state(state)

    # What was recorded

    @property
    def events(self) -> int:
        """How many events there were, of any kind."""
        with self._changed:
            return self._events

    @property
    def states(self) -> list[ConnectionState]:
        with self._changed:
            return list(self._states)

    def frames(self, address: Address) -> list[bytes]:
        """Return what was received at an address."""
        with self._changed:
            return list(self._frames.get(address, ()))

    def all_frames(self) -> dict[Address, list[bytes]]:
        with self._changed:
            return {where: list(frames) for where, frames in self._frames.items()}

    def returned(self, address: Address) -> list[bytes]:
        """Return what was reported undeliverable at an address."""
        with self._changed:
            return list(self._returned.get(address, ()))

    def all_returned(self) -> list[tuple[Address, bytes]]:
        with self._changed:
            return [(where, frame) for where, frames in self._returned.items() for frame in frames]

    def count(self, *addresses: Address) -> int:
        """Return how many frames were received at these addresses."""
        with self._changed:
            return sum(len(self._frames.get(where, ())) for where in addresses)

    # Waiting

    def wait_for(self, predicate: Callable[[], bool], what: str, timeout: float | None = None) -> None:
        """Wait until the predicate, looked at after each event, is true; fail the test when it takes too long."""
        timeout = DEADLINE if timeout is None else timeout
        with self._changed:
            if self._changed.wait_for(predicate, timeout):
                return
            states = ", ".join(map(str, self._states))
            seen = sum(map(len, self._frames.values()))
            back = sum(map(len, self._returned.values()))
        raise AssertionError(
            f"not within {timeout:g} s: {what} (so far {seen} frames, {back} undeliverable, states: {states or 'none'})"
        )

    def wait_count(self, count: int, *addresses: Address, timeout: float | None = None) -> None:
        """Wait until `count` frames were received at these addresses together."""
        self.wait_for(lambda: self.count(*addresses) >= count, f"{count} frames", timeout)

    def wait_frame(self, address: Address, frame: bytes, timeout: float | None = None) -> None:
        """Wait until this frame was received at the address."""
        shown = f"{frame[:40]!r}{'…' if len(frame) > 40 else ''}"
        self.wait_for(lambda: frame in self._frames.get(address, ()), f"the frame {shown} at {address}", timeout)

    def wait_returned(self, address: Address, frame: bytes, timeout: float | None = None) -> None:
        """Wait until this frame was reported undeliverable at the address."""
        self.wait_for(
            lambda: frame in self._returned.get(address, ()),
            f"the report that {frame[:40]!r} is undeliverable",
            timeout,
        )

    def wait_state(self, state: ConnectionState, timeout: float | None = None, *, times: int = 1) -> None:
        """Wait until the state was entered that often since the recorder was made."""
        self.wait_for(lambda: self._states.count(state) >= times, f"{state.name} (times: {times})", timeout)


class Client(Recorder):
    """A transport that records its own events."""

    def __init__(self, driver: type[Transport], url: str | TransportUrl, bus: str) -> None:
        super().__init__()
        self.transport = driver(TransportUrl.parse(url), bus=bus, events=self)

    def open(self) -> None:
        self.transport.open()

    def close(self) -> None:
        self.transport.close()

    def listen(self, *addresses: Address) -> None:
        for where in addresses:
            self.transport.listen(where)

    def unlisten(self, *addresses: Address) -> None:
        for where in addresses:
            self.transport.unlisten(where)

    def send(self, address: Address, frame: bytes, ttl: float | None = None) -> None:
        self.transport.send(address, frame, ttl=ttl)

    def mark(self, address: Address, *receivers: Recorder) -> None:
        """Send a frame nobody has seen and wait until each receiver has it.

        Frames from one transport to one address come in order: what was sent there before has come, or never will.
        """
        marker = b"marker " + uuid.uuid4().bytes
        self.send(address, marker)
        for receiver in receivers:
            receiver.wait_frame(address, marker)


def eventually(predicate: Callable[[], bool], what: str, timeout: float | None = None) -> None:
    """Look again and again until the predicate is true: for what tells nobody when it changes, such as a broker."""
    timeout = DEADLINE if timeout is None else timeout
    until = time.monotonic() + timeout
    while not predicate():
        assert time.monotonic() < until, f"not within {timeout:g} s: {what}"
        time.sleep(0.005)


def wait_total(clients: Sequence[Recorder], address: Address, count: int) -> None:
    """Wait until the clients together have received `count` frames at an address."""

    def total() -> int:
        return sum(client.count(address) for client in clients)

    try:
        eventually(lambda: total() >= count, f"{count} frames")
    except AssertionError as error:
        raise AssertionError(f"{error}; listeners have {[client.count(address) for client in clients]}") from None


# Of thousands of items pytest's own comparison, which in CI spells out every difference, takes minutes.


def assert_each_once(got: Iterable[Hashable], expected: Iterable[Hashable]) -> None:
    """Fail unless the items are the expected ones, as often as expected, in any order; say briefly what differs."""
    have, want = Counter(got), Counter(expected)
    if have == want:
        return
    missing, extra = want - have, have - want
    raise AssertionError(
        f"of {want.total():,} items {missing.total():,} are missing{_first(missing)}"
        f" and {extra.total():,} are too many{_first(extra)}"
    )


def assert_in_order(got: Sequence[object], expected: Sequence[object]) -> None:
    """Fail unless the items are the expected ones in their order; say briefly where they part."""
    if list(got) == list(expected):
        return
    where = next(
        (n for n, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b), min(len(got), len(expected))
    )
    raise AssertionError(
        f"{len(got):,} items for {len(expected):,}; they part at number {where:,}:"
        f" {_brief(got[where : where + 3])} instead of {_brief(expected[where : where + 3])}"
    )


def _first(items: Iterable[object]) -> str:
    some = list(items)[:3]
    return f" ({_brief(some)}, …)" if some else ""


def _brief(items: Sequence[object]) -> str:
    return ", ".join(f"{text[:60]}{'…' * (len(text) > 60)}" for text in map(repr, items)) or "nothing"
