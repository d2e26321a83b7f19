"""The driver of oslo.messaging: the entry point ``dse``, which serves every URL that begins with ``dse``.

oslo.messaging looks a driver up by what stands before the ``+`` of the URL's scheme, so one entry point reaches every
transport of DSE that is installed: ``dse+redis://``, ``dse+nats+local://``, a third party's.

What is sent and received is in `dse.oslo.messages`, where it goes in `dse.oslo.addresses`. A driver has one connection
(`dse.oslo.connection`), listens on an address of its own for answers, and keeps what found nobody (`dse.oslo.held`).
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import time
import weakref
from collections.abc import Sequence
from typing import Any, ClassVar

from oslo_messaging._drivers import base
from oslo_messaging.exceptions import MessageDeliveryFailure
from oslo_utils import eventletutils

from dse.oslo import addresses
from dse.oslo.answers import PATIENCE, Answers
from dse.oslo.calls import Call
from dse.oslo.connection import Connection
from dse.oslo.held import Parcel
from dse.oslo.incoming import DseIncoming
from dse.oslo.keeper import Keeper
from dse.oslo.listeners import DseListener, Registry
from dse.oslo.messages import (
    Accepted,
    Ask,
    Back,
    Here,
    News,
    Reply,
    Request,
    Unreadable,
    decode,
    encode,
    from_json,
)
from dse.oslo.options import read_settings
from dse.oslo.port import Port, TooLarge, Unreachable
from dse.oslo.results import body_of, result_of, timed_out, undeliverable
from dse.oslo.router import Router

__all__ = ["DseDriver", "new_driver"]

_log = logging.getLogger(__name__)

_CONFIRMED = 5.0  # seconds that a cast with at_least_once waits to be confirmed
_MONITOR = 1e6  # seconds that a caller may ask to be told of at most
_LONGEST = 3600.0  # seconds of one wait: what a lock can wait is bounded


class DseDriver(base.BaseDriver):  # type: ignore[misc]
    """See the top of this file; what its methods do `oslo_messaging._drivers.base.BaseDriver` says."""

    port_class: ClassVar[type[Port]] = Port

    def __init__(
        self,
        conf: Any,
        url: Any,
        default_exchange: str | None = None,
        allowed_remote_exmods: Sequence[str] | None = None,
    ) -> None:
        super().__init__(conf, url, default_exchange, allowed_remote_exmods)
        self.settings = read_settings(conf, url)
        self._begin()
        _drivers.add(self)

    def _begin(self) -> None:
        """Begin a life: the first one, and the one in a child process, which inherits nothing that it could use."""
        self._reply_to = addresses.reply()
        self._numbers = itertools.count(1)
        self._calls: dict[int, Call] = {}
        self._registry = Registry()
        self._foreign = 0
        self._connection = Connection(
            self.port_class(self._url, self.settings.bus, self), always=(self._reply_to, addresses.NEWS)
        )
        self._router = Router(self._connection, self._reply_to)
        self._keeper = Keeper(
            self.settings.hold_messages,
            self.settings.hold_bytes,
            send=self._send_held,
            expired=self._expired,
            connected=lambda: self._connection.connected,
        )

    # Sending

    def send(
        self,
        target: Any,
        ctxt: Any,
        message: Any,
        wait_for_reply: bool | None = None,
        timeout: float | None = None,
        call_monitor_timeout: float | None = None,
        retry: int | None = None,
        transport_options: Any = None,
    ) -> Any:
        mandatory = bool(getattr(transport_options, "at_least_once", False)) and not target.fanout
        address = self._address(target)
        body = body_of(ctxt, message)
        request = Request(next(self._numbers), self._reply_to, body)
        if addresses.is_topic(address):
            request.topic = address
        if wait_for_reply:
            request.answer, request.monitor, request.timeout = True, call_monitor_timeout or None, timeout
            call = self._call(request.number, timeout, call_monitor_timeout, mandatory)
            reply = self._wait(target, address, call, encode(request), timeout, retry)
            return result_of(target, reply, self._allowed_remote_exmods)
        if mandatory:
            request.confirm = True
            call = self._call(request.number, _CONFIRMED, None, True)
            self._wait(target, address, call, encode(request), _CONFIRMED, retry)
            return None
        self._cast(address, request.number, encode(request), retry)
        return None

    def send_notification(self, target: Any, ctxt: Any, message: Any, version: float, retry: int | None = None) -> None:
        number = next(self._numbers)
        address = addresses.notifications(self._exchange(target), target.topic)
        frame = encode(Request(number, self._reply_to, body_of(ctxt, message)))
        self._connection.ready(math.inf, retry)
        pools = self._router.pools_of(address, frame)
        self._cast(address, number, frame, retry)
        for pool in pools:
            self._cast(pool, number, frame, retry)

    def _call(self, number: int, timeout: float | None, monitor: float | None, mandatory: bool) -> Call:
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        call = self._calls[number] = Call(number, deadline, monitor or None, mandatory=mandatory)
        return call

    def _wait(
        self, target: Any, address: str, call: Call, frame: bytes, timeout: float | None, retry: int | None
    ) -> Reply | None:
        try:
            self._router.send(address, frame, deadline=call.deadline, ttl=timeout, retry=retry)
            wait = self._connection.port.wait
            while not call.done:
                left = call.left()
                if left <= 0:
                    raise timed_out(target, self._exchange(target), call)
                wait(call, min(left, _LONGEST))
        finally:
            del self._calls[call.number]
            if call.found_nobody:
                self._keeper.withdraw(address, frame)
        if call.error is not None:
            raise call.error
        return call.reply

    def _cast(self, address: str, number: int, frame: bytes, retry: int | None) -> None:
        follows = self._keeper.follow(Parcel(address, frame, time.monotonic() + self.settings.hold_timeout, number))
        if follows is None:
            raise MessageDeliveryFailure(
                f"nobody listens on {address[2:]}, and no more messages are kept for it "
                f"(hold_messages={self.settings.hold_messages}, hold_bytes={self.settings.hold_bytes})"
            )
        if not follows:
            self._router.send(address, frame, retry=retry)

    # Listening

    def listen(self, target: Any, batch_size: int, batch_timeout: float | None) -> DseListener:
        exchange = self._exchange(target)
        where = (
            addresses.topic(exchange, target.topic),
            addresses.server(exchange, target.topic, target.server),
            addresses.fanout(exchange, target.topic),
        )
        return self._listen(where, (), batch_size, batch_timeout)

    def listen_for_notifications(
        self, targets_and_priorities: Any, pool: str | None, batch_size: int, batch_timeout: float | None
    ) -> DseListener:
        topics = {
            addresses.notifications(self._exchange(target), f"{target.topic}.{priority}"): None
            for target, priority in targets_and_priorities
        }
        if pool is None:
            return self._listen(tuple(topics), (), batch_size, batch_timeout)
        pools = [(topic, pool) for topic in topics]
        return self._listen([addresses.pool(*each) for each in pools], pools, batch_size, batch_timeout)

    def _listen(
        self, where: Sequence[str], pools: Sequence[tuple[str, str]], batch_size: int, batch_timeout: float | None
    ) -> DseListener:
        listener = DseListener(where, pools, batch_size, batch_timeout, self._leave)
        self._registry.add(listener)
        try:
            self._connection.listen([*where, addresses.ASK])
        except BaseException:
            self._registry.remove(listener)
            raise
        self._router.tell(addresses.NEWS, News(self._reply_to, list(where), list(pools)))
        return listener

    def _leave(self, listener: DseListener) -> None:
        alone = self._registry.leaving(listener)
        if not self._connection.closed:
            self._router.tell(addresses.NEWS, News(self._reply_to, alone, gone=True))
            for address in alone:
                self._connection.port.unlisten(address)
        again = self._registry.remove(listener)
        back = [address for address in alone if address in again]
        if back and not self._connection.closed:  # somebody began to listen while this one left
            self._connection.listen(back)
            self._router.tell(addresses.NEWS, News(self._reply_to, back, self._registry.pools()))

    def cleanup(self) -> None:
        for listener in self._registry.all():
            listener.stop()
        self._connection.end(self._part)
        for call in list(self._calls.values()):
            call.fail(MessageDeliveryFailure(f"{self._connection.port.url}: this transport has been cleaned up"))
        _drivers.discard(self)

    def _part(self) -> None:
        """Give back what comes in turn from now on, and let go of what is kept."""
        try:
            self._connection.port.unlisten(self._reply_to)
        finally:
            self._keeper.close()

    # What the port tells

    def received(self, address: str, frame: bytes) -> None:
        """Take a frame."""
        try:
            message = decode(frame)
        except Unreadable as error:
            self._refuse(address, error)
            return
        if isinstance(message, Reply):
            self._replied(message)
        elif isinstance(message, Request):
            self._requested(address, message, frame)
        elif isinstance(message, Accepted):
            call = self._calls.get(message.number)
            if call is not None and call.mandatory:
                call.answer(None)
        elif isinstance(message, Back):
            self._given_back(message)
        elif isinstance(message, Ask):
            where, pools = self._registry.of(message.addresses)
            if (where or pools) and addresses.is_reply(message.sender):
                self._router.tell(message.sender, Here(self._reply_to, where, pools))
        else:
            if addresses.is_reply(message.server):
                for pool, copy in self._router.told(message):
                    self._send_held(Parcel(pool, copy, 0.0, 0))
            if isinstance(message, Here) or not message.gone:
                self._keeper.heard(message.addresses)

    def undeliverable(self, address: str, frame: bytes) -> None:
        """Keep what found nobody."""
        try:
            message = decode(frame)
        except Unreadable:
            return
        now = time.monotonic()
        if isinstance(message, Reply):
            if message.ending:
                left = PATIENCE if message.timeout is None else message.timeout
                self._keeper.hold(Parcel(address, frame, now + left, next(self._numbers)))
        elif isinstance(message, Request) and addresses.is_reply(address):
            self._router.gone(address)
            self._send_again(message, frame)
        elif isinstance(message, Request) and (message.answer or message.confirm):
            call = self._calls.get(message.number)
            if call is None:
                return
            if call.mandatory:
                call.fail(undeliverable(address, frame))
                return
            call.found_nobody = True
            self._keeper.hold(Parcel(address, frame, call.deadline, message.number))
            if message.number not in self._calls:  # it gave up meanwhile
                self._keeper.withdraw(address, frame)
        elif isinstance(message, Request):
            self._keeper.hold(Parcel(address, frame, now + self.settings.hold_timeout, message.number))

    def connected(self, is_connected: bool, cause: BaseException | None) -> None:
        """Say everything again after an outage: who was away has missed it."""
        again = is_connected and self._connection.opened
        self._connection.changed(is_connected)
        if not is_connected and not self._connection.closed:
            _log.warning("%s is away: %s", self._connection.port.url, cause)
        elif again:
            self._keeper.connected_again()
            where = [*self._registry.addresses(), self._reply_to]
            self._router.tell(addresses.NEWS, News(self._reply_to, where, self._registry.pools()))
            self._router.ask_again()

    def _replied(self, reply: Reply) -> None:
        call = self._calls.get(reply.number)
        if call is None:
            _log.debug("an answer to message %d, which nobody waits for any more", reply.number)
        elif reply.ending:
            call.answer(reply)
        else:
            call.heard()

    def _requested(self, address: str, request: Request, frame: bytes) -> None:
        if not addresses.is_reply(request.sender):
            self._refuse(address, Unreadable(f"{request.sender[:40]!r} is no address for answers"))
            return
        in_turn = address == self._reply_to
        listeners = self._registry.choose(request.topic if in_turn else address)
        if not listeners:
            if in_turn:
                self._router.tell(request.sender, Back(self._reply_to, frame))
            else:
                _log.warning("a message to %s is lost: its server has just stopped", address)
            return
        if request.confirm:
            self._router.tell(request.sender, Accepted(request.number))
        answer = Answers(self._connection, request).send if request.answer else None
        for listener in listeners:
            try:
                ctxt, message = from_json(request.body)
                if not isinstance(ctxt, dict) or not isinstance(message, dict):
                    raise Unreadable("context and message are not what oslo.messaging sends")
            except (Unreadable, ValueError, TypeError) as error:
                self._refuse(address, error)
                return
            msg_id = f"{request.sender[8:]}:{request.number}"
            monitor = request.monitor if request.monitor is not None and 0 < request.monitor <= _MONITOR else None
            taken = listener.put(DseIncoming(ctxt, message, msg_id, monitor, request.number, answer))
            if not taken and in_turn:
                self._router.tell(request.sender, Back(self._reply_to, frame))

    def _given_back(self, back: Back) -> None:
        """Send a request of ours to somebody else: its server has stopped."""
        try:
            request = decode(back.frame)
        except Unreadable as error:
            self._refuse(self._reply_to, error)
            return
        if isinstance(request, Request) and request.sender == self._reply_to and addresses.is_topic(request.topic):
            self._router.gone(back.server, request.topic)
            self._send_again(request, back.frame)

    def _send_again(self, request: Request, frame: bytes) -> None:
        """Send a request to the next server of its topic: the one whose turn it was is not there."""
        topic, ttl, deadline = request.topic, None, time.monotonic() + self.settings.hold_timeout
        if request.answer or request.confirm:
            call = self._calls.get(request.number)
            if call is None:
                return
            deadline = call.deadline
            ttl = max(0.001, deadline - time.monotonic()) if deadline < math.inf else None
        try:
            self._connection.port.send(self._router.next(topic) or topic, frame, ttl)
        except Unreachable as error:
            if not error.unsure:
                self._keeper.hold(Parcel(topic, frame, deadline, request.number))

    # Small parts

    def _exchange(self, target: Any) -> str:
        return target.exchange or self._default_exchange or ""

    def _address(self, target: Any) -> str:
        exchange = self._exchange(target)
        if target.fanout:
            return addresses.fanout(exchange, target.topic)
        if target.server:
            return addresses.server(exchange, target.topic, target.server)
        return addresses.topic(exchange, target.topic)

    def _send_held(self, parcel: Parcel) -> bool:
        ttl = None
        if addresses.is_reply(parcel.address) or parcel.number in self._calls:
            ttl = max(0.001, parcel.deadline - time.monotonic())
        try:
            self._connection.port.send(parcel.address, parcel.frame, ttl if ttl != math.inf else None)
        except Unreachable as error:
            if not error.unsure:
                return False
            _log.warning("a message to %s may be lost: the connection broke while it was sent again", parcel.address)
        except TooLarge:  # it was sent before
            pass
        return True

    def _expired(self, parcel: Parcel) -> None:
        self._router.forget_pool(parcel.address)

    def _refuse(self, address: str, error: Exception) -> None:
        # Whoever sends one wrong frame may send a million: the first and then every 1,000th is logged.
        self._foreign += 1
        if self._foreign % 1000 == 1:
            _log.warning(
                "frame %d to %s that is none of oslo.messaging's was dropped: %s", self._foreign, address, error
            )


def new_driver(*arguments: Any, **keywords: Any) -> DseDriver:
    """Return the driver for this program: the entry point."""
    if eventletutils.is_monkey_patched("thread"):
        from dse.oslo.green import GreenDriver

        return GreenDriver(*arguments, **keywords)
    return DseDriver(*arguments, **keywords)


_drivers: weakref.WeakSet[DseDriver] = weakref.WeakSet()


def _begin_again() -> None:
    for driver in list(_drivers):
        driver._begin()


os.register_at_fork(after_in_child=_begin_again)
