"""A process of the page tests: a node with a shop whose stock is what stdin says: a line is rows that come and go.

Instead of the rows that go null may stand: then all others go.
"""

from __future__ import annotations

import json
import sys

from dse import DataService, Node, Table, on_change, rpc


class Shop(DataService):
    stock = Table("article", "count")

    @rpc
    def price(self, article: str, count: int, rush: bool = False) -> float:
        """What it costs."""
        return 1.5 * count * (2 if rush else 1)

    @rpc
    def close_down(self) -> None:
        """Must not be offered."""


class Auditor(DataService):
    @on_change("shop", "stock")
    def seen(self, change: object) -> None:
        """Follow, so that there is a line to draw."""


def main(kind: str, url: str, bus: str) -> None:
    service: DataService = Auditor("auditor")
    if kind == "shop":
        service = Shop("shop")
    elif kind == "policy":
        from dse.services.policy import Policy

        service = Policy("policy", policies={"care": {"scarce": "SELECT article FROM shop.stock WHERE count < 2"}})
    with Node(url, bus=bus, node_id=f"{kind}-1", services=[service], heartbeat_interval=0.5):
        print("ready", flush=True)
        for line in sys.stdin:
            assert isinstance(service, Shop)
            added, removed = json.loads(line)
            if removed is None:
                service.stock.replace(map(tuple, added))
            else:
                service.stock.apply(map(tuple, added), map(tuple, removed))


if __name__ == "__main__":
    main(*sys.argv[1:4])
