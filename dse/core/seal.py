"""Sealed frames: how one is written and read. Pure: no thread, no I/O; needs the package ``cryptography``.

A sealed frame is

    0x81    length of the head  key id, instance   stamp    number   sealed frame, its last 16 bytes are the seal
    1 byte  2 bytes             rest of the head   4 bytes  8 bytes

Rules:

1. The seal is AES-256-GCM. Its key is the sender's own, derived from the key of that id, the bus and the sender's
   instance (HKDF, RFC 5869); the head, the bus and the address are its associated data. So a frame that is shown at
   another address, on another bus or under another name opens nowhere, and one node's frames say nothing of another's.
2. Stamp and number are the nonce. An instance is unique for ever, and gives each frame a number of its own, from 1 on:
   no nonce comes twice under one key. The transport refuses to be used by a forked process, which would count on alike.
3. The stamp is the sender's wall clock in seconds, of some seconds ago. It proves nothing, for wall clocks may jump: it
   says who is looked at first when there are many (`dse.core.admission`).
4. The first byte is no version of plain frames: who has no keys counts and drops sealed frames, and the reverse.
"""

from __future__ import annotations

import hmac
import itertools
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from dse.core.keys import Key
from dse.core.messages import SEALED
from dse.core.sender import Sender
from dse.core.transport import Address, Delivery

__all__ = ["LONG", "NONCE", "BadSeal", "KeyRing", "Opener", "Sealer", "UnknownKey", "clock", "read_head"]

_nonce = struct.Struct(">IQ")
_pack_nonce, _unpack_nonce = _nonce.pack, _nonce.unpack_from
NONCE = _nonce.size
TAG = 16
_DIRECT = Delivery.DIRECT
MOST_ADDRESSES = 4096  # addresses whose associated data a sealer remembers
LONG = 4096
"""Bytes from which a view of a part of a frame costs less than a copy."""


def clock() -> float:
    """Return the seconds of a clock that never jumps, and goes on while the machine is suspended."""
    return _gettime(_CLOCK)


_gettime = time.clock_gettime
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class UnknownKey(Exception):
    """A frame was sealed with a key that this node does not have; says which."""


class BadSeal(Exception):
    """A frame is damaged, forged, shown elsewhere than where it was sent, or sealed with other bytes of that key id."""


def read_head(frame: bytes) -> bytes:
    """Return the head of a sealed frame; raise `BadSeal` when it has none."""
    if len(frame) < 3:
        raise BadSeal(f"{len(frame)} bytes are no frame")
    end = frame[1] << 8 | frame[2]
    if end < 4 or len(frame) < end + NONCE + TAG:
        raise BadSeal(f"{len(frame)} bytes are no whole sealed frame")
    return frame[:end]


def _make_head(key_id: str, instance: str) -> bytes:
    key, name = key_id.encode(), instance.encode()
    return b"".join((bytes((SEALED,)), (4 + len(key) + len(name)).to_bytes(2, "big"), bytes((len(key),)), key, name))


def _length(text: bytes) -> bytes:
    return len(text).to_bytes(4, "big") + text


class KeyRing:
    """The keys of one bus: finds the key to a head."""

    def __init__(self, keys: Sequence[Key], bus: str) -> None:
        self.bus = bus
        self.first = keys[0].id
        # HKDF-Extract, once a key; what is left of HKDF for a sender is one HMAC.
        self._roots = {key.id: hmac.digest(b"dse sealed frames 1", key.secret, "sha256") for key in keys}

    def __repr__(self) -> str:
        return f"<KeyRing {', '.join(self._roots)}>"

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of the keys, the one that seals first."""
        return tuple(self._roots)

    def opener(self, head: bytes) -> Opener:
        """Return what opens the frames that have this head; raise `UnknownKey`, or `BadSeal` when it is none."""
        length = head[3]
        try:
            key_id, instance = head[4 : 4 + length].decode(), head[4 + length :].decode()
        except UnicodeDecodeError:
            raise BadSeal("the head of the frame names nobody") from None
        node_id, slash, unique = instance.rpartition("/")
        if not (key_id and node_id and slash and unique):
            raise BadSeal("the head of the frame names nobody")
        root = self._roots.get(key_id)
        if root is None:
            raise UnknownKey(f"{ascii(instance)[:100]} seals with the key {ascii(key_id)[:70]}")
        info = b"sender" + _length(self.bus.encode()) + _length(head)
        aead = AESGCM(hmac.digest(root, info + b"\x01", "sha256"))
        return Opener(head, Sender(key_id, node_id, instance), aead, self.bus)

    def sealer(self, instance: str, *, wall: Callable[[], float] = time.time) -> Sealer:
        """Return what seals this node's own frames, with the first key."""
        return Sealer(self.opener(_make_head(self.first, instance)), wall)


class Opener:
    """Opens the frames of one sender."""

    def __init__(self, head: bytes, sender: Sender, aead: AESGCM, bus: str) -> None:
        self.head = head
        self.sender = sender
        self.encrypt, self.decrypt = aead.encrypt, aead.decrypt
        self._prefix = _length(head) + _length(bus.encode())

    def bound(self, address: Address) -> bytes:
        """Return the associated data of what is sent to an address."""
        return b"".join((self._prefix, address.delivery.value.encode(), b"/", address.name.encode()))

    def open(self, bound: bytes, frame: bytes) -> tuple[int, int, bytes]:
        """Return number, stamp and content of a frame with this head; raise `BadSeal`."""
        start = len(self.head)
        end = start + NONCE
        sealed = frame[end:] if len(frame) < LONG else memoryview(frame)[end:]
        try:
            content = self.decrypt(frame[start:end], sealed, bound)
        except (InvalidTag, ValueError):
            raise BadSeal("its seal does not fit") from None
        stamp, number = _unpack_nonce(frame, start)
        return number, stamp, content


class Sealer:
    """Seals the frames of one life of a node; from any thread.

    What all frames share is made once: on the way of every message each step counts.
    """

    def __init__(self, opener: Opener, wall: Callable[[], float]) -> None:
        self.opener = opener
        self.sender = opener.sender
        self.overhead = len(opener.head) + NONCE + TAG
        """Bytes that a frame grows by."""
        self.born = clock()
        self._head, self._encrypt = opener.head, opener.encrypt
        self._wall = wall
        self._bound: dict[Address, bytes] = {}
        self._direct: dict[str, bytes] = {}
        self.draw = _counter()
        """Return a number that no frame has, and that no later frame has a smaller one than."""
        self.refresh()

    def refresh(self) -> None:
        """Look at the wall clock, for the stamps of the frames from now on."""
        self._stamp = self.wall()

    def wall(self) -> int:
        """Return the wall clock's time as it stands in stamps."""
        return int(self._wall()) & 0xFFFF_FFFF

    def seal(self, address: Address, frame: bytes) -> bytes:
        """Return a frame sealed for an address."""
        # By name where that is enough: the hash of an address is worked out in Python each time.
        bound = self._direct.get(address.name) if address.delivery is _DIRECT else self._bound.get(address)
        if bound is None:
            bound = self._bind(address)
        nonce = _pack_nonce(self._stamp, self.draw())
        return self._head + nonce + self._encrypt(nonce, frame, bound)

    def _bind(self, address: Address) -> bytes:
        if len(self._bound) + len(self._direct) >= MOST_ADDRESSES:
            self._bound, self._direct = {}, {}
        bound = self.opener.bound(address)
        if address.delivery is _DIRECT:
            self._direct[address.name] = bound
        else:
            self._bound[address] = bound
        return bound


def _counter() -> Callable[[], int]:
    """Return what gives 1, 2, 3, …, each to one caller."""
    numbers = itertools.count(1)
    if getattr(sys, "_is_gil_enabled", lambda: True)():
        return numbers.__next__  # one step of C: no other thread comes between
    lock = threading.Lock()

    def draw() -> int:
        with lock:
            return next(numbers)

    return draw
