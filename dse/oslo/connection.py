"""The driver's connection: opened when it is first needed, waited for while it is away, ended once.

oslo.messaging's rules for who waits how long: a call as long as its timeout; anything else as often as `retry` says,
and for ever when it is None or negative. One attempt takes a second. Whoever waits is woken when the driver is cleaned
up.
"""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence

from oslo_messaging.exceptions import MessageDeliveryFailure, MessagingTimeout

from dse.oslo.port import Port, TooLarge, Unreachable

__all__ = ["Connection"]

_log = logging.getLogger(__name__)

_ATTEMPT = 1.0  # seconds
_NEWS = 0.05  # seconds that the news of a loss may take
_REFUSALS = 20  # times that a connection may say that it is there, and take nothing


class Connection:
    """One port and whether it is connected.

    always: the addresses listened on as long as it is open.

    Lock: ``_changed`` protects ``_state`` and ``connected``; never held while the port is called.
    """

    def __init__(self, port: Port, always: Sequence[str]) -> None:
        self.port = port
        self._always = always
        self._changed = threading.Condition()
        self._state = "new"  # new, opening, open, closed
        self.connected = False

    def changed(self, is_connected: bool) -> None:
        """The port says that the connection is there, or is not."""
        with self._changed:
            self.connected = is_connected
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """Whether it has been ended."""
        return self._state == "closed"

    @property
    def opened(self) -> bool:
        """Whether it has been open, and has not been ended."""
        return self._state == "open"

    def send(
        self, address: str, frame: bytes, *, deadline: float = math.inf, ttl: float | None = None, retry: int | None
    ) -> None:
        """Send a frame, in bounded time where there is a deadline or a number of retries.

        deadline: on the monotonic clock; ttl: seconds after which it is not delivered any more. Raises
        `MessagingTimeout` at the deadline, and `MessageDeliveryFailure` when the retries are used up, when it is too
        long, and when the connection broke while it was being sent: whether it left is unknown then, and a second
        delivery must not happen.
        """
        until = time.monotonic() + ttl if ttl is not None else None
        for failures in itertools.count():
            self.ready(deadline, retry)
            if until is not None:
                ttl = max(0.001, until - time.monotonic())
            try:
                self.port.send(address, frame, ttl)
                return
            except TooLarge as error:
                raise MessageDeliveryFailure(str(error)) from error
            except Unreachable as error:
                if error.unsure:
                    raise MessageDeliveryFailure(
                        f"the connection broke while the message was being sent, which may or may not arrive: {error}"
                    ) from error
                if failures >= _REFUSALS:
                    raise MessageDeliveryFailure(str(error)) from error
                self._pause(deadline, _NEWS)

    def listen(self, addresses: Sequence[str]) -> None:
        """Return once what is sent to these addresses arrives; waits for the broker, and logs that it does."""
        for failures in itertools.count():
            self.ready(math.inf, None)
            try:
                self.port.listen(addresses)
                return
            except Unreachable as error:
                if failures < 2 or failures % 16 == 0:
                    _log.warning("%s; listening again as soon as it is possible", error)
                self._pause(math.inf, min(2.0, _NEWS * 2 ** min(failures, 6)))

    def ready(self, deadline: float, retry: int | None) -> None:
        """Return once connected; raise `MessagingTimeout` at the deadline, else `MessageDeliveryFailure`."""
        if self.connected and self._state == "open":
            return
        attempts = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._state != "opening", _left(deadline))
                if self._state == "closed":
                    raise MessageDeliveryFailure(f"{self.port.url}: this transport has been cleaned up")
                if self._state == "open" and self.connected:
                    return
                mine = self._state == "new"
                if mine:
                    self._state = "opening"
            cause = self._open(attempts) if mine else None
            if mine and cause is None:
                continue
            if time.monotonic() >= deadline:
                raise MessagingTimeout(f"{self.port.url} could not be reached in time{f': {cause}' if cause else ''}")
            if retry is not None and 0 <= retry <= attempts:
                raise MessageDeliveryFailure(
                    f"{self.port.url} could not be reached, after {attempts} retries{f': {cause}' if cause else ''}"
                )
            attempts += 1
            with self._changed:
                self._changed.wait_for(lambda: self.connected or self.closed, min(_ATTEMPT, _left(deadline)))

    def end(self, beforehand: Callable[[], None]) -> None:
        """Disconnect; who waits for the connection is refused. beforehand: done while it is still there."""
        with self._changed:
            if self._state == "closed":
                return
            was, self._state = self._state, "closed"
            self._changed.notify_all()
        if was != "new":
            beforehand()
            self.port.close()

    def _open(self, attempts: int) -> Exception | None:
        """Connect and listen on what is always listened on; return why not."""
        failure: Exception | None = None
        state = "new"
        try:
            self.port.open()
            self.port.listen(self._always)
            state = "open"
        except Unreachable as error:
            failure = error
            self.port.close()
            if attempts < 2 or attempts % 16 == 0:
                _log.warning("%s; trying again", error)
        finally:
            with self._changed:
                over = self._state == "closed"
                if not over:
                    self._state = state
                    self.connected = state == "open"
                self._changed.notify_all()
            if over:
                self.port.close()
        return failure

    def _pause(self, deadline: float, seconds: float) -> None:
        """Let the news of the loss arrive, which `connected` says nothing of yet; and do not try too often."""
        with self._changed:
            self._changed.wait_for(
                lambda: self.closed or (seconds == _NEWS and not self.connected), min(seconds, _left(deadline))
            )


def _left(deadline: float) -> float:
    # Not infinite: the longest that a lock can be waited for is bounded.
    return max(0.0, min(3600.0, deadline - time.monotonic()))
