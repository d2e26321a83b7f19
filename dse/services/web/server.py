"""uvicorn in a thread of its own, with limits that it has not itself.

Threads: ``dse-web`` runs the event loop; `Server.stop` ends and joins it. Blocking calls to the bus run on the loop's
own executor, whose threads end with the loop.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from dse.errors import ConfigError, DseError
from dse.services.web.options import Options

__all__ = ["Server"]

_log = logging.getLogger("dse.web")

_HEAD_WITHIN = 10.0  # seconds that a client has for the head of a request
_START_WITHIN = 10.0
_STOP_WITHIN = 10.0
_LONGEST_HEAD = 32 * 1024  # bytes
_BUFFER = 64 * 1024  # bytes that wait for a client before a sender has to wait


class _Protocol(H11Protocol):
    """h11 with a deadline for the head of a request, and a way for the application to cut off a client."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=_BUFFER)
        app = self.app

        async def with_abort(scope: Any, receive: Any, send: Any) -> None:
            scope["dse.abort"] = transport.abort
            await app(scope, receive, send)

        self.app = with_abort
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        if self._deadline is None and (before is None or before.response_complete):
            self._expect_head()
        super().data_received(data)
        if self.cycle is not before:
            self._head_came()

    def _expect_head(self) -> None:
        self._deadline = self.loop.call_later(_HEAD_WITHIN, self.transport.abort)

    def _head_came(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


MakeApp = Callable[[], tuple[ASGIApp, Callable[[], None], Callable[[], Awaitable[None]]]]


class Server:
    """Serves an application from `start` to `stop`.

    make_app: called on the event loop; returns the application, what ends its streams, and what is to be awaited when
    it is served no more.
    """

    def __init__(self, options: Options, make_app: MakeApp) -> None:
        self._options = options
        self._make_app = make_app
        self._thread: threading.Thread | None = None
        self._socket: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: uvicorn.Server | None = None
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._end_streams: Callable[[], None] = lambda: None
        self.url = ""
        """Where it answers, while it runs."""

    def start(self) -> None:
        """Listen and serve; raises `ConfigError` when the address cannot be used."""
        self._socket = _listen(self._options.host, self._options.port)
        host, port = self._socket.getsockname()[:2]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
        self._started.clear()
        self._failure = None
        self._thread = threading.Thread(target=self._run, name="dse-web", daemon=True)
        self._thread.start()
        self._started.wait(_START_WITHIN)
        if self._failure is not None or self._server is None:
            failure = self._failure
            self.stop()
            raise DseError(f"the web gateway could not start: {failure or 'its event loop does not run'}") from failure

    def stop(self) -> None:
        """Answer nobody any more and end the thread; idempotent."""
        loop, server = self._loop, self._server
        if loop is not None and server is not None:
            try:
                loop.call_soon_threadsafe(self._end)
            except RuntimeError:
                pass  # the loop has ended
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(_STOP_WITHIN)
            if thread.is_alive():
                _log.warning("the web gateway did not end within %g s", _STOP_WITHIN)
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._loop = self._server = None

    def _end(self) -> None:
        self._end_streams()
        if self._server is not None:
            self._server.should_exit = True

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._failure = error
            _log.exception("the web gateway has failed")
        finally:
            self._started.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        app, self._end_streams, close = self._make_app()
        config = uvicorn.Config(
            app,
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            limit_concurrency=self._options.limits.connections,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=1,
            h11_max_incomplete_event_size=_LONGEST_HEAD,
        )
        self._server = uvicorn.Server(config)
        self._loop.call_soon(self._started.set)
        assert self._socket is not None
        try:
            # Not on the main thread: it leaves the signals to those who run the process.
            await self._server.serve(sockets=[self._socket])
        finally:
            await close()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family[0], socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"the address {host} cannot be used: {error.strerror}", key=("host",)) from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        listening.bind(family[4])
        listening.listen(128)
        listening.setblocking(False)
    except OSError as error:
        listening.close()
        raise ConfigError(f"nothing can listen on {host}, port {port}: {error.strerror}", key=("port",)) from None
    return listening
