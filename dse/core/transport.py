"""The transport SPI: what a driver implements, and what it may rely on.

A driver is one class, a subclass of `Transport`, named by an entry point in the group ``dse.transports``. It moves
opaque frames (bytes) between addresses on one bus and keeps the guarantees that ``docs/transports.md`` numbers and
`dse.testing.contract` proves. A driver with a broker behind it derives from `dse.core.connection.BrokerTransport`,
which has what all such drivers share: the listener registry, reconnection with backoff, frame ages, the fork guard.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar, Protocol

from dse.core.receiving import Awaited
from dse.core.url import TransportUrl

__all__ = ["Address", "Capabilities", "ConnectionState", "Delivery", "Transport", "TransportEvents", "TransportUrl"]


class Delivery(Enum):
    """Who receives a frame that is sent to an address."""

    DIRECT = "direct"  # the one listener
    ANYCAST = "anycast"  # one of the listeners
    FANOUT = "fanout"  # all listeners, the sender too if it listens


@dataclass(frozen=True, slots=True)
class Address:
    """Where frames go: any non-empty text is a name, and the three deliveries are separate name spaces."""

    delivery: Delivery
    name: str

    def __hash__(self) -> int:
        # Text remembers its hash; that of an enum's member is worked out in Python each time.
        return hash(self.name)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a driver gives beyond the guarantees that every driver keeps.

    undeliverable: a DIRECT or ANYCAST frame without a listener is reported within a second.
    max_frame: the longest frame in bytes that `Transport.send` takes.
    survives_broker_restart: the transport reconnects, with every listener, after the broker was restarted.
    """

    undeliverable: bool
    max_frame: int
    survives_broker_restart: bool


@dataclass(frozen=True, slots=True)
class ConnectionState:
    """The state of a transport's connection; equal by `name`, whatever the `cause`."""

    name: str
    cause: BaseException | None = field(default=None, compare=False)

    CONNECTED: ClassVar[ConnectionState]
    DISCONNECTED: ClassVar[ConnectionState]
    CLOSED: ClassVar[ConnectionState]

    def because(self, cause: BaseException | None) -> ConnectionState:
        """Return this state with its cause."""
        return ConnectionState(self.name, cause)

    def __str__(self) -> str:
        return f"{self.name} ({self.cause})" if self.cause else self.name


ConnectionState.CONNECTED = ConnectionState("CONNECTED")
ConnectionState.DISCONNECTED = ConnectionState("DISCONNECTED")
ConnectionState.CLOSED = ConnectionState("CLOSED")


class TransportEvents(Protocol):
    """What a driver tells its user; called from the driver's own threads, never from inside `send` or `listen`.

    A handler that raises is logged by the driver and delivery goes on.
    """

    def received(self, address: Address, frame: bytes) -> bool | None:
        """Take a frame that was sent to an address this transport listens on.

        Who finds that it is not from whom it says may return False: then nothing is learned from the frame's stamp.
        """

    def undeliverable(self, address: Address, frame: bytes) -> None:
        """Learn that a frame this transport sent found no listener (may come later than `send`)."""

    def state_changed(self, state: ConnectionState) -> None:
        """Learn that the connection is CONNECTED, DISCONNECTED (with its cause) or CLOSED."""


class Transport(ABC):
    """One process's connection to one bus. Every method may be called from any thread.

    url: which broker, and how to reach it. bus: the name space on it; other buses are never heard.
    events: who is told; see `TransportEvents`.
    """

    capabilities: ClassVar[Capabilities]
    relieves: ClassVar[bool] = False
    """Whether the driver can `relieve` its threads."""

    def __init__(self, url: TransportUrl, *, bus: str, events: TransportEvents) -> None:
        self.url = url
        self.bus = bus
        self.events = events

    @abstractmethod
    def open(self) -> None:
        """Connect. A closed transport may be opened again.

        Raises `TransportUnavailable` (with the URL without its password, and the cause) within the connect timeout.
        """

    @abstractmethod
    def close(self) -> None:
        """Disconnect and leave nothing on the broker: idempotent and prompt. No event fires after it returns."""

    @abstractmethod
    def listen(self, address: Address) -> None:
        """Receive what is sent to the address: idempotent; once it returns, what anybody sends arrives.

        Raises `TransportUnavailable` when not connected; the address is then not listened on.
        """

    @abstractmethod
    def unlisten(self, address: Address) -> None:
        """Stop receiving what is sent to the address: idempotent, and done as well while disconnected."""

    @abstractmethod
    def send(self, address: Address, frame: bytes, *, ttl: float | None = None) -> None:
        """Send a frame; unless delivered within `ttl` seconds it is never delivered.

        Raises `FrameTooLarge` before anything is sent when the frame is over `capabilities.max_frame`, and
        `TransportUnavailable`, in bounded time, when it cannot be sent now.
        """

    def listen_all(self, addresses: Sequence[Address]) -> None:
        """Like `listen` for each; a driver may ask its broker once. When it raises, any of them may be listened on."""
        for address in addresses:
            self.listen(address)

    # What a driver may do besides, so that fewer messages are handed from thread to thread

    def relieve(self, thread: int) -> bool:
        """Let another thread receive: the one with this ident is in `TransportEvents.received`, and stays for long.

        The caller makes sure that it stays there until this returns. Returns False when that thread is none that
        receives for this transport, or cannot be relieved now.
        """
        return False

    def wait(self, answer: Awaited, timeout: float) -> bool:
        """Wait so many seconds for an answer that comes over this transport; return whether it is there.

        The calling thread has nothing else to do: it may receive meanwhile, and call event handlers.
        """
        return answer.wait(timeout)
