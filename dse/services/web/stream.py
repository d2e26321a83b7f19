"""Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html) to clients that may be slow.

A client that takes nothing for `stall` seconds is cut off: what waits for it is what its socket and one write hold.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from starlette.types import Receive, Scope, Send

__all__ = ["KEEPALIVE", "NOTHING_NEW", "EventStream"]

KEEPALIVE = 15.0
"""Seconds after which a stream that has nothing to say says so."""

NOTHING_NEW = b": nothing new\n\n"

_PIECE = 32 * 1024  # bytes


class EventStream:
    """The response that sends what an iterator yields until the client goes, stalls, or the iterator ends."""

    def __init__(self, events: AsyncIterator[bytes], stall: float, ended: asyncio.Event) -> None:
        self._events = events
        self._stall = stall
        self._ended = ended  # of the whole gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        sender = asyncio.ensure_future(self._send(scope, send))
        gone = asyncio.ensure_future(_disconnected(receive))
        ended = asyncio.ensure_future(self._ended.wait())
        tasks: tuple[asyncio.Future[Any], ...] = (sender, gone, ended)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            for task in tasks:
                with contextlib.suppress(asyncio.CancelledError, OSError):
                    await task

    async def _send(self, scope: Scope, send: Send) -> None:
        async with contextlib.aclosing(self._events):  # type: ignore[type-var]
            await send(
                {
                    "type": "http.response.start",
                    "status": 200,
                    "headers": [
                        (b"content-type", b"text/event-stream; charset=utf-8"),
                        (b"cache-control", b"no-store"),
                        (b"x-accel-buffering", b"no"),
                    ],
                }
            )
            async for data in self._events:
                try:
                    # In pieces: what waits for a client is then bounded, however much there is to tell it.
                    for begin in range(0, len(data), _PIECE):
                        piece = data[begin : begin + _PIECE]
                        async with asyncio.timeout(self._stall):
                            await send({"type": "http.response.body", "body": piece, "more_body": True})
                except TimeoutError:
                    abort = scope.get("dse.abort")
                    if abort is not None:
                        abort()  # closing would wait for the client to take the rest
                    return
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
