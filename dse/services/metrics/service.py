"""The plugin `metrics`: what the node counts, on a port of its own."""

from __future__ import annotations

import logging
import socketserver
import threading
from http.server import BaseHTTPRequestHandler
from typing import Any

from dse.core.service import DataService
from dse.errors import ConfigError
from dse.services.metrics.families import CONTENT_TYPE, exposition

__all__ = ["Metrics"]

_log = logging.getLogger("dse.metrics")

_MOST_AT_ONCE = 4  # scrapes; more are turned away
_WITHIN = 2.0  # seconds that a client has


class Metrics(DataService):
    """Serves what this node counts to Prometheus, under ``/metrics``.

    host, port: where it listens; port 0 is any that is free. Only figures are served, no rows and no names but those
    of services, tables and nodes. Raises `ConfigError`; starting raises it when the address cannot be used.

    Threads: one that accepts, and one for each scrape (at most 4); `on_stop` ends and joins them.
    """

    def __init__(self, service_id: str = "metrics", *, host: str = "127.0.0.1", port: int = 9464) -> None:
        super().__init__(service_id)
        if not 0 <= port <= 65535:
            raise ConfigError(f"a port is 0 to 65535, not {port}", key=("port",))
        self._address, self._port = host, port
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where it answers, while it runs."""
        return f"http://{self._address}:{self._server.server_address[1]}/metrics" if self._server is not None else ""

    def on_start(self) -> None:
        """Listen."""
        try:
            server = _Server((self._address, self._port), _Handler)
        except OSError as error:
            reason = error.strerror or str(error)
            raise ConfigError(
                f"nothing can listen on {self._address}, port {self._port}: {reason}", key=("port",)
            ) from None
        server.service = self
        self._server = server
        # A short poll: it is how socketserver looks whether it is to end.
        self._thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="dse-metrics", daemon=True)
        self._thread.start()
        _log.info("figures are served on %s", self.url)

    def on_stop(self) -> None:
        """Answer nobody any more."""
        server, self._server = self._server, None
        thread, self._thread = self._thread, None
        if server is not None:
            server.shutdown()
            server.server_close()
        if thread is not None:
            thread.join()

    def text(self) -> bytes:
        """Return what a scrape is answered with."""
        node = self.node
        return exposition(node.status(), {node.node_id: node.runtime.figures()})


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = False
    block_on_close = True
    request_queue_size = 16
    service: Metrics

    def __init__(self, *args: Any) -> None:
        self._scrapes = threading.BoundedSemaphore(_MOST_AT_ONCE)
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._scrapes.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._scrapes.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        _log.debug("a scrape by %s failed", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _WITHIN
    protocol_version = "HTTP/1.0"  # a connection for each scrape: nobody holds a thread

    def do_GET(self) -> None:
        if self.path.partition("?")[0] not in ("/metrics", "/"):
            self.send_error(404, "there is /metrics")
            return
        body = self.server.service.text()
        self.send_response(200)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass

    def version_string(self) -> str:
        return "dse"
