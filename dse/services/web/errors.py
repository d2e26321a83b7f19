"""What goes wrong with a request, as the client is told it."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from dse.errors import (
    CallTimeout,
    DseError,
    InvalidArguments,
    NodeLost,
    NoSuchMethod,
    NoSuchService,
    NoSuchTable,
    Overloaded,
    RemoteError,
    TransportUnavailable,
    Untrusted,
)
from dse.services.web.cells import json_bytes

__all__ = ["Refused", "answer", "of_call"]


class Refused(Exception):
    """A request that is answered with an HTTP status, and with an object that says why.

    error: a word for programs. message: for people. more: what else helps (what exists, the place that is wrong).
    """

    def __init__(
        self, status: int, error: str, message: str, *, headers: dict[str, str] | None = None, **more: Any
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}
        self.body = {"error": error, "message": message, **more}


def answer(refused: Refused) -> Response:
    """Return the response to a request that was refused."""
    return Response(json_bytes(refused.body), refused.status, refused.headers, "application/json")


_OF_CALLS: tuple[tuple[type[DseError], int], ...] = (
    (NoSuchService, 404),
    (NoSuchMethod, 404),
    (NoSuchTable, 404),
    (InvalidArguments, 422),
    (Untrusted, 403),
    (Overloaded, 503),
    (TransportUnavailable, 503),
    (NodeLost, 502),
    (RemoteError, 502),
    (CallTimeout, 504),
)


def of_call(error: DseError) -> Refused:
    """Return how a call that failed is answered."""
    status = next((status for kind, status in _OF_CALLS if isinstance(error, kind)), 500)
    more: dict[str, Any] = {"type": error.type_name} if isinstance(error, RemoteError) else {}
    return Refused(status, type(error).__name__, str(error)[:10_000], **more)
