"""A program of oslo.messaging in a process of its own: ``oslo_child URL TOPIC SERVER threads|eventlet``.

It serves the topic, and calls for whoever asks: a line of JSON on stdin is ``[target, method, arguments]``, its answer
one on stdout. With ``eventlet`` the process is monkey-patched before anything else.
"""

from __future__ import annotations

import sys

if sys.argv[-1] == "eventlet":
    import eventlet
    import eventlet.tpool

    eventlet.monkey_patch()

import json
import logging
import os
import time
from typing import Any

import oslo_messaging
from oslo_config import cfg


def next_line() -> str:
    """Return the next line of stdin, and let the coroutines go on meanwhile, where there are any."""
    if "eventlet" in sys.argv:
        return str(eventlet.tpool.execute(sys.stdin.readline))
    return sys.stdin.readline()


class Endpoint:
    """What it offers."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._told: list[Any] = []

    def who(self, ctxt: Any) -> str:
        return self._name

    def pid(self, ctxt: Any) -> int:
        return os.getpid()

    def last(self, ctxt: Any, seconds: float) -> str:
        self._told.append("last")
        time.sleep(seconds)
        return self._name

    def tell(self, ctxt: Any, what: Any) -> None:
        self._told.append(what)

    def told(self, ctxt: Any) -> list[Any]:
        return self._told


def main(url: str, topic: str, name: str) -> None:
    logging.disable(logging.CRITICAL)
    cfg.CONF([], default_config_files=[], default_config_dirs=[])
    transport = oslo_messaging.get_rpc_transport(cfg.CONF, url=url)
    server = oslo_messaging.get_rpc_server(transport, oslo_messaging.Target(topic=topic, server=name), [Endpoint(name)])
    server.start()
    client = oslo_messaging.get_rpc_client(transport, oslo_messaging.Target(topic=topic), timeout=20)
    print(json.dumps("ready"), flush=True)
    while line := next_line():
        target, method, arguments = json.loads(line)
        print(json.dumps(client.prepare(**target).call({}, method, **arguments)), flush=True)
    server.stop()
    server.wait()
    transport.cleanup()


if __name__ == "__main__":
    main(*sys.argv[1:4])
