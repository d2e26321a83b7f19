"""One connection to a NATS server: introduced, and asked.

A client library would bring an event loop with a thread of its own, and hand every message from there to the thread
that waits for it; this one is read by whichever thread has the turn (`dse.core.receiving.Turn`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dse.core.sockets import ServerSocket, explain, unavailable
from dse.core.tls import Tls
from dse.errors import TransportUnavailable
from dse_nats.protocol import PING, Event, Info, Message, NotNats, Parser, Refusal, Signal, connect

__all__ = ["Endpoint", "NotPossible", "Refused", "Wire"]


class Refused(ConnectionError):
    """The server said ``-ERR``."""


class NotPossible(TransportUnavailable):
    """What was asked for cannot be done, or not now; the connection itself is sound."""


@dataclass(frozen=True)
class Endpoint:
    """A server, and how to introduce oneself to it.

    tls: how the connection is encrypted if the server wants it; None: it is not. must_encrypt: whether it is without
    the server's wish too. credentials: the fields of CONNECT that prove who one is.
    """

    host: str
    port: int
    name: str
    tls: Tls | None
    must_encrypt: bool = False
    credentials: dict[str, str] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Wire(ServerSocket):
    """One connection; see `ServerSocket`."""

    def __init__(self, url: object, endpoint: Endpoint) -> None:
        super().__init__(url, endpoint)
        self.endpoint = endpoint
        self._received = memoryview(self._buffer)
        self._parser = Parser()
        self.next = self._parser.next
        """The next event that was received as a whole, or None."""
        self.info: dict[str, Any] = {}  # what the server said of itself

    def _introduce(self, deadline: float) -> None:
        self.dial(self.endpoint.host, self.endpoint.port, deadline)
        greeting = self._next(deadline)
        if not isinstance(greeting, Info):
            raise NotNats("it does not begin with INFO")
        self.info = dict(greeting.fields)
        if self.info.get("tls_required") or self.endpoint.must_encrypt:
            self._encrypt(deadline)
        if not self.info.get("headers"):
            raise unavailable(self._url, f"is too old: NATS 2.2 or later is needed ({self.endpoint})")
        hello = connect(
            verbose=False,
            pedantic=False,
            echo=True,
            headers=True,
            no_responders=True,
            protocol=1,
            lang="python-dse",
            version="0.1.0",
            name=self.endpoint.name,
            **self.endpoint.credentials,
        )
        self.ask(deadline, hello)

    def _encrypt(self, deadline: float) -> None:
        end = self.endpoint
        if not (self.info.get("tls_required") or self.info.get("tls_available")):
            raise unavailable(self._url, f"offers no TLS ({end})")
        if end.tls is None:
            raise unavailable(self._url, f"wants TLS, which option 'ssl' turns off ({end})")
        if self._parser.waiting:  # whoever is on the way could add what would later count as said in TLS
            raise NotNats("it goes on after INFO, before TLS has begun")
        self.encrypt(end.tls, end.host, deadline)

    def ask(self, deadline: float, data: bytes) -> int:
        """Send commands, and return once the server has carried them out, how many messages came meanwhile.

        Only while no other thread reads.
        """
        self.write(deadline, data + PING)
        messages = 0
        while (event := self._next(deadline)) is not Signal.PONG:
            if isinstance(event, Refusal):
                raise Refused(event.text)
            messages += isinstance(event, Message)
        return messages

    def _next(self, deadline: float) -> Event:
        while (event := self.next()) is None:
            self.read(deadline)
        return event

    def _feed(self, size: int) -> None:
        self._parser.feed(bytes(self._received[:size]))

    def _in_words(self, error: BaseException, timeout: float) -> str | None:
        if isinstance(error, Refused):
            return _refusal(str(error))
        if isinstance(error, NotNats):
            return f"does not speak the NATS protocol: {error}"
        return explain(error, timeout)


def _refusal(text: str) -> str:
    if text.lower().startswith("authorization"):
        return "refuses the user name, password or token"
    if text.lower().startswith("permissions"):
        return f"does not permit the user what DSE needs: {text}"
    return f"refuses: {text}"
