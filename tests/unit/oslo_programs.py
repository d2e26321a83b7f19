"""Programs of oslo.messaging for tests: servers, clients, listeners, on any URL, and ended with the test."""

from __future__ import annotations

import queue
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

from dse.transports._oslo_library import cfg, oslo_messaging

DEADLINE = 30.0


def configuration() -> Any:
    """Return a private configuration with the options that oslo.messaging reads."""
    from oslo_messaging import opts
    from oslo_messaging._metrics import client as metrics
    from oslo_messaging._tracing import client as tracing

    conf = cfg.ConfigOpts()
    for group, options in opts.list_opts():
        conf.register_opts(options, group=group)
    # Which that list has not.
    conf.register_opts(metrics.oslo_messaging_metrics, group="oslo_messaging_metrics")
    conf.register_opts(tracing.oslo_messaging_tracing, group="oslo_messaging_tracing")
    conf([], default_config_files=[], default_config_dirs=[])
    return conf


def soon(condition: Callable[[], Any], timeout: float = DEADLINE) -> Any:
    """Return what the condition returns as soon as that is true; fail when it does not become so in time."""
    end = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)
    return found


class Endpoint:
    """What a test's server offers, and what it was told."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.heard_so_far: list[Any] = []
        self.told: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.entered = threading.Event()
        self.go_on = threading.Event()
        self.left = threading.Event()

    def echo(self, ctxt: Any, **arguments: Any) -> Any:
        return {"context": ctxt, "arguments": arguments}

    def who(self, ctxt: Any) -> str:
        return self.name

    def tell(self, ctxt: Any, what: Any) -> None:
        self.heard_so_far.append(what)
        self.told.put(what)

    def wait(self, ctxt: Any, seconds: float = DEADLINE) -> str:
        self.entered.set()
        assert self.go_on.wait(seconds)
        self.left.set()
        return self.name

    def last(self, ctxt: Any, seconds: float) -> str:
        time.sleep(seconds)
        return "done"

    def fail(self, ctxt: Any, error: str) -> None:
        raise _ERRORS[error]

    def big(self, ctxt: Any, size: int) -> str:
        return "x" * size

    def strange(self, ctxt: Any) -> Any:
        circle: list[Any] = []
        circle.append(circle)
        return circle

    def heard(self) -> list[Any]:
        """Return what it was told since it was last asked."""
        found = []
        while not self.told.empty():
            found.append(self.told.get())
        return found


class Odd(Exception):
    """An error that the bus cannot carry as it is."""

    def __init__(self) -> None:
        super().__init__(object())
        self.kwargs = {"self": self}


_ERRORS: dict[str, Exception] = {"value": ValueError("no such value"), "odd": Odd()}


class Audience:
    """An endpoint for notifications: what it heard, a list of (priority, event type, payload) or of batches."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def info(self, ctxt: Any, publisher: Any, event: Any, payload: Any, metadata: Any) -> None:
        self.heard.append(("info", event, payload))

    def error(self, ctxt: Any, publisher: Any, event: Any, payload: Any, metadata: Any) -> None:
        self.heard.append(("error", event, payload))


class Batches:
    """An endpoint for batches of notifications: the payloads of each."""

    def __init__(self) -> None:
        self.heard: list[list[Any]] = []

    def info(self, messages: list[Any]) -> None:
        self.heard.append([message["payload"] for message in messages])


class Programs:
    """Makes transports, servers and clients of oslo.messaging on one URL; `close` ends them all."""

    def __init__(self, url: str) -> None:
        from futurist._thread import ThreadWorker

        ThreadWorker.MAX_IDLE_FOR = 0.02  # seconds until an idle worker sees that its server has stopped, by default 1
        self.url = url
        self.conf = configuration()
        self.topic = f"topic-{secrets.token_hex(4)}"
        self._ends: list[Callable[[], None]] = []

    def transport(self, *, notifications: bool = False, allowed: list[str] | None = None, **options: Any) -> Any:
        make = oslo_messaging.get_notification_transport if notifications else oslo_messaging.get_rpc_transport
        query = "&".join(f"{name}={value}" for name, value in options.items())
        url = f"{self.url}{'&' if '?' in self.url else '?'}{query}" if query else self.url
        transport = make(self.conf, url=url, allowed_remote_exmods=allowed)
        self._ends.append(transport.cleanup)
        return transport

    def target(self, **parts: Any) -> Any:
        return oslo_messaging.Target(**{"topic": self.topic, **parts})

    def server(self, endpoint: Any, name: str = "server", *, on: Any = None, **parts: Any) -> Any:
        target = self.target(server=name, **parts)
        server = oslo_messaging.get_rpc_server(on or self.transport(), target, [endpoint])
        server.start()
        self._ends.append(lambda: end(server))
        return server

    def client(self, *, on: Any = None, timeout: float = DEADLINE, **parts: Any) -> Any:
        options = {
            name: parts.pop(name) for name in ("transport_options", "call_monitor_timeout", "retry") if name in parts
        }
        target = self.target(**parts)
        return oslo_messaging.get_rpc_client(on or self.transport(), target, timeout=timeout, **options)

    def listener(self, endpoint: Any, *, pool: str | None = None, **batches: Any) -> Any:
        on = self.transport(notifications=True)
        targets = [self.target()]
        single, batch = oslo_messaging.get_notification_listener, oslo_messaging.get_batch_notification_listener
        make = batch if batches else single
        listener = make(on, targets, [endpoint], pool=pool, **batches)
        listener.start()
        self._ends.append(lambda: end(listener))
        return listener

    def notifier(self, **options: Any) -> Any:
        on = self.transport(notifications=True, **options)
        return oslo_messaging.Notifier(on, "publisher", driver="messagingv2", topics=[self.topic])

    def close(self) -> None:
        while self._ends:
            self._ends.pop()()


def end(server: Any) -> None:
    """Stop a server, and wait until what it runs has ended."""
    server.stop()
    server.wait()
