"""What fills the skeleton's `transport.py`: each member of a class takes the place of the one of its name there.

Of a method with the body ``...`` only the mark goes: it is complete as `dse new-transport` wrote it, as is all that is
not here.
"""

# ruff: noqa: F821 (what the skeleton imports and defines is used as it is there)

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Sequence

from dse_pigeon.broker import BACK, FRAME, HELLO, LEAVE, LISTEN, PING, UNLISTEN, Message, message, take

from dse.core.connection import JOIN_TIMEOUT
from dse.core.transport import Address, Capabilities, Delivery

_FAREWELL = 1.0  # seconds that the broker has to answer whoever leaves
_HANDLER_TIMEOUT = JOIN_TIMEOUT / 2  # ... and a handler to end, while frames that others could have wait behind it


class PigeonTransport:
    capabilities = Capabilities(undeliverable=True, max_frame=2**21, survives_broker_restart=True)


class _PigeonSession:
    def __init__(self, transport: PigeonTransport) -> None:
        self._transport = transport
        self._sending = threading.Lock()
        self._inbox: queue.SimpleQueue[_Received | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._ended = False
        self._in: socket.socket | None = None  # two descriptors of one connection, with a timeout each
        self._out: socket.socket | None = None
        self._received = bytearray()
        self._heard = self._asked = 0.0  # when the broker last said something, and was last asked to
        self._changed = threading.Condition()  # protects _failure, _closing, and the change of _answered
        self._failure: BaseException | None = None
        self._closing = False
        self._answered: set[int] = set()
        self._questions = itertools.count(1)

    def _connect(self, deadline: float) -> None:
        ((host, port),) = self._transport.url.hosts
        where = socket.getaddrinfo(host, port or _PORT, type=socket.SOCK_STREAM)[0]
        with self._changed:
            if self._closing:
                raise ConnectionAbortedError("closed while it was being opened")
            self._in = socket.socket(where[0], where[1])
        self._in.settimeout(max(0.001, deadline - time.monotonic()))
        self._in.connect(where[4])
        self._in.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._out = self._in.dup()
        self._out.settimeout(self._transport.heartbeat)
        self._out.sendall(message(HELLO, name=self._transport.bus) + message(PING))
        while self._read()[0] != PING:
            pass
        self._in.settimeout(self._transport.heartbeat / 4)

    def _read(self) -> Message:
        """Return the next message; raise `TimeoutError` when nothing has come for a while."""
        assert self._in is not None
        while (received := take(self._received)) is None:
            data = self._in.recv(1 << 16)
            if not data:
                raise ConnectionResetError("the broker has closed the connection")
            self._heard = time.monotonic()
            self._received += data
        return received

    def _write(self, data: bytes) -> None:
        """Write while `_sending` is held; a message that could not be written whole ends the connection."""
        assert self._out is not None
        try:
            self._out.sendall(data)
        except OSError as error:
            self._fail(error)
            raise

    def _fail(self, error: BaseException) -> None:
        """The connection is lost: wake up whoever waits for the broker."""
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()
        if self._in is not None:
            try:
                self._in.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it is not connected any more

    def _ask(self, data: bytes, timeout: float) -> None:
        """Send messages, and return once the broker has done what they say."""
        number = next(self._questions)
        with self._sending:
            self._write(data + message(PING, number))
        with self._changed:
            self._changed.wait_for(lambda: number in self._answered or self._failure is not None, timeout)
            if number not in self._answered:
                raise self._failure or TimeoutError(f"no answer within {timeout:g} s")
            self._answered.discard(number)

    def close(self) -> None:
        with self._changed:
            first, self._closing = not self._closing, True
            sound = self._failure is None and bool(self._threads)
        if first and sound:
            try:
                self._ask(message(LEAVE), _FAREWELL)
            except OSError:
                pass  # it can say no farewell
        self._inbox.put(None)
        for thread in self._threads[1:]:
            if thread is not threading.current_thread():
                thread.join(_HANDLER_TIMEOUT if sound else 0)
        self._ended = True
        self._fail(ConnectionAbortedError("closed"))
        self._join(self._threads)
        self._drop()

    def abandon(self) -> None:
        self._drop()

    def _drop(self) -> None:
        for descriptor in (self._in, self._out):
            if descriptor is not None:
                descriptor.close()

    def _name(self, address: Address) -> str:
        return address.delivery.value[0] + address.name

    def _address(self, name: str) -> Address:
        return Address(_DELIVERIES[name[0]], name[1:])

    def listen(self, addresses: Sequence[Address]) -> None:
        names = b"".join(message(LISTEN, name=self._name(address)) for address in addresses)
        self._ask(names, self._transport.heartbeat)

    def unlisten(self, address: Address) -> None:
        self._ask(message(UNLISTEN, name=self._name(address)), self._transport.heartbeat)

    def publish(self) -> None: ...

    def _post(self, delivery: Delivery, name: str, packed: bytes, expiry: int | None) -> None:
        self._write(message(FRAME, name=name, data=packed))

    def _expiry(self) -> None: ...

    def _pack(self) -> None: ...

    def _receive(self) -> None:
        try:
            while self._inbox.qsize() < _MOST_WAITING:
                try:
                    kind, number, name, data = self._read()
                except TimeoutError:
                    self._ask_for_life()
                    continue
                if kind == FRAME:
                    self._inbox.put(_Received(self._address(name), data, tag=number))
                elif kind == BACK:
                    self._returned(self._address(name), data)
                elif kind == PING and number:
                    with self._changed:
                        self._answered.add(number)
                        self._changed.notify_all()
            raise ConnectionError(f"{_MOST_WAITING:,} frames wait for their handler: too far behind")
        except Exception as error:
            self._fail(error)
            self._transport.lost(self, self._failure or error)

    def _ask_for_life(self) -> None:
        """Nothing has come for a quarter of the heartbeat: ask; or the answer has not come for half of it: give up."""
        heartbeat, now = self._transport.heartbeat, time.monotonic()
        # From the question on: while this process did not get to run, the broker had nothing to answer.
        if self._asked > self._heard:
            if now - self._asked >= heartbeat / 2:
                raise TimeoutError(f"no answer from the broker for {now - self._asked:.1f} s")
            return
        self._asked = now
        if self._sending.acquire(timeout=heartbeat / 4):  # else somebody else writes, and has a time limit
            try:
                self._write(message(PING))
            finally:
                self._sending.release()

    def _returned(self) -> None: ...

    def _give_back(self, received: _Received) -> None:
        with self._sending:
            self._write(message(BACK, received.tag, self._name(received.address), received.data))


_DELIVERIES = {delivery.value[0]: delivery for delivery in Delivery}
