"""A call of oslo.messaging's RPC, over DSE and over its own driver for RabbitMQ, in one run: oslo_calls.py [URL…]

Two processes, a server and a client, for each URL; the same program for all. Without URLs: private brokers, and
``rabbit://`` (oslo.messaging's own driver), ``dse+rabbit://``, ``dse+redis://``. Prints a table in Markdown: the median
and the 99th percentile of a call of about 200 bytes, one at a time, the calls a second of 16 threads, and the ratio of
the medians to the first URL's. The rounds take turns, so that whatever else the machine does hits all alike.
"""

from __future__ import annotations

import argparse
import contextlib
import secrets
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "compare"))
from processes import Worker

THREADS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("urls", nargs="*")
    parser.add_argument("--calls", type=int, default=1000, help="calls a round, one at a time (1000)")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with contextlib.ExitStack() as ends:
        urls = given.urls
        if not urls:
            from dse.testing.brokers import rabbit_broker, redis_broker

            rabbit = ends.enter_context(rabbit_broker()).direct_url
            redis = ends.enter_context(redis_broker()).direct_url
            urls = [rabbit.replace("amqp://", "rabbit://"), f"dse+{rabbit}", f"dse+{redis}"]
        clients = {}
        for url in urls:
            name = f"calls-{secrets.token_hex(4)}"
            for role in ("serve", "call"):
                worker = Worker(Path(sys.executable), "peer_oslo", role, url, name)
                ends.callback(worker.end)
            clients[url] = worker
        for client in clients.values():
            client.ask("one", calls=200)
        took: dict[str, list[float]] = {url: [] for url in urls}
        rates: dict[str, list[float]] = {url: [] for url in urls}
        for _ in range(given.rounds):
            for url, client in clients.items():
                took[url] += client.ask("one", calls=given.calls)
                rates[url].append(given.calls / client.ask("threads", calls=given.calls, at_once=THREADS))
    first = statistics.median(took[urls[0]])
    print(f"| | median | 99th | {THREADS} threads | ratio of the medians |\n| --- | --- | --- | --- | --- |")
    for url in urls:
        ordered = sorted(took[url])
        median, high = statistics.median(ordered), ordered[int(len(ordered) * 0.99)]
        print(
            f"| `{url.partition('://')[0]}://` | {median * 1e3:.2f} ms | {high * 1e3:.2f} ms |"
            f" {statistics.median(rates[url]):,.0f}/s | {first / median:.1f} |"
        )


if __name__ == "__main__":
    main()
