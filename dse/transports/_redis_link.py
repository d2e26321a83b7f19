"""What a session does with its connections to one Redis server.

`Link` is the main connection: subscriptions and commands share it (RESP3). Writers send without waiting for the answer
and leave on a queue what the answer is for; who reads (one thread at a time, see `Turn`) takes answers off that queue
in the same order.

`Popper` is the second connection, opened when the first ANYCAST address is listened on: a thread in a blocking pop over
the lists of all such addresses. What it waits on changes by an element in a private list (the *wake-up list*), so that
nothing ever polls.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import hiredis
from redis import exceptions as redis_errors

from dse.core.outbox import Outbox
from dse.core.receiving import Turn
from dse.core.sockets import unavailable
from dse.core.transport import Address
from dse.errors import TransportUnavailable
from dse.transports._redis_wire import MORE, Endpoint, ServerAway, Wire, Word, pack

__all__ = ["LIST_EXPIRY_MS", "Awaited", "Link", "Popper", "Scripts"]

_log = logging.getLogger("dse.transport")

# More than two heartbeats of a listener that hangs, and less than the 60 s that a crash may leave something behind.
LIST_EXPIRY_MS = 25_000
"""Lists expire this long after the last push, so that a crash leaves nothing."""

_SUBSCRIPTION = frozenset({b"subscribe", b"unsubscribe", b"ssubscribe", b"sunsubscribe"})
_PING = pack(("PING",))
_BATCH = 200  # channels in one SUBSCRIBE command

HandOn = Callable[[Address, bytes], object]
Item = tuple[HandOn, Address, bytes]


def not_permitted(url: object, error: Exception) -> TransportUnavailable:
    """Return the error that says what the user may not do."""
    return unavailable(url, f"does not permit the user what DSE needs: {error}", error)


class Scripts:
    """Lua scripts on an ANYCAST address: its list is KEYS[1], its presence channel ARGV[1], of the same name.

    They are sent whole (EVAL): a forgotten EVALSHA would have to be repeated, behind frames that were sent after it.
    Whoever puts something else where a list belongs does not stop anything: it is taken away (`clear`).
    """

    def __init__(self, *, sharded: bool) -> None:
        absent = f"redis.call('PUBSUB','{'SHARDNUMSUB' if sharded else 'NUMSUB'}',ARGV[1])[2]==0"
        expire = f"redis.call('PEXPIRE',KEYS[1],{LIST_EXPIRY_MS})"
        kind = "local kind=redis.call('TYPE',KEYS[1]).ok"
        self.clear = f"{kind} if kind~='list' and kind~='none' then redis.call('DEL',KEYS[1]) end "
        present = f"if {absent} then return 0 end {self.clear}"
        self.push = f"{present} redis.call('RPUSH',KEYS[1],ARGV[2]) {expire} return 1"
        self.put_back = f"{present} redis.call('LPUSH',KEYS[1],ARGV[2]) {expire} return 1"
        self.take_rest = (
            f"{self.clear} if {absent} then local rest=redis.call('LRANGE',KEYS[1],0,-1) redis.call('DEL',KEYS[1]) "
            "return rest end return {}"
        )


class Awaited:
    """An answer that somebody waits for: `replies` of them, or pushes that confirm a subscription to `channels`."""

    __slots__ = ("_event", "channels", "done", "reply")

    def __init__(self, channels: Iterable[bytes] = ()) -> None:
        self._event = threading.Event()
        self.channels = set(channels)
        self.reply: Any = None
        self.done = False

    def resolve(self, reply: Any) -> None:
        self.reply = reply
        self.done = True
        self._event.set()

    def wait(self, timeout: float) -> None:
        self._event.wait(timeout)


Entry = Awaited | tuple[Address, bytes] | None
"""What an answer is for: somebody who waits, a frame that may prove undeliverable, nothing."""


class Link:
    """The main connection to one server.

    heartbeat: seconds of silence that count as a loss. deliver, undelivered: who is handed what arrives.
    lost: told once when the connection is lost, in the reading thread.
    """

    def __init__(
        self,
        url: object,
        endpoint: Endpoint,
        *,
        heartbeat: float,
        sharded: bool,
        deliver: HandOn,
        undelivered: HandOn,
        lost: Callable[[BaseException], None],
    ) -> None:
        self.wire = Wire(url, endpoint)
        self.turn: Turn | None = None  # once it is started
        self._heartbeat = heartbeat
        self._deliver, self._undelivered, self._lost = deliver, undelivered, lost
        self._url = url
        self._sharded = sharded
        prefix = "S" if sharded else ""
        self._publish, self._subscribe = prefix + "PUBLISH", prefix + "SUBSCRIBE"
        self._unsubscribe = prefix + "UNSUBSCRIBE"
        self._push = Scripts(sharded=sharded).push
        self._channels: dict[bytes, Address] = {}  # changed before subscribing and after unsubscribing
        self._pending: deque[Entry] = deque()  # appended to under wire.lock
        self._outbox: Outbox[tuple[Entry, bytes]] = Outbox(self.wire.lock, self._write, heartbeat)
        self.wire.released = self._outbox.flush  # before it waits for what may be the answer to what was left there
        self._ahead: Any = MORE  # the next message that was received as a whole
        self._backlog: deque[Item] = deque()  # whose turn it is to receive
        self._silent = 0
        self._closing = False
        self.failure: BaseException | None = None
        self._refused = 0

    @property
    def threads(self) -> Sequence[threading.Thread]:
        """The threads that receive, or were relieved of it and are still in a handler."""
        return self.turn.threads if self.turn is not None else ()

    def open(self, deadline: float) -> None:
        self.wire.open(deadline)

    def start(self, spawn: Callable[[Callable[[], None], str], threading.Thread]) -> None:
        """Begin to receive."""
        self.wire.run(send_timeout=self._heartbeat, receive_timeout=self._heartbeat / 4)
        self.turn = Turn("receive", self._receive, self._fail, spawn, self.wire.lead)
        self.turn.start()

    # Writing, from any thread

    def publish(self, channel: bytes, entry: tuple[Address, bytes] | None, data: bytes) -> None:
        """Publish data; when nobody is subscribed and there is an entry, it is reported as undelivered."""
        self._send(entry, pack((self._publish, channel, data)))

    def push(self, key: bytes, entry: tuple[Address, bytes], data: bytes) -> None:
        """Append data to a list if a listener is present, or else report it as undelivered."""
        self._send(entry, pack(("EVAL", self._push, 1, key, key, data)))

    def _send(self, entry: Entry, packed: bytes) -> None:
        if self._ahead is not MORE and self.turn is not None and self.turn.mine:
            self._outbox.keep((entry, packed), len(packed))
        else:
            self._outbox.send((entry, packed), len(packed))

    def _write(self, items: list[tuple[Entry, bytes]]) -> None:
        if len(items) == 1:
            self._pending.append(items[0][0])
            self.wire.send(items[0][1])
        else:
            self._pending.extend([entry for entry, _ in items])
            self.wire.send(b"".join([packed for _, packed in items]))

    def _send_all(self, entries: Sequence[Entry], packed: bytes) -> None:
        """Send commands now, whose answers are for these entries."""
        with self.wire.lock:
            self._outbox.drain()
            self._pending.extend(entries)
            self.wire.send(packed)
        self._outbox.flush()

    def tell(self, *commands: tuple[Word, ...]) -> None:
        """Send commands whose replies matter to nobody."""
        self._send_all([None] * len(commands), b"".join(pack(command) for command in commands))

    def ask(self, *command: Word) -> Any:
        """Send a command and wait for its reply; raises an error reply."""
        awaited = Awaited()
        self._send_all([awaited], pack(command))
        self._await([awaited])
        return awaited.reply

    def subscribe(self, channels: dict[bytes, Address]) -> None:
        """Return once what is published on the channels arrives."""
        self._channels.update(channels)
        self._confirm(self._subscribe, list(channels))

    def unsubscribe(self, channel: bytes) -> None:
        """Return once everything that still comes on the channel has been handed on."""
        self._confirm(self._unsubscribe, [channel])
        self._channels.pop(channel, None)

    def leave(self, channels: list[bytes]) -> None:
        """Unsubscribe without waiting."""
        self._request(self._unsubscribe, channels)

    def _confirm(self, command: str, channels: list[bytes]) -> None:
        self._await(self._request(command, channels))

    def _request(self, command: str, channels: list[bytes]) -> list[Awaited]:
        # In a cluster a command may name channels of one slot only.
        size = 1 if self._sharded else _BATCH
        batches = [channels[i : i + size] for i in range(0, len(channels), size)]
        waiting = [Awaited(batch) for batch in batches]
        self._send_all(waiting, b"".join(pack((command, *batch)) for batch in batches))
        return waiting

    def _await(self, waiting: list[Awaited]) -> None:
        deadline = time.monotonic() + self._heartbeat
        turn = self.turn
        for awaited in waiting:
            if turn is not None and turn.pin():
                # A handler waits, in the thread that alone could end the wait: read on, and hand on later.
                try:
                    while not awaited.done and time.monotonic() < deadline:
                        item = self._step(None)
                        if item is not None:
                            self._backlog.append(item)
                finally:
                    turn.unpin()
            else:
                awaited.wait(deadline - time.monotonic())
            if not awaited.done:
                raise TimeoutError(f"the server did not answer within {self._heartbeat:g} s")
            if isinstance(awaited.reply, redis_errors.NoPermissionError):
                raise not_permitted(self._url, awaited.reply)
            if isinstance(awaited.reply, BaseException):
                raise awaited.reply

    # Reading

    def _receive(self, timeout: float | None) -> bool:
        item = self._backlog.popleft() if self._backlog else self._step(timeout)
        if item is not None:
            item[0](item[1], item[2])
        return self._ahead is not MORE

    def _fail(self, error: BaseException) -> None:
        self.failure = error
        self.wire.kill()
        with self.wire.lock:  # whoever comes later finds the connection dead
            waiting = [entry for entry in self._pending if isinstance(entry, Awaited)]
        for entry in waiting:
            entry.resolve(ConnectionResetError(str(error) or "connection lost"))
        if not self._closing:
            self._lost(error)

    def _step(self, timeout: float | None) -> Item | None:
        """Take one message off the connection, if one comes in `timeout` seconds; return what is to be handed on."""
        reply = self._ahead
        if reply is MORE:
            if self._outbox.waiting():
                self._outbox.flush()
            wire = self.wire
            if wire.receive(timeout):
                self._silent = 0
            elif timeout is not None:
                return None
            else:
                self._on_silence()
            if self._outbox.waiting():  # with TLS, receiving holds the lock
                self._outbox.flush()
            reply = wire.gets(False)
            if reply is MORE:
                return None
        gets = self.wire.gets
        while True:
            self._ahead = ahead = gets(False)
            if type(reply) is hiredis.PushNotification:
                kind = reply[0]
                if kind == b"message" or kind == b"smessage":
                    address = self._channels.get(reply[1])
                    return None if address is None else (self._deliver, address, reply[2])
                if kind in _SUBSCRIPTION:
                    self._on_subscription(reply)
                return None
            item = self._on_reply(reply)
            if item is not None or ahead is MORE:
                return item
            reply = ahead  # the answer to a command is followed by what is to be handed on, as often as not

    def _on_silence(self) -> None:
        self._silent += 1
        if self._silent == 1:
            # A writer that holds the lock is a probe too: one must not wait for it here, but go on counting.
            if self.wire.lock.acquire(blocking=False):
                try:
                    self._outbox.drain()
                    self._pending.append(None)
                    self.wire.send(_PING)
                finally:
                    self.wire.lock.release()
                self._outbox.flush()
        elif self._silent >= 4:
            raise TimeoutError(f"the server has been silent for {self._heartbeat:g} s")

    def _on_subscription(self, push: list[Any]) -> None:
        head = self._pending[0] if self._pending else None
        if isinstance(head, Awaited) and push[1] in head.channels:
            head.channels.discard(push[1])
            if not head.channels:
                self._pending.popleft()
                head.resolve(None)
        elif push[0] == b"sunsubscribe" and push[1] in self._channels:
            raise ServerAway("the cluster moved a slot to another server")

    def _on_reply(self, reply: Any) -> Item | None:
        if not self._pending:
            raise redis_errors.InvalidResponse(f"an answer to no question: {str(reply)[:80]}")
        entry = self._pending.popleft()
        if isinstance(entry, Awaited):
            entry.resolve(reply)
        elif isinstance(reply, Exception):
            if isinstance(reply, ServerAway | redis_errors.AuthenticationError):
                raise reply
            self._on_refusal(reply)
            if entry is not None:
                return self._undelivered, entry[0], entry[1]
        elif entry is not None and reply == 0:
            return self._undelivered, entry[0], entry[1]
        return None

    def _on_refusal(self, error: Exception) -> None:
        # Every frame may be refused (a full memory, a missing right): the first and then every 1,000th is logged.
        if self._refused % 1000 == 0:
            _log.warning("%s: the server refused a command: %s", self._url, error)
        self._refused += 1

    # Ending

    def finish(self, *commands: tuple[Word, ...]) -> None:
        """Send last commands, and let the server close the connection once it has carried them out."""
        self._closing = True
        if self.turn is None or not self.wire.lock.acquire(timeout=0.2):
            self.wire.kill()
            return
        try:
            self._outbox.drain()
            self._pending.extend([None] * len(commands))
            self.wire.send(b"".join(pack(command) for command in commands))
        except OSError:
            self.wire.kill()
        finally:
            self.wire.lock.release()
        self.wire.finish()

    def kill(self) -> None:
        """End the connection at once, without a word."""
        self._closing = True
        self.wire.kill()


class Popper:
    """The connection and thread that pop frames from the lists of ANYCAST addresses.

    link: the main connection to the same server. wake_key: the private wake-up list. offer: hands a frame on, or says
    False when nobody takes it any more. lost: told once when the connection is lost.
    """

    def __init__(
        self,
        link: Link,
        wake_key: bytes,
        *,
        url: object,
        heartbeat: float,
        sharded: bool,
        offer: Callable[[Address, bytes], bool],
        lost: Callable[[BaseException], None],
    ) -> None:
        self._url = url
        self.wire = Wire(url, link.wire.endpoint)
        self.threads: tuple[threading.Thread, ...] = ()
        self.wake_key = wake_key
        self.link = link
        self._heartbeat = heartbeat
        self._offer, self._lost = offer, lost
        self._scripts = Scripts(sharded=sharded)
        self._state = threading.Condition()
        # Protected by _state:
        self._keys: dict[bytes, Address] = {}
        self._retired: dict[bytes, Address] = {}  # nobody listens any more; taken off by the thread
        self._popping: tuple[bytes, ...] = ()  # what the pop that is under way waits on
        self._handling: bytes | None = None  # whose frame is being handed on
        self._woken = False  # an element for the pop under way is in the wake-up list, or on its way
        self._closing = False

    def open(self, deadline: float) -> None:
        self.wire.open(deadline)

    def start(self, spawn: Callable[[Callable[[], None], str], threading.Thread]) -> None:
        """Start the popping thread."""
        self.wire.run(send_timeout=self._heartbeat, receive_timeout=self._heartbeat)
        self.threads = (spawn(self._run, "pop"),)

    def add(self, addresses: dict[bytes, Address]) -> None:
        """Pop from these lists too, from now on."""
        with self._state:
            self._keys.update(addresses)
            wake = self._must_wake()
        if wake:
            self._wake()

    def remove(self, key: bytes, *, in_handler: bool) -> None:
        """Return once nothing more is popped from the list and, unless called in a handler, all of it is handed on.

        Nobody may be present for this list any more: if other transports are not either, the rest of it is taken.
        """
        with self._state:
            address = self._keys.pop(key, None)
            if address is None:
                return
            if not in_handler:
                self._retired[key] = address
            wake = self._must_wake()
        if wake:
            self._wake()

        def is_off() -> bool:
            if self._closing or key in self._popping:
                return self._closing
            return in_handler or (key not in self._retired and self._handling != key)

        with self._state:
            gone = self._state.wait_for(is_off, self._heartbeat)
        if not gone:
            raise TimeoutError(f"a list was still being popped after {self._heartbeat:g} s")

    def stop(self) -> None:
        """Have the thread end as soon as no pop is under way that could lose a frame."""
        with self._state:
            self._closing = True
            wake = self._must_wake()
            self._state.notify_all()
        if wake:
            self._wake()

    def kill(self) -> None:
        """End the connection at once."""
        with self._state:
            self._closing = True
            self._state.notify_all()
        self.wire.kill()

    def _is_closing(self) -> bool:
        return self._closing  # read anew: another thread may have set it since

    def _must_wake(self) -> bool:
        if self._woken or not self._popping:
            return False
        self._woken = True
        return True

    def _wake(self) -> None:
        self.link.tell(("RPUSH", self.wake_key, "1"), ("PEXPIRE", self.wake_key, LIST_EXPIRY_MS))

    def _run(self) -> None:
        try:
            while self._pop():
                pass
        except BaseException as error:
            with self._state:
                closing, self._closing = self._closing, True
                self._popping = ()
                self._state.notify_all()
            self.wire.kill()
            if not closing:
                self._lost(error)

    def _pop(self) -> bool:
        """Do one blocking pop and hand on what it brings; False when closing."""
        with self._state:
            if self._is_closing():
                return False
            retired = dict(self._retired)
            if not retired:
                self._popping = (self.wake_key, *self._keys)
                self._woken = False  # an element left over costs one turn more
        if retired:
            self._take_rest(retired)
            return True
        try:
            popped = self._ask("BLPOP", *self._popping, f"{self._heartbeat / 4:.3f}")
        except redis_errors.ResponseError as error:
            if not str(error).startswith("WRONGTYPE"):
                raise
            _log.warning("%s: somebody put something else where a list belongs; it is taken away", self._url)
            for key in self._popping:
                self._ask("EVAL", self._scripts.clear, 1, key)
            popped = None
        with self._state:
            self._popping = ()
            self._state.notify_all()
            if popped is None:
                return True
            key, data = popped
            if key == self.wake_key:
                return True
            # Retired meanwhile, the address is still the base's until `remove` returns.
            address = None if self._is_closing() else self._keys.get(key) or self._retired.get(key)
            self._handling = key
        refused = False
        try:
            refused = address is not None and not self._offer(address, data)
            if refused or address is None:
                self._ask("EVAL", self._scripts.put_back, 1, key, key, data)
        finally:
            with self._state:
                self._handling = None
                if refused and key in self._keys:
                    # The transport is about to close: popping on would bring the same frame again.
                    self._closing = True
                self._state.notify_all()
        return True

    def _take_rest(self, retired: dict[bytes, Address]) -> None:
        for key, address in retired.items():
            for data in self._ask("EVAL", self._scripts.take_rest, 1, key, key):
                self._offer(address, data)
        with self._state:
            for key in retired:
                self._retired.pop(key, None)
            self._state.notify_all()

    def _ask(self, *command: Word) -> Any:
        wire = self.wire
        with wire.lock:
            wire.send(pack(command))
        while (reply := wire.gets(False)) is MORE:
            if not wire.receive():
                raise TimeoutError(f"the server has been silent for {self._heartbeat:g} s")
        if isinstance(reply, redis_errors.NoPermissionError):
            raise not_permitted(self._url, reply)
        if isinstance(reply, Exception):
            raise reply
        return reply
