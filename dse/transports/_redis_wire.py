"""One connection to a Redis server: introduced by HELLO 3, asked and told.

Replies are parsed by hiredis, redis-py's own parser, and errors are redis-py's exceptions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import hiredis
from redis import exceptions as redis_errors

from dse.core.sockets import ServerSocket, explain, unavailable
from dse.core.tls import Tls

__all__ = ["MORE", "Endpoint", "Wire", "Word", "in_words", "pack", "reply_error"]

MORE: Any = object()
"""What `Wire.gets` returns when no whole reply has been received yet."""

_SERVER_AWAY = frozenset({"READONLY", "MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "UNBLOCKED"})


Word = bytes | str | float  # of a command; an int is written as such

pack: Callable[[tuple[Word, ...]], bytes] = hiredis.pack_command  # type: ignore[assignment]
"""Returns a command in the Redis protocol (hiredis' annotation says a tuple of one)."""


class ServerAway(redis_errors.ResponseError):
    """The server answers, but is not (or no longer) the one that serves us: connect anew."""


def reply_error(text: str) -> Exception:
    """Return the exception that stands for an error reply."""
    code = text.partition(" ")[0]
    if code in _SERVER_AWAY:
        return ServerAway(text)
    if code in ("NOAUTH", "WRONGPASS"):
        return redis_errors.AuthenticationError(text)
    if code == "NOPERM" or "can't run this command" in text:  # in a script, which does not say which command
        return redis_errors.NoPermissionError(text)
    return redis_errors.ResponseError(text)


@dataclass(frozen=True)
class Endpoint:
    """A server and how to introduce oneself to it: `host` is a path when `port` is None. resp3: not to a Sentinel."""

    host: str
    port: int | None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    db: int = 0
    name: str = ""
    tls: Tls | None = None
    resp3: bool = True

    def __str__(self) -> str:
        return self.host if self.port is None else f"{self.host}:{self.port}"


class Wire(ServerSocket):
    """One connection; see `ServerSocket`."""

    # An integer reply, as PUBLISH gets at once, has fewer bytes up to a thousand (``:1``). It does not wake up who
    # waits for an answer: it is read with it.
    shortest: ClassVar[int] = 8

    def __init__(self, url: object, endpoint: Endpoint) -> None:
        super().__init__(url, endpoint)
        self.endpoint = endpoint
        reader = hiredis.Reader(protocolError=redis_errors.InvalidResponse, replyError=reply_error, notEnoughData=MORE)
        self._reader = reader
        self.gets = reader.gets
        """``gets(False)``: the next reply that was received as a whole, or MORE."""

    def _introduce(self, deadline: float) -> None:
        end = self.endpoint
        self.dial(end.host, end.port, deadline)
        if end.tls is not None:
            self.encrypt(end.tls, end.host, deadline)
        if end.resp3:
            self._hello(deadline)
        elif end.password is not None:
            self.ask(deadline, "AUTH", *([end.username] if end.username else []), end.password)
        if end.db:
            try:
                self.ask(deadline, "SELECT", end.db)
            except redis_errors.ResponseError as error:
                raise unavailable(self._url, f"refuses database {end.db}: {error} ({end})", error) from error

    def _hello(self, deadline: float) -> None:
        end = self.endpoint
        hello: list[bytes | str | int] = ["HELLO", 3]
        if end.username or end.password is not None:
            hello += ["AUTH", end.username or "default", end.password or ""]
        if end.name:
            hello += ["SETNAME", end.name]
        try:
            answer = self.ask(deadline, *hello)
        except redis_errors.AuthenticationError as error:
            if str(error).startswith("NOAUTH"):
                raise unavailable(self._url, f"needs a password ({end})", error) from error
            raise
        except redis_errors.ResponseError as error:
            if str(error).startswith("NOPROTO") or "unknown command" in str(error).lower():
                raise unavailable(self._url, f"is too old: Redis 6 or later is needed ({end})", error) from error
            raise
        if not isinstance(answer, dict) or answer.get(b"proto") != 3:
            raise redis_errors.InvalidResponse("no answer to HELLO")

    def ask(self, deadline: float, *command: Word) -> Any:
        """Send a command and return its reply; only while no other thread reads. Raises an error reply."""
        self.write(deadline, pack(command))
        while (reply := self.gets(False)) is MORE:
            self.read(deadline)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def _feed(self, size: int) -> None:
        self._reader.feed(self._buffer, 0, size)  # type: ignore[arg-type]

    def _in_words(self, error: BaseException, timeout: float) -> str | None:
        return in_words(error, timeout)


def in_words(error: BaseException, timeout: float) -> str | None:
    """Say what is wrong with a server, or return None when it is not the server's doing."""
    words: tuple[tuple[type[BaseException], str], ...] = (
        (redis_errors.AuthenticationError, "refuses the user name or password"),
        (redis_errors.NoPermissionError, f"does not permit the user what DSE needs: {error}"),
        (redis_errors.InvalidResponse, "does not speak the Redis protocol"),
        (redis_errors.ResponseError, f"refuses: {error}"),
    )
    return next((text for kind, text in words if isinstance(error, kind)), None) or explain(error, timeout)
