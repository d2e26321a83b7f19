"""FastStream, as its documentation shows it: a subscriber that returns, and ``broker.request``.

peer_faststream.py serve|call URL NAME
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from typing import Any

from worker import ARGS, obey

logging.disable(logging.WARNING)


def broker(url: str) -> Any:
    if url.startswith("redis"):
        from faststream.redis import RedisBroker

        return RedisBroker(url, logger=None)
    from faststream.rabbit import RabbitBroker

    return RabbitBroker(url, logger=None)


def in_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop


def run(loop: asyncio.AbstractEventLoop, coroutine: Any) -> Any:
    return asyncio.run_coroutine_threadsafe(coroutine, loop).result(120)


def serve(url: str, name: str) -> None:
    """Host the subscriber."""
    made, loop = broker(url), in_loop()

    @made.subscriber(name)
    async def echo(pid: int, name: str, flag: bool) -> int:
        return pid

    run(loop, made.start())
    obey()


def call(url: str, name: str) -> None:
    """Request from another process."""
    made, loop = broker(url), in_loop()
    run(loop, made.start())

    async def one(calls: int) -> list[float]:
        took = []
        for _ in range(calls):
            began = time.perf_counter()
            await made.request(ARGS, name, timeout=10.0)
            took.append(time.perf_counter() - began)
        return took

    async def many(calls: int, at_once: int) -> float:
        async def work() -> None:
            for _ in range(calls // at_once):
                await made.request(ARGS, name, timeout=30.0)

        began = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(at_once)))
        return (time.perf_counter() - began) * calls / (calls // at_once * at_once)

    obey(
        one=lambda calls: run(loop, one(calls)),
        threads=lambda calls, at_once: run(loop, many(calls, at_once)),
        window=lambda calls, at_once: run(loop, many(calls, at_once)),
    )


if __name__ == "__main__":
    role, url, name = sys.argv[1:4]
    globals()[role](url, name)
