"""The floor on Redis: redis-py and hiredis by hand, pub/sub, nothing that is not needed to be answered.

floor_redis.py serve|call|follow|publish URL NAME
"""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

import msgspec
import redis
from worker import ARGS, by_threads, obey, one_at_a_time, rows_of

encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder().decode


class Caller:
    """One connection to subscribe and one to publish; an answer is read by the thread that waits for it."""

    def __init__(self, client: redis.Redis, name: str, number: int) -> None:
        self.requests, self.answers = f"{name}-requests", f"{name}-answers-{number}"
        self.hear = connection(client)
        self.hear.send_command("SUBSCRIBE", self.answers)
        self.hear.read_response()
        self.say = connection(client)

    def call(self) -> Any:
        self.say.send_command("PUBLISH", self.requests, encode((self.answers, ARGS)))
        answer = decode(self.hear.read_response()[2])
        self.say.read_response()
        return answer

    def window(self, calls: int, at_once: int) -> float:
        """Keep so many requests under way, from one thread."""
        request = encode((self.answers, ARGS))
        began = time.perf_counter()
        packed = self.say.pack_command("PUBLISH", self.requests, request)
        self.say.send_packed_command([b"".join(packed) * at_once])
        sent = at_once
        for done in range(calls):
            decode(self.hear.read_response()[2])
            self.say.read_response()
            if sent < calls:
                self.say.send_packed_command(packed)
                sent += 1
            del done
        return time.perf_counter() - began


def connection(client: redis.Redis) -> Any:
    made = client.connection_pool.make_connection()
    made.connect()
    return made


def serve(client: redis.Redis, name: str) -> None:
    """Answer every request in the thread that receives it."""
    hear, say = connection(client), connection(client)
    hear.send_command("SUBSCRIBE", f"{name}-requests")
    hear.read_response()

    def run() -> None:
        while True:
            answers, args = decode(hear.read_response()[2])
            say.send_command("PUBLISH", answers, encode(args["pid"]))
            say.read_response()

    threading.Thread(target=run, daemon=True).start()
    obey()


def call(client: redis.Redis, name: str) -> None:
    """Call."""
    callers = [Caller(client, name, number) for number in range(128)]
    obey(
        one=lambda calls: one_at_a_time(callers[0].call, calls),
        threads=lambda calls, at_once: by_threads(lambda number: callers[number].call, calls, at_once),
        window=lambda calls, at_once: callers[0].window(calls, at_once),
    )


def follow(client: redis.Redis, name: str, receivers: int = 4) -> None:
    """Receive with several connections, a thread each, into sets; say when all have the last message."""
    copies: list[set[Any]] = [set() for _ in range(receivers)]
    changed = threading.Condition()
    newest = [-1] * receivers

    def run(number: int, hear: Any) -> None:
        copy = copies[number]
        while True:
            message, rows = rows_decoder.decode(hear.read_response()[2])
            copy.update(rows)
            newest[number] = message
            if message % 100 == 99:
                with changed:
                    changed.notify_all()

    def reached(message: int) -> bool:
        with changed:
            return changed.wait_for(lambda: min(newest) >= message, 60.0)

    for number in range(receivers):
        hear = connection(client)
        hear.send_command("SUBSCRIBE", f"{name}-rows")
        hear.read_response()
        threading.Thread(target=run, args=(number, hear), daemon=True).start()
    obey(reached=reached)


rows_decoder = msgspec.msgpack.Decoder(tuple[int, list[tuple[Any, ...]]])


def publish(client: redis.Redis, name: str) -> None:
    """Publish messages of ten rows as fast as the broker takes them."""
    say = connection(client)
    said = iter(range(1 << 60))

    def messages(count: int) -> int:
        number = 0
        for _ in range(count):
            number = next(said)
            say.send_command("PUBLISH", f"{name}-rows", encode((number, rows_of(number))))
            if number % 20 == 19:
                for _ in range(20):
                    say.read_response()
        return number

    obey(messages=messages)


if __name__ == "__main__":
    role, url, name = sys.argv[1:4]
    globals()[role](
        redis.Redis.from_url(url, socket_timeout=None, protocol=2, max_connections=1000), name, *map(int, sys.argv[4:])
    )
