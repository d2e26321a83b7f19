"""What a request carries, and what its sender gets: a result, the exception of the other side, or one of the bus."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from oslo_messaging import MessagingTimeout, RemoteError
from oslo_messaging._drivers import common
from oslo_messaging.exceptions import MessageUndeliverable, MessagingException

from dse.oslo.calls import Call
from dse.oslo.messages import Reply, Unreadable, from_json, to_json

__all__ = ["body_of", "result_of", "timed_out", "undeliverable"]


def body_of(ctxt: Any, message: Any) -> bytes:
    """Return the body of a request; raises what the application's serialisation raises."""
    return to_json([ctxt if isinstance(ctxt, dict) else ctxt.to_dict(), message])


def result_of(target: Any, reply: Reply | None, allowed: Sequence[str]) -> Any:
    """Return the result of a reply, or raise what it says; allowed: the modules whose exceptions come as themselves."""
    if reply is None or (reply.body is None and reply.failure is None):
        return None
    if reply.failure is not None:
        raise _remote(reply.failure, allowed)
    try:
        return from_json(reply.body or b"null")
    except Unreadable as error:
        raise MessagingException(f"the answer from topic {target.topic!r} cannot be read: {error}") from None


def timed_out(target: Any, exchange: str, call: Call) -> MessagingTimeout:
    """Return the error of a call that was not answered, which says how far it got."""
    where = f"exchange {exchange!r}, topic {target.topic!r}"
    where += f", server {target.server!r}" if target.server else ""
    if call.found_nobody:
        return MessagingTimeout(f"no server has listened in time on {where}")
    return MessagingTimeout(f"no answer has come in time to message {call.number} for {where}")


def undeliverable(address: str, frame: bytes) -> MessageUndeliverable:
    """Return the error of a request with at_least_once that found nobody."""
    _, exchange, rest = address.split("/", 2)
    return MessageUndeliverable(MessagingException(f"nobody listens on {address[2:]}"), exchange, rest, frame)


def _remote(failure: str, allowed: Sequence[str]) -> Any:
    """Return the exception that a failure describes: of a module that oslo.messaging allows, or its `RemoteError`."""
    try:
        return common.deserialize_remote_exception(failure, allowed)
    except Exception as why:  # the peer's text, or what a class of the application makes of it
        return RemoteError("unknown", f"a failure that cannot be read: {why}", [])
