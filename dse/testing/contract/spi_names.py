"""Guarantees 7 and 8: any name, and any size up to the limit."""

from __future__ import annotations

import hashlib
import os
import uuid

import pytest

from dse.core.transport import Address, Delivery, Transport
from dse.errors import FrameTooLarge
from dse.testing.contract.fixtures import ANYCAST, DELIVERIES, DIRECT, FANOUT, Connect, Contract, each_delivery, needs
from dse.testing.contract.recorder import Client, address, assert_each_once, assert_in_order

__all__ = ["TestIsolation", "TestSize"]

NAMES = (
    *("*", "#", ">", "?", "**", "a.*", "a.#", "a.>", "a?", "a*", "*.b", "#.b", "[ab]", "[^a]", "a[b]c", "a", "b"),
    *("a.b", "a.b.c", "a.", ".a", ".", "..", "a..b", ":", "a:b", "a:b:c", "::", "{a}", "{}", "a{b}c", "{a}b", "%"),
    *("%%", "%2A", "%s", "%61", "a%b", "/", "a/b", "../a", "\\", "a\\b", "'", '"', "`", "$", "$a", "~", "a~b", "&"),
    *(
        "|",
        ";",
        "!",
        "@",
        " ",
        "  ",
        " a",
        "a ",
        "a b",
        "\t",
        "\n",
        "a\n",
        "a\nb",
        "\r\n",
        "a\r\nb",
        "\0",
        "a\0",
        "a\0b",
    ),
    *("\x7f", "\x1b[0m", "A", "á", "a\u0301", "ß", "ss", "İ", "ı", "ø", "日本語", "🚌", "👩\u200d👩\u200d👧"),
    *("\u200b", "a\u200b", "\u202ea", "\ufeff", "\ud800", "0", "1", "-1", "None", "null", "true", "amq.direct"),
    *("amq.topic", "__keyspace@0__:*", "DEL a", "dse", "dse:", "direct", "anycast", "fanout", "d", "f:a", "d:a"),
    *("a:d:b", "node:a", "db0:a", "w:a", "x" * 150, "x" * 200, "x" * 255, "x" * 256, "x" * 2000, "x" * 1999 + "y"),
    *("y" + "x" * 1999, "é" * 2000, "🚌" * 2000, "*" * 2000, "x." * 1000, "%" * 100, "/" * 70, "/" * 2000),
)
"""Names that some broker, URL, pattern, log or encoding would take for something else."""


class TestIsolation(Contract):
    """Other buses on the same broker, and names that look like broker syntax, are never confused."""

    guarantee = 7

    @each_delivery
    def test_every_name_is_its_own_address(self, connect: Connect, delivery: Delivery) -> None:
        listener, sender = connect(), connect()
        addresses = [Address(delivery, name) for name in NAMES]
        listener.listen(*addresses)
        for number, where in enumerate(addresses):
            sender.send(where, b"%d" % number)
        listener.wait_count(len(addresses), *addresses)
        assert_each_once(
            ((where, frame) for where, frames in listener.all_frames().items() for frame in frames),
            ((where, b"%d" % number) for number, where in enumerate(addresses)),
        )
        listener.unlisten(*addresses)

    @each_delivery
    def test_names_that_look_like_patterns_match_nothing_else(self, connect: Connect, delivery: Delivery) -> None:
        listener, sender = connect(), connect()
        token = uuid.uuid4().hex[:8]
        patterns = ("*", "#", ">", f"{token}*", f"{token}.*", f"{token}.#", f"{token}.>", f"{token}.?", f"[{token}].a")
        plain = Address(delivery, f"{token}.a")
        listener.listen(*(Address(delivery, pattern) for pattern in patterns))
        for _ in range(3):
            sender.send(plain, b"for nobody")
        fence = Address(delivery, patterns[-1])
        sender.mark(fence, listener)  # now the broker is done with what nobody hears
        listener.listen(plain)
        sender.mark(plain, listener)
        for pattern in patterns:
            sender.mark(Address(delivery, pattern), listener)
        assert b"for nobody" not in [frame for frames in listener.all_frames().values() for frame in frames]
        assert sum(map(len, listener.all_frames().values())) == 2 + len(patterns)

    def test_the_three_deliveries_of_one_name_are_separate(self, connect: Connect) -> None:
        sender, listeners = connect(), [connect() for _ in DELIVERIES]
        for name in ("same", "d", "f", "direct", "*", "日本語 #", "x" * 300):
            addresses = [Address(delivery, name) for delivery in DELIVERIES]
            for listener, where in zip(listeners, addresses, strict=True):
                listener.listen(where)
            for where in addresses:
                sender.send(where, where.delivery.value.encode())
            for listener, where in zip(listeners, addresses, strict=True):
                sender.mark(where, listener)
                assert listener.frames(where)[0] == where.delivery.value.encode()
                assert listener.count(where) == 2
                assert listener.count(*addresses) == 2

    @pytest.mark.parametrize(
        "suffix", ["2", " ", ":", ":d", ":d:name", ".", "*", "%", "%20", "/", "\n", "{x}", "é", "🚌", "\ud800"]
    )
    def test_buses_with_similar_names_do_not_hear_each_other(self, connect: Connect, bus: str, suffix: str) -> None:
        here, there = (bus, connect()), (bus + suffix, connect(bus=bus + suffix))
        names = {"name", "d:name", "*", suffix, f"{suffix}:d:name", f"{bus}:d:name"}
        for _, client in (here, there):
            client.listen(*(Address(delivery, name) for delivery in DELIVERIES for name in names))
        for name_of_bus, client in (here, there):
            for delivery in DELIVERIES:
                for name in names:
                    client.send(Address(delivery, name), name_of_bus.encode(errors="surrogatepass"))
        for name_of_bus, client in (here, there):
            for delivery in DELIVERIES:
                client.wait_count(len(names), *(Address(delivery, name) for name in names))
                client.mark(Address(delivery, "name"), client)
            for where, frames in client.all_frames().items():
                assert frames[0] == name_of_bus.encode(errors="surrogatepass"), where
                assert len(frames) == (2 if where.name == "name" else 1), where

    def test_names_that_spell_another_bus_do_not_reach_it(self, connect: Connect, bus: str) -> None:
        target, attacker = connect(), connect(bus=f"{bus[:-3]}")
        where = [Address(delivery, "name") for delivery in DELIVERIES]
        target.listen(*where)
        rest = bus[-3:]
        for letter in "daf":
            for name in (
                f"{rest}:{letter}:name",
                f"{letter}:name",
                f"dse:{bus}:{letter}:name",
                f"../{bus}/name",
                "name",
            ):
                for delivery in DELIVERIES:
                    attacker.send(Address(delivery, name), b"attack")
        for each in where:
            connect().mark(each, target)
        assert target.count(*where) == len(where)

    @needs("undeliverable")
    @pytest.mark.parametrize("delivery", [DIRECT, ANYCAST], ids=lambda delivery: delivery.value)
    def test_a_listener_on_another_bus_is_no_listener(self, connect: Connect, bus: str, delivery: Delivery) -> None:
        here, there = connect(), connect(bus=f"{bus}.")
        where = address(delivery)
        there.listen(where)
        here.send(where, b"nobody here")
        here.wait_returned(where, b"nobody here")
        there.mark(where, there)
        assert there.count(where) == 1


class TestSize(Contract):
    """A frame over `max_frame` raises `FrameTooLarge` before it touches the wire; one just below arrives."""

    guarantee = 8

    @each_delivery
    def test_the_largest_frames_arrive_intact(
        self, connect: Connect, transport_class: type[Transport], delivery: Delivery
    ) -> None:
        listener, sender = connect(), connect()
        where, limit = address(delivery), transport_class.capabilities.max_frame
        listener.listen(where)
        frames = [(os.urandom(limit), None), (os.urandom(limit - 1), 60.0), (os.urandom(limit), 60.0), (b"small", None)]
        for frame, ttl in frames:
            sender.send(where, frame, ttl)
        listener.wait_count(len(frames), where)
        assert _digests(listener.frames(where)) == _digests([frame for frame, _ in frames])

    @each_delivery
    def test_every_size_about_a_buffer_arrives_intact(
        self, connect: Connect, transport_class: type[Transport], delivery: Delivery
    ) -> None:
        listener, sender = connect(), connect()
        where, limit = address(delivery), transport_class.capabilities.max_frame
        listener.listen(where)
        about = (2**exponent + step for exponent in range(6, 22) for step in (-9, -8, -1, 0, 1, 8))
        noise = os.urandom(2**21 + 8)
        frames = [noise[:size] for size in (0, 1, 2, *about) if size <= limit]
        for frame in frames:
            sender.send(where, frame)
        listener.wait_count(len(frames), where)
        assert_in_order(_digests(listener.frames(where)), _digests(frames))

    @each_delivery
    def test_a_frame_too_large_is_refused_and_does_no_harm(
        self, connect: Connect, transport_class: type[Transport], delivery: Delivery
    ) -> None:
        listener, sender = connect(), connect()
        where, limit = address(delivery), transport_class.capabilities.max_frame
        listener.listen(where)
        _refuses(sender, where, limit + 1, limit)
        _refuses(sender, where, 2 * limit, limit)
        sender.mark(where, listener)
        assert listener.count(where) == 1
        assert not sender.all_returned()
        assert len(sender.states) == 1, "the connection was lost"

    def test_a_frame_too_large_for_nobody_is_refused_too(
        self, connect: Connect, transport_class: type[Transport]
    ) -> None:
        sender, limit = connect(), transport_class.capabilities.max_frame
        for delivery in (DIRECT, ANYCAST, FANOUT):
            _refuses(sender, address(delivery), limit + 1, limit)
        assert not sender.all_returned()


def _refuses(sender: Client, where: Address, size: int, limit: int) -> None:
    for ttl in (None, 60.0):
        with pytest.raises(FrameTooLarge) as caught:
            sender.send(where, bytes(size), ttl)
        assert (caught.value.size, caught.value.limit) == (size, limit)


def _digests(frames: list[bytes]) -> list[tuple[int, str]]:
    """Return sizes and checksums: megabytes make no readable difference."""
    return [(len(frame), hashlib.sha256(frame).hexdigest()[:16]) for frame in frames]
