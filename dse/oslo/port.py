"""One transport of DSE as the driver uses it: addresses are texts, and two errors are all there is.

`Port` runs on threads. In a program that eventlet has monkey-patched there are none: `dse.oslo.green` has the port for
that one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol

from oslo_messaging.transport import DriverLoadFailure, InvalidTransportURL

from dse.oslo.options import dse_url

if TYPE_CHECKING:
    from dse.core.receiving import Awaited
    from dse.core.transport import Address, ConnectionState

__all__ = ["Port", "PortEvents", "TooLarge", "Unreachable", "spi"]


class Unreachable(Exception):
    """The broker cannot be reached now.

    unsure: what was to be sent may have left, so that to send it again could be a second delivery.
    """

    def __init__(self, message: str, *, unsure: bool) -> None:
        super().__init__(message)
        self.unsure = unsure


class TooLarge(Exception):
    """What was to be sent is longer than the transport carries."""


class PortEvents(Protocol):
    """What a port tells the driver, in order, from threads of its own."""

    def received(self, address: str, frame: bytes) -> None: ...
    def undeliverable(self, address: str, frame: bytes) -> None: ...
    def connected(self, is_connected: bool, cause: BaseException | None) -> None: ...


def spi() -> Any:
    """Return the parts of DSE's core that a port needs."""
    from dse import errors
    from dse.core import plugins, transport, url

    return SimpleNamespace(errors=errors, plugins=plugins, transport=transport, url=url)


class Port:
    """A transport that is made but not open: its URL and options have been checked.

    url: oslo.messaging's `TransportURL`. Raises `InvalidTransportURL`, and `DriverLoadFailure` where the transport is
    not installed, or not whole.
    """

    def __init__(self, url: Any, bus: str, events: PortEvents) -> None:
        self._dse = self._core()
        self._events = events
        errors, transport = self._dse.errors, self._dse.transport
        self._letters = {delivery.value[0]: delivery for delivery in transport.Delivery}
        self._known: dict[str, Address] = {}
        try:
            parsed = dse_url(url, self._dse.url.TransportUrl)
            self.url = str(parsed)
            """Without its password."""
            self._transport = self._load(parsed)(parsed, bus=bus, events=self)
        except (errors.UnknownTransport, errors.MissingExtra) as error:
            raise DriverLoadFailure(url.transport, error) from error
        except (errors.InvalidUrl, errors.ConfigError) as error:
            raise InvalidTransportURL(None, str(error)) from error
        self.reports = self._transport.capabilities.undeliverable
        """Whether what finds nobody is reported."""

    def open(self) -> None:
        """Connect; raise `Unreachable`."""
        self._try(self._transport.open)

    def close(self) -> None:
        """Disconnect; no event comes afterwards."""
        self._transport.close()

    def listen(self, addresses: Sequence[str]) -> None:
        """Return once what is sent to these addresses arrives; raise `Unreachable`."""
        self._try(self._transport.listen_all, [self._address(text) for text in addresses])

    def unlisten(self, address: str) -> None:
        """Return once nothing more arrives for the address."""
        self._transport.unlisten(self._address(address))

    def send(self, address: str, frame: bytes, ttl: float | None) -> None:
        """Send a frame that is not delivered when it is older than `ttl` seconds; raise `Unreachable`, `TooLarge`."""
        errors = self._dse.errors
        try:
            self._transport.send(self._address(address), frame, ttl=ttl)
        except errors.TransportUnavailable as error:
            # One that has no cause was raised before the frame was given to the connection.
            raise Unreachable(str(error), unsure=error.__cause__ is not None) from error
        except errors.FrameTooLarge as error:
            raise TooLarge(str(error)) from error

    def wait(self, answer: Awaited, timeout: float) -> bool:
        """Wait so many seconds for an answer that comes over this transport; return whether it is there."""
        return self._transport.wait(answer, timeout)  # type: ignore[no-any-return]

    # What the transport tells

    def received(self, address: Address, frame: bytes) -> None:
        self._events.received(f"{address.delivery.value[0]}:{address.name}", frame)

    def undeliverable(self, address: Address, frame: bytes) -> None:
        self._events.undeliverable(f"{address.delivery.value[0]}:{address.name}", frame)

    def state_changed(self, state: ConnectionState) -> None:
        self._events.connected(state.name == "CONNECTED", state.cause)

    # Small parts

    def _core(self) -> Any:
        return spi()

    def _load(self, url: Any) -> Any:
        return self._dse.plugins.load_transport(url)

    def _try(self, do: Callable[..., None], *arguments: Any) -> None:
        try:
            do(*arguments)
        except self._dse.errors.TransportUnavailable as error:
            raise Unreachable(str(error), unsure=False) from error

    def _address(self, text: str) -> Address:
        address = self._known.get(text)
        if address is None:
            if len(self._known) > 4096:
                self._known = {}
            letter, _, name = text.partition(":")
            address = self._dse.transport.Address(self._letters[letter], name)
            self._known[text] = address
        return address
