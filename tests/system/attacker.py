"""An attacker: a process on the same broker, with every right there and no key. It knows DSE's source, and no more.

Driven over pipes (`dse.testing.piped`): a JSON array ``[name, argument…]`` a line, answered by one; bytes are base64.
It talks to the broker with the client library alone. What it calls a *name* is a channel, list, queue or routing key.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import threading
import time
from abc import ABC, abstractmethod
from typing import Any
from urllib.parse import urlsplit

Recorded = tuple[str, bytes]


class Attacker(ABC):
    """What the attacker can do; every public method is a command."""

    def __init__(self) -> None:
        self._recorded: list[Recorded] = []
        self._lock = threading.Lock()  # protects _recorded
        self._stop_stealing = threading.Event()

    def recorded(self) -> list[tuple[str, str]]:
        """Return everything that was ever sent, as far as a copy of it came by."""
        with self._lock:
            return [(name, base64.b64encode(data).decode()) for name, data in self._recorded]

    def saw(self, word: str) -> bool:
        """Whether these characters were in anything that was sent."""
        wanted = word.encode()
        with self._lock:
            return any(wanted in data for _, data in self._recorded)

    def send(self, name: str, data: str, times: int = 1) -> None:
        """Send data to all who listen there."""
        raw = base64.b64decode(data)
        for _ in range(times):
            self.put(name, raw)

    def send_all(self, frames: list[tuple[str, str]]) -> None:
        for name, data in frames:
            self.put(name, base64.b64decode(data))

    def flood(self, name: str, count: int, size: int) -> float:
        """Send garbage as fast as it goes; return the seconds it took."""
        began = time.monotonic()
        for number in range(count):
            # Some of it begins as plain frames do, some as sealed ones.
            self.put(name, b"\x00" + (b"\x01\x01", b"\x81\x00\x20", b"\x07")[number % 3] + os.urandom(size))
        return time.monotonic() - began

    def stop_stealing(self) -> None:
        self._stop_stealing.set()

    def _record(self, name: str, data: bytes) -> None:
        with self._lock:
            self._recorded.append((name, data))

    @abstractmethod
    def put(self, name: str, data: bytes) -> None: ...

    @abstractmethod
    def steal(self, name: str) -> None:
        """Take whatever is sent to any one of those who listen there, from now on."""

    @abstractmethod
    def disconnect_all(self) -> None:
        """End every other connection to the broker."""

    @abstractmethod
    def wreck(self, prefix: str) -> list[str]:
        """Delete, and where that is possible spoil, what is on the broker with names that begin so; return what."""


class RedisAttacker(Attacker):
    def __init__(self, url: str) -> None:
        super().__init__()
        import redis

        self._client = redis.Redis.from_url(url)
        self._url = url
        listener = redis.Redis.from_url(url).pubsub()
        listener.psubscribe("*")
        while (listener.get_message(timeout=5) or {}).get("type") != "psubscribe":
            pass
        self._listener = listener
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for message in self._listener.listen():
            if message["type"] == "pmessage":
                self._record(message["channel"].decode(), message["data"])

    def put(self, name: str, data: bytes) -> None:
        if ":a:" in name:
            self._client.rpush(name, data)
        else:
            self._client.publish(name, data)

    def steal(self, name: str) -> None:
        import redis

        client = redis.Redis.from_url(self._url)

        def work() -> None:
            while not self._stop_stealing.is_set():
                taken = client.blpop([name], 0.05)
                if taken:
                    self._record(name, taken[1])

        self._stop_stealing.clear()
        threading.Thread(target=work, daemon=True).start()

    def disconnect_all(self) -> None:
        mine = {str(self._client.client_id())}
        for each in self._client.client_list():
            if each["id"] not in mine and each["name"].startswith("dse:"):
                self._client.execute_command("CLIENT", "KILL", "ID", each["id"])

    def wreck(self, prefix: str) -> list[str]:
        names = {name.decode() for name in self._client.pubsub_channels(f"{prefix}a:*")}
        with self._client.monitor() as monitor:  # the private lists, which have random names
            until = time.monotonic() + 1.5
            for command in monitor.listen():
                words = command["command"].split()
                if words[0].upper() == "BLPOP":
                    names |= {word for word in words if word.startswith(prefix)}
                if time.monotonic() > until or any(f"{prefix}w:" in name for name in names):
                    break
                self._client.ping()
        self._client.flushall()
        for name in names:
            self._client.set(name, "spoilt")
        return sorted(names)


class RabbitAttacker(Attacker):
    def __init__(self, url: str) -> None:
        super().__init__()
        import amqp

        self._parts = urlsplit(url)
        self._amqp = amqp
        self._connection = self._connect()
        self._channel = self._connection.channel()
        self._busy = threading.Lock()  # one thread at a time uses _channel
        spy = self._connect()
        channel = spy.channel()
        queue, _, _ = channel.queue_declare(exclusive=True)
        # The firehose, which an administrator has turned on: a copy of all that is published.
        channel.queue_bind(queue, "amq.rabbitmq.trace", "publish.#")
        channel.basic_consume(queue, no_ack=True, callback=self._spied)
        threading.Thread(target=self._drain, args=(spy,), daemon=True).start()

    def _connect(self) -> Any:
        parts = self._parts
        connection = self._amqp.Connection(
            f"{parts.hostname}:{parts.port}", userid=parts.username or "guest", password=parts.password or "guest"
        )
        connection.connect()
        return connection

    def _spied(self, message: Any) -> None:
        keys = message.headers.get("routing_keys") or [""]
        body = message.body if isinstance(message.body, bytes) else message.body.encode("latin-1")
        self._record(str(keys[0]), body)

    def _drain(self, connection: Any) -> None:
        while True:
            connection.drain_events()

    def put(self, name: str, data: bytes) -> None:
        with self._busy:
            exchange = "" if ":a:" in name else "amq.direct"
            self._channel.basic_publish(self._amqp.Message(data), exchange, name)

    def steal(self, name: str) -> None:
        connection = self._connect()
        channel = connection.channel()
        channel.basic_consume(name, no_ack=True, callback=lambda message: self._record(name, b"stolen"))

        def work() -> None:
            while not self._stop_stealing.is_set():
                try:
                    connection.drain_events(timeout=0.05)
                except OSError:
                    continue
            connection.close()

        self._stop_stealing.clear()
        threading.Thread(target=work, daemon=True).start()

    def disconnect_all(self) -> None:
        raise NotImplementedError("an administrator's, not a client's")

    def wreck(self, prefix: str) -> list[str]:
        with self._lock:
            names = {name for name, _ in self._recorded if name.startswith(f"{prefix}a:")}
        for name in names:
            with self._busy:
                try:
                    self._channel.queue_delete(name)
                except self._amqp.NotFound:
                    self._channel = self._connection.channel()
        return sorted(names)


def main(url: str) -> None:
    answers, sys.stdout = sys.stdout, sys.stderr
    attacker: Attacker = RedisAttacker(url) if url.startswith("redis") else RabbitAttacker(url)
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        try:
            answer: object = {"result": getattr(attacker, name)(*arguments)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
