"""nameko, as its documentation shows it: a service in a runner, and stand-alone RPC proxies.

peer_nameko.py serve|call URL NAME
"""

from __future__ import annotations

import eventlet

if __name__ == "__main__":
    import sys

    if sys.argv[1] == "serve":
        eventlet.monkey_patch()

import logging
import threading
from collections.abc import Callable
from typing import Any

from nameko.rpc import rpc
from nameko.runners import ServiceRunner
from nameko.standalone.rpc import ServiceRpcProxy
from worker import ARGS, by_threads, obey, one_at_a_time

logging.disable(logging.WARNING)


def serve(url: str, service: str) -> None:
    """Host the service; eventlet's hub runs in this thread, so stdin is read by its green file."""

    class Echo:
        name = service

        @rpc
        def echo(self, pid: int, name: str, flag: bool) -> int:
            return pid

    runner = ServiceRunner(config={"AMQP_URI": url})
    runner.add_service(Echo)
    runner.start()
    print('[true, "ready"]', flush=True)
    runner.wait()


def call(url: str, service: str) -> None:
    """Call it from another process: a proxy a thread, as nameko's are not to be shared."""
    proxies: dict[int, Any] = {}
    lock = threading.Lock()

    def proxy(number: int) -> Callable[[], Any]:
        with lock:
            if number not in proxies:
                proxies[number] = ServiceRpcProxy(service, {"AMQP_URI": url}).start()
        return lambda: proxies[number].echo(**ARGS)

    obey(
        one=lambda calls: one_at_a_time(proxy(0), calls),
        threads=lambda calls, at_once: by_threads(proxy, calls, at_once),
    )


if __name__ == "__main__":
    role, url, name = sys.argv[1:4]
    globals()[role](url.replace("rabbit://", "amqp://"), name)
