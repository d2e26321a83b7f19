"""The floor on RabbitMQ: py-amqp by hand, direct reply-to.

floor_rabbit.py serve|call|follow|publish URL NAME
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import amqp
import msgspec
from worker import ARGS, by_threads, obey, one_at_a_time, rows_of

encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder().decode
rows_decoder = msgspec.msgpack.Decoder(tuple[int, list[tuple[Any, ...]]])
_REPLY_TO = "amq.rabbitmq.reply-to"


def connect(url: str) -> Any:
    parts = urlsplit(url)
    connection = amqp.Connection(
        f"{parts.hostname}:{parts.port or 5672}", userid=parts.username or "guest", password=parts.password or "guest"
    )
    connection.connect()
    return connection


def in_background(work: Callable[[], None]) -> None:
    def forever() -> None:
        while True:
            work()

    threading.Thread(target=forever, daemon=True).start()


class Caller:
    """One connection; an answer is read by the thread that waits for it."""

    def __init__(self, url: str, name: str) -> None:
        self.queue = f"{name}-requests"
        self.connection = connect(url)
        self.channel = self.connection.channel()
        self.channel.basic_consume(_REPLY_TO, callback=self.answered, no_ack=True)
        self.answers = 0

    def answered(self, message: Any) -> None:
        decode(message.body)
        self.answers += 1

    def ask(self) -> None:
        self.channel.basic_publish(amqp.Message(encode(ARGS), reply_to=_REPLY_TO), routing_key=self.queue)

    def call(self) -> None:
        before = self.answers
        self.ask()
        while self.answers == before:
            self.connection.drain_events()

    def window(self, calls: int, at_once: int) -> float:
        """Keep so many requests under way, from one thread."""
        self.answers = sent = 0
        began = time.perf_counter()
        while self.answers < calls:
            while sent < calls and sent - self.answers < at_once:
                self.ask()
                sent += 1
            self.connection.drain_events()
        return time.perf_counter() - began


def serve(url: str, name: str) -> None:
    """Answer every request in the thread that receives it."""
    connection = connect(url)
    channel = connection.channel()
    channel.queue_declare(f"{name}-requests", auto_delete=True)
    asked: deque[Any] = deque()

    def answer() -> None:
        # Not in the callback: `basic_publish` looks for events itself, and would call it again, and again.
        connection.drain_events()
        while asked:
            message = asked.popleft()
            reply = amqp.Message(encode(decode(message.body)["pid"]))
            channel.basic_publish(reply, routing_key=message.properties["reply_to"])

    channel.basic_consume(f"{name}-requests", callback=asked.append, no_ack=True)
    in_background(answer)
    obey()


def call(url: str, name: str) -> None:
    """Call."""
    callers = [Caller(url, name)]

    def by_number(number: int) -> Callable[[], None]:
        while len(callers) <= number:
            callers.append(Caller(url, name))
        return callers[number].call

    obey(
        one=lambda calls: one_at_a_time(callers[0].call, calls),
        threads=lambda calls, at_once: by_threads(by_number, calls, at_once),
        window=lambda calls, at_once: callers[0].window(calls, at_once),
    )


def follow(url: str, name: str, receivers: int = 4) -> None:
    """Receive with several connections, a thread each, into sets; say when all have the last message."""
    changed = threading.Condition()
    newest = [-1] * receivers
    connections = []

    def handler(number: int) -> Callable[[Any], None]:
        copy: set[Any] = set()

        def received(message: Any) -> None:
            newest[number], rows = rows_decoder.decode(message.body)
            copy.update(rows)
            if newest[number] % 100 == 99:
                with changed:
                    changed.notify_all()

        return received

    for number in range(receivers):
        connection = connect(url)
        channel = connection.channel()
        channel.exchange_declare(f"{name}-rows", "fanout", auto_delete=True)
        queue = channel.queue_declare(exclusive=True).queue
        channel.queue_bind(queue, f"{name}-rows")
        channel.basic_consume(queue, callback=handler(number), no_ack=True)
        in_background(connection.drain_events)
        connections.append(connection)

    def reached(message: int) -> bool:
        with changed:
            return changed.wait_for(lambda: min(newest) >= message, 60.0)

    obey(reached=reached)


def publish(url: str, name: str) -> None:
    """Publish messages of ten rows as fast as the broker takes them."""
    connection = connect(url)
    channel = connection.channel()
    channel.exchange_declare(f"{name}-rows", "fanout", auto_delete=True)
    said = iter(range(1 << 60))

    def messages(count: int) -> int:
        number = 0
        for _ in range(count):
            number = next(said)
            channel.basic_publish(amqp.Message(encode((number, rows_of(number)))), exchange=f"{name}-rows")
        return number

    obey(messages=messages)


if __name__ == "__main__":
    role, url, name = sys.argv[1:4]
    globals()[role](url, name, *map(int, sys.argv[4:]))
