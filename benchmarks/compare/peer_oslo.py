"""oslo.messaging, as its documentation shows it: a server with the threading executor, one client.

peer_oslo.py serve|call|pair|follow|publish URL NAME
"""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from typing import Any

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)

import oslo_messaging  # noqa: E402
from oslo_config import cfg  # noqa: E402
from worker import ARGS, by_threads, obey, one_at_a_time, rows_of  # noqa: E402


class Endpoint:
    """Answers with a part of what it got."""

    def echo(self, context: Any, pid: int, name: str, flag: bool) -> int:
        return pid


class Follower:
    """Adds up the rows that it is told."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.newest = -1
        self.copy: set[Any] = set()

    def told(self, context: Any, message: int, rows: list[list[Any]]) -> None:
        with self.changed:
            self.copy.update(map(tuple, rows))
            self.newest = max(self.newest, message)
            self.changed.notify_all()


def transport(url: str) -> Any:
    cfg.CONF([], default_config_files=[])  # parts of oslo.messaging know the global configuration only
    return oslo_messaging.get_rpc_transport(cfg.CONF, url=url.replace("amqp://", "rabbit://"))


def server(on: Any, topic: str, name: str, endpoint: object) -> Any:
    target = oslo_messaging.Target(topic=topic, server=name)
    made = oslo_messaging.get_rpc_server(on, target, [endpoint], executor="threading")
    made.start()
    return made


def _calls(on: Any, topic: str) -> dict[str, Any]:
    client = oslo_messaging.get_rpc_client(on, oslo_messaging.Target(topic=topic))

    def echo() -> Any:
        return client.call({}, "echo", **ARGS)

    return {
        "one": lambda calls: one_at_a_time(echo, calls),
        "threads": lambda calls, at_once: by_threads(lambda _: echo, calls, at_once),
    }


def serve(url: str, name: str) -> None:
    """Host the service."""
    server(transport(url), name, "s", Endpoint())
    obey()


def call(url: str, name: str) -> None:
    """Call it from another process."""
    obey(**_calls(transport(url), name))


def pair(url: str, name: str) -> None:
    """Call it within one process, over the fake driver."""
    on = transport("fake://")
    server(on, name, "s", Endpoint())
    obey(**_calls(on, name))


def follow(url: str, name: str, receivers: int = 4) -> None:
    """Receive casts to all servers, a server a receiver."""
    followers = [Follower() for _ in range(receivers)]
    for number, follower in enumerate(followers):
        server(transport(url), f"{name}-rows", f"{id(follower)}-{number}", follower)

    def reached(message: int) -> bool:
        for follower in followers:
            with follower.changed:
                # Its worker threads do not keep the order: wait for the number of rows instead of the last one.
                if not follower.changed.wait_for(lambda f=follower: len(f.copy) >= 10 * (message + 1), 60.0):  # type: ignore[misc]
                    return False
        return True

    obey(reached=reached)


def publish(url: str, name: str) -> None:
    """Cast messages of ten rows to all servers."""
    client = oslo_messaging.get_rpc_client(transport(url), oslo_messaging.Target(topic=f"{name}-rows", fanout=True))
    said = iter(range(1 << 60))

    def messages(count: int) -> int:
        number = 0
        for _ in range(count):
            number = next(said)
            client.cast({}, "told", message=number, rows=rows_of(number))
        return number

    obey(messages=messages)


if __name__ == "__main__":
    role, url, name = sys.argv[1:4]
    globals()[role](url, name, *map(int, sys.argv[4:]))
