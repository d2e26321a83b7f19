"""`dse check URL`: is a broker there, how fast is it, and does it keep what DSE builds on?

It opens two transports on a bus of its own and tries each guarantee of docs/transports.md that can be seen from two
connections, within seconds and without disturbing anybody. The contract suite proves a driver; this proves a broker:
its rights, its version, its limits, and the network in between. What would harm others on the broker (an outage, a
crash) is not tried, and it says so.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from dse.cli.bus import quiet_log
from dse.cli.doctor import advice
from dse.cli.keys import read_key_file
from dse.cli.progress import Bar, progress
from dse.cli.text import clean
from dse.core.figures import FIGURES
from dse.core.node import Node
from dse.core.plugins import load_transport
from dse.core.transport import Address, ConnectionState, Delivery, Transport
from dse.core.url import TransportUrl
from dse.errors import ConfigError, DseError, FrameTooLarge, InvalidUrl, TransportUnavailable

__all__ = ["Finding", "run_check"]

PATIENCE = 5.0  # seconds for frames to arrive
IMPATIENCE = 1.0  # ... once something has failed: a broker that loses all must not take all day to be found out
ROUND_TRIPS_TAKE = 10.0  # seconds at most
REPORTED = 1.0  # seconds within which an undeliverable frame is reported
SILENCE = 0.3  # seconds in which a frame that must not arrive would have
ROUND_TRIPS = 200
SLOW = 0.5  # seconds from which a round trip is worth a word
IN_ORDER = 1000
AT_ONCE = 4  # threads that send at the same time
EACH = 100  # frames that each of them sends
NAMES = ("*", "#", "a.b", "a.*", "a.#", "a", "a?", "[ab]", "{a}", "a:b", "%2A", "a b", "ä")
"""Names that some broker takes for something else."""

NOT_TRIED = (
    (
        "an outage is noticed, waited out and mended",
        "not tried here: others use the broker. The contract suite kills, hangs and cuts off private ones (make test)",
    ),
    (
        "a crash leaves nothing behind after 60 s",
        "not tried here: it takes that long. The contract suite kills processes and looks at the broker (make test)",
    ),
)


def new_bus() -> str:
    """Return a name that no other bus has."""
    return f"check-{uuid.uuid4().hex[:12]}"


@dataclass(frozen=True)
class Finding:
    """One thing that was tried: what it is, whether it is kept (None: not claimed, or not tried), and what was seen."""

    what: str
    kept: bool | None
    seen: str


class _Ear:
    """Hears what a transport tells. Lock: ``_changed`` protects ``_frames`` and ``_lost``."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._frames: list[tuple[Address, bytes]] = []
        self._lost: list[bytes] = []
        self.patience = PATIENCE  # seconds
        self.raises = b""  # on this frame
        self.echo: Callable[[bytes], None] | None = None  # called with each frame, in the thread that receives

    def received(self, address: Address, frame: bytes) -> None:
        if self.echo is not None:
            self.echo(frame)
            return
        if frame and frame == self.raises:
            raise RuntimeError("a handler that raises, to see that delivery goes on")
        with self._changed:
            self._frames.append((address, frame))
            self._changed.notify_all()

    def undeliverable(self, address: Address, frame: bytes) -> None:
        with self._changed:
            self._lost.append(frame)
            self._changed.notify_all()

    def state_changed(self, state: ConnectionState) -> None:
        pass

    def frames(self, address: Address, count: int, timeout: float | None = None) -> list[bytes]:
        """Return the frames that came to an address, once there are so many or the time is over."""

        def here() -> list[bytes]:
            return [frame for to, frame in self._frames if to == address]

        with self._changed:
            self._changed.wait_for(lambda: len(here()) >= count, self.patience if timeout is None else timeout)
            return here()

    def was_lost(self, frame: bytes, timeout: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: frame in self._lost, timeout)


class _Check:
    def __init__(self, url: TransportUrl, on_progress: Bar, keys: list[str] | None) -> None:
        self._on_progress = on_progress
        self._keys = keys
        self._url = url
        driver = load_transport(url)
        bus = new_bus()
        self.ears = (_Ear(), _Ear())
        self.ends: tuple[Transport, Transport] = (
            driver(url, bus=bus, events=self.ears[0]),
            driver(url, bus=bus, events=self.ears[1]),
        )
        self.stranger = driver(url, bus=f"{bus}-other", events=_Ear())
        self.findings: list[Finding] = []

    def run(self) -> list[Finding]:
        """Try everything; raise what opening raises."""
        opened: list[Transport] = []
        began = time.perf_counter()
        try:
            for transport in (*self.ends, self.stranger):
                transport.open()
                opened.append(transport)
                if transport is self.ends[0]:
                    self._found("connects", True, f"in {(time.perf_counter() - began) * 1000:.0f} ms")
            attempts: tuple[tuple[str, Callable[[], tuple[bool | None, str]]], ...] = (
                ("round trip", self._round_trip),
                ("ready to hear once listen has returned", self._ready),
                ("one listener of a DIRECT address", self._direct),
                ("one of the listeners of an ANYCAST address", self._anycast),
                ("all listeners of a FANOUT address", self._fanout),
                ("order, and nothing lost or twice", self._order),
                ("undeliverable frames are reported", self._undeliverable),
                ("a frame over its time to live", self._ttl),
                ("other buses are not heard", self._isolation),
                ("names like a broker's own are only names", self._names),
                ("the largest frame", self._size),
                ("many threads, and a handler that raises", self._threads),
                ("nothing is left once it is closed", self._clean),
                ("opens again", self._reopen),
                *([("sealed frames, between two nodes", self._sealed)] if self._keys else []),
            )
            for what, attempt in attempts:
                self._on_progress(what, len(self.findings), len(attempts) + 1)
                try:
                    kept, seen = attempt()
                except DseError as error:
                    kept, seen = False, f"{type(error).__name__}: {error}"
                self._found(what, kept, seen)
                if kept is False:
                    for ear in self.ears:
                        ear.patience = min(PATIENCE, IMPATIENCE)
        finally:
            for transport in opened:
                transport.close()
        self.findings += [Finding(what, None, why) for what, why in NOT_TRIED]
        return self.findings

    def _found(self, what: str, kept: bool | None, seen: str) -> None:
        self.findings.append(Finding(what, kept, seen))

    def _round_trip(self) -> tuple[bool, str]:
        here, there = self.ends
        to, back = Address(Delivery.DIRECT, "ping"), Address(Delivery.DIRECT, "pong")
        answered = threading.Semaphore(0)
        self.ears[1].echo = lambda frame: there.send(back, frame)
        self.ears[0].echo = lambda frame: answered.release()
        took: list[float] = []
        try:
            there.listen(to)
            here.listen(back)
            ends = time.perf_counter() + ROUND_TRIPS_TAKE
            while len(took) < ROUND_TRIPS and (began := time.perf_counter()) < ends:
                here.send(to, b"ping" * 50)
                if not answered.acquire(timeout=PATIENCE):
                    return False, f"no answer within {PATIENCE:g} s"
                took.append(time.perf_counter() - began)
        finally:
            self.ears[0].echo = self.ears[1].echo = None
        took.sort()
        middle, late = statistics.median(took) * 1e6, took[int(len(took) * 0.99)] * 1e6
        seen = f"{middle:,.0f} us median, {late:,.0f} us at the 99th percentile, of {len(took)}"
        return True, seen + (f"; the slowest took {took[-1]:.1f} s" if took[-1] > SLOW else "")

    def _direct(self) -> tuple[bool, str]:
        address = Address(Delivery.DIRECT, "direct")
        self.ends[1].listen(address)
        self.ends[0].send(address, b"hello")
        came = self.ears[1].frames(address, 1)
        return came == [b"hello"], f"{len(came)} of 1 arrived"

    def _anycast(self) -> tuple[bool, str]:
        address = Address(Delivery.ANYCAST, "anycast")
        for end in self.ends:
            end.listen(address)
        for number in range(20):
            self.ends[0].send(address, b"%d" % number)
        deadline = time.monotonic() + self.ears[0].patience
        came: Counter[bytes] = Counter()
        while sum(came.values()) < 20 and time.monotonic() < deadline:
            came = Counter([frame for ear in self.ears for frame in ear.frames(address, 20, 0.05)])
        came = Counter([frame for ear in self.ears for frame in ear.frames(address, 21, 0.05)])
        good = len(came) == 20 and set(came.values()) == {1}
        return good, f"{len(came)} of 20 arrived, {sum(came.values()) - len(came)} of them twice"

    def _fanout(self) -> tuple[bool, str]:
        address = Address(Delivery.FANOUT, "fanout")
        for end in self.ends:
            end.listen(address)
        self.ends[0].send(address, b"hello")
        came = [ear.frames(address, 1) for ear in self.ears]
        return came == [[b"hello"], [b"hello"]], f"{sum(map(len, came))} arrived at 2 listeners"

    def _order(self) -> tuple[bool, str]:
        address = Address(Delivery.DIRECT, "order")
        self.ends[1].listen(address)
        sent = [b"%d" % number for number in range(IN_ORDER)]
        began = time.perf_counter()
        for frame in sent:
            self.ends[0].send(address, frame)
        self.ears[1].frames(address, IN_ORDER)
        took = time.perf_counter() - began
        came = self.ears[1].frames(address, IN_ORDER + 1, SILENCE)
        rate = len(came) / took
        where = "in order" if came == sorted(came, key=int) else "out of order"
        return came == sent, f"{len(came):,} of {IN_ORDER:,} arrived, {where}, {rate:,.0f} a second"

    def _undeliverable(self) -> tuple[bool | None, str]:
        if not self.ends[0].capabilities.undeliverable:
            return None, "the driver does not claim it: calls to nobody end at their timeout"
        began = time.perf_counter()
        for delivery in (Delivery.DIRECT, Delivery.ANYCAST):
            frame = b"to nobody, " + delivery.value.encode()
            self.ends[0].send(Address(delivery, "nobody"), frame)
            if not self.ears[0].was_lost(frame, REPORTED):
                return False, f"a {delivery.name} frame was not reported within {REPORTED:g} s"
        return True, f"within {(time.perf_counter() - began) * 1000:.1f} ms"

    def _ttl(self) -> tuple[bool, str]:
        address = Address(Delivery.DIRECT, "late")
        self.ends[1].listen(address)
        self.ends[0].send(address, b"late", ttl=0.0)
        self.ends[0].send(address, b"in time", ttl=60.0)
        came = self.ears[1].frames(address, 1)
        return came == [b"in time"], "is not delivered" if b"late" not in came else "was delivered"

    def _isolation(self) -> tuple[bool, str]:
        address = Address(Delivery.FANOUT, "isolation")
        self.ends[1].listen(address)
        self.stranger.send(address, b"from elsewhere")
        self.ends[0].send(address, b"from here")
        if b"from here" not in self.ears[1].frames(address, 1):
            return False, "not even its own bus was heard"
        foreign = b"from elsewhere" in self.ears[1].frames(address, 2, SILENCE)
        return not foreign, "a frame from another bus was heard" if foreign else f"nothing in {SILENCE:g} s"

    def _names(self) -> tuple[bool, str]:
        for delivery in Delivery:
            addresses = [Address(delivery, name) for name in NAMES]
            for address in addresses:
                self.ends[1].listen(address)
            for address in addresses:
                self.ends[0].send(address, address.name.encode())
            for address in addresses:
                self.ears[1].frames(address, 1)
                came = self.ears[1].frames(address, 2, 0.0)
                if came != [address.name.encode()]:
                    heard = [frame.decode() for frame in came]
                    return False, f"the {delivery.name} address {address.name!r} heard {heard} instead of itself, once"
        return True, f"{len(NAMES)} of each delivery, each heard its own"

    def _ready(self) -> tuple[bool, str]:
        count = 20
        for number in range(count):
            address = Address(Delivery.FANOUT if number % 2 else Delivery.DIRECT, f"ready {number}")
            self.ends[1].listen(address)
            self.ends[0].send(address, b"at once")
            if self.ears[1].frames(address, 1) != [b"at once"]:
                return False, f"the frame to new address {number + 1} did not arrive"
        return True, f"{count} of {count} new addresses heard the frame sent right after"

    def _threads(self) -> tuple[bool, str]:
        addresses = [Address(Delivery.DIRECT, f"thread {number}") for number in range(AT_ONCE)]
        failed: list[DseError] = []

        def send(address: Address) -> None:
            try:
                self.ends[1].listen(address)
                for number in range(EACH):
                    self.ends[0].send(address, b"%d" % number)
            except DseError as error:
                failed.append(error)

        threads = [threading.Thread(target=send, args=(address,), daemon=True) for address in addresses]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(4 * PATIENCE)
        if failed:
            raise failed[0]
        for address in addresses:
            came = self.ears[1].frames(address, EACH)
            if came != [b"%d" % number for number in range(EACH)]:
                return False, f"{len(came)} of {EACH} frames of one of {AT_ONCE} threads arrived in order"
        faulty = Address(Delivery.DIRECT, "faulty")
        self.ends[1].listen(faulty)
        self.ears[1].raises = b"raise"
        self.ends[0].send(faulty, b"raise")
        self.ends[0].send(faulty, b"next")
        came = self.ears[1].frames(faulty, 1)
        return came == [b"next"], f"{AT_ONCE * EACH} frames of {AT_ONCE} threads, and " + (
            "the next frame came" if came else "none after a handler raised"
        )

    def _clean(self) -> tuple[bool | None, str]:
        if not self.ends[0].capabilities.undeliverable:
            return None, "cannot be seen from outside: the driver does not report undeliverable frames"
        addresses = [Address(delivery, "left behind") for delivery in (Delivery.DIRECT, Delivery.ANYCAST)]
        for address in addresses:
            self.ends[1].listen(address)
        self.ends[1].close()
        for address in addresses:
            frame = b"too late, " + address.delivery.value.encode()
            self.ends[0].send(address, frame)
            if not self.ears[0].was_lost(frame, REPORTED):
                return False, f"a {address.delivery.name} address is still listened to, {REPORTED:g} s after"
        return True, "its addresses are nobody's at once"

    def _reopen(self) -> tuple[bool, str]:
        self.ends[1].close()
        self.ends[1].open()
        address = Address(Delivery.DIRECT, "again")
        self.ends[1].listen(address)
        self.ends[0].send(address, b"hello")
        came = self.ears[1].frames(address, 1)
        return came == [b"hello"], f"{len(came)} of 1 arrived"

    def _sealed(self) -> tuple[bool, str]:
        bus = new_bus()
        with Node(self._url, bus=bus, keys=self._keys) as here, Node(self._url, bus=bus, keys=self._keys) as there:
            here.call_node(there.node_id, FIGURES, timeout=PATIENCE)
            ids = ", ".join(here.key_ids)
        return True, f"a call was answered; sealed with {here.key_ids[0]!r}, of the keys {ids}"

    def _size(self) -> tuple[bool, str]:
        address, most = Address(Delivery.DIRECT, "large"), self.ends[0].capabilities.max_frame
        self.ends[1].listen(address)
        began = time.perf_counter()
        self.ends[0].send(address, bytes(most))
        came = self.ears[1].frames(address, 1, 4 * self.ears[1].patience)
        if [len(frame) for frame in came] != [most]:
            return False, f"a frame of {most:,} bytes did not arrive"
        try:
            self.ends[0].send(address, bytes(most + 1))
        except FrameTooLarge:
            return (
                True,
                f"{most / 2**20:g} MiB arrives ({(time.perf_counter() - began) * 1000:.0f} ms), more is refused",
            )
        return False, "a larger one was not refused"


def run_check(options: argparse.Namespace) -> int:
    """Check the broker at `options.url`, say what was found, and return the exit code."""
    if not options.url:
        raise ConfigError("which broker? Say its URL, or set DSE_TRANSPORT")
    url = TransportUrl.parse(options.url)
    if not url.driver:
        raise InvalidUrl(f"{url}: the scheme, as in redis://localhost, is missing")
    keys = read_key_file(options.keys)
    with quiet_log(), progress() as bar:
        try:
            findings = _Check(url, bar, keys).run()
        except TransportUnavailable as error:
            print(clean(f"dse check: {error}"), *map(clean, advice(url, error)), sep="\n  ", file=sys.stderr)
            return 2
    good = all(finding.kept is not False for finding in findings)
    if options.json:
        listed = [{"what": each.what, "kept": each.kept, "seen": each.seen} for each in findings]
        print(json.dumps({"url": str(url), "good": good, "findings": listed}, indent=2))
        return 0 if good else 1
    print(clean(f"{url}"))
    for finding in findings:
        mark = {True: "ok", False: "NOT", None: "-"}[finding.kept]
        print(clean(f"  {mark:4} {finding.what:44} {finding.seen}"))
    broken = sum(finding.kept is False for finding in findings)
    if broken:
        print(f"not kept, or not permitted to this user: {broken} of what DSE builds on")
    return 0 if good else 1
