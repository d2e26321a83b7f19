"""One node's way to the bus: messages become frames and are sent; what is for this node itself stays in the process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from dse.core import limits
from dse.core.effects import Send
from dse.core.figures import Traffic
from dse.core.messages import Catalogue, Message, decode, encode, frame_of, instance_address
from dse.core.sender import Sender
from dse.core.threads import SerialQueue
from dse.core.transport import Address, Delivery, Transport
from dse.errors import TransportError

__all__ = ["Wire"]

_log = logging.getLogger("dse.node")


class Wire:
    """Sends messages for one life of a node, from any thread.

    A message to the node itself skips the transport but not the codec; it is handed to `dispatch` from `loopback`, in
    order and never from inside `send`.
    """

    def __init__(
        self,
        transport: Transport,
        instance: str,
        loopback: SerialQueue,
        dispatch: Callable[[Address, Message, Sender | None], None],
        traffic: Traffic,
    ) -> None:
        self.transport = transport
        self.traffic = traffic
        self.instance = instance
        self.own_address = instance_address(instance)
        self._own_name = self.own_address.name
        self._loopback = loopback
        self._dispatch = dispatch
        self.sender: Sender | None = None
        """This node, to its own handlers; None without keys."""
        self.seal: Callable[[Address, bytes], bytes] | None = None
        """What seals a frame; None without keys."""
        self.before_send: Callable[[], None] = _nothing
        """Called before a message is sent, so that what is held back is not overtaken by it."""

    def send(self, address: Address, message: Message, *, ttl: float | None = None) -> None:
        """Send a message; raises what `Transport.send` raises, and what msgspec raises for what cannot be encoded."""
        self.before_send()
        self._send_frame(address, encode(message), ttl)

    def send_frame(self, address: Address, frame: bytes, *, ttl: float | None = None) -> None:
        """Send a message that is encoded already; raises what `Transport.send` raises."""
        self.before_send()
        self._send_frame(address, frame, ttl)

    def carry_out(self, sends: Iterable[Send]) -> None:
        """Send what a machine asks for. What cannot be sent now is left out: the machines ask again."""
        for effect in sends:
            message = effect.message
            try:
                frame = frame_of(message) if isinstance(message, bytes) else encode(message)
                if len(frame) > limits.CATALOGUE and isinstance(message, Catalogue):
                    _log.error("a catalogue of %d bytes is over the limit of %d: no peer will know what is offered",
                               len(frame), limits.CATALOGUE)  # fmt: skip
                self._send_frame(effect.address, frame, effect.ttl)
            except TransportError as error:
                _log.debug("not sent to %s: %s", effect.address.name, error)

    def loop_back(self, address: Address, frame: bytes) -> None:
        """Hand a frame to this node itself."""
        self._loopback.put(lambda: self._dispatch(address, decode(frame), self.sender))

    def _send_frame(self, address: Address, frame: bytes, ttl: float | None) -> None:
        if address.name == self._own_name and address.delivery is Delivery.DIRECT:
            self.loop_back(address, frame)
        else:
            self.transport.send(address, frame if self.seal is None else self.seal(address, frame), ttl=ttl)
            self.traffic.messages_out += 1


def _nothing() -> None:
    pass
