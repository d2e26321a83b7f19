"""Which pools a notifier sends copies to. Plain state, no I/O, no clock, no lock.

Everybody who listens for notifications of a topic without a pool shares one address, where one of them gets each. Each
pool shares one more, and gets a copy of its own. Rules:

1. Before the first notification to an address its pools are not known: the notifier asks, and does not wait. For
   `WINDOW` seconds it remembers what it sends there; a pool that answers gets that as well.
2. A pool that says by itself that it is there has just come: it gets what is sent from then on.
3. After an outage everything is asked again; what was missed meanwhile could not be sent anyway.
4. A pool is forgotten when what was kept for it has expired: nobody of it is left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from dse.oslo import addresses

__all__ = ["WINDOW", "PoolBook"]

WINDOW = 2.0
_MOST = 1000  # notifications remembered for one address


@dataclass(slots=True)
class _Page:
    """What is known of one address."""

    asked: float
    pools: dict[str, str] = field(default_factory=dict)  # the name of each, and its address
    recent: deque[bytes] = field(default_factory=lambda: deque(maxlen=_MOST))


class PoolBook:
    """See the rules at the top of this file."""

    def __init__(self) -> None:
        self._pages: dict[str, _Page] = {}

    def notified(self, now: float, address: str, frame: bytes) -> tuple[bool, list[str]]:
        """A notification is sent: return whether to ask for the pools, and the addresses of those that get a copy."""
        page = self._pages.get(address)
        ask = page is None
        if page is None:
            page = self._pages[address] = _Page(now)
        if now < page.asked + WINDOW:
            page.recent.append(frame)
        elif page.recent:
            page.recent.clear()
        return ask, list(page.pools.values())

    def told(self, now: float, pools: Iterable[tuple[str, str]], *, asked: bool) -> list[tuple[str, bytes]]:
        """Somebody names pools; asked: in answer to the question. Return the copies that are due to them."""
        copies: list[tuple[str, bytes]] = []
        for address, name in pools:
            page = self._pages.get(address)
            if page is None or name in page.pools:
                continue
            page.pools[name] = addresses.pool(address, name)
            if asked and now < page.asked + WINDOW:
                copies += [(page.pools[name], frame) for frame in page.recent]
        return copies

    def ask_again(self, now: float) -> list[str]:
        """Return the addresses to ask for, all of them anew."""
        for page in self._pages.values():
            page.asked = now
            page.recent.clear()
        return list(self._pages)

    def forget(self, pool_address: str) -> None:
        """Nobody is left of the pool with this address."""
        for page in self._pages.values():
            for name in [name for name, address in page.pools.items() if address == pool_address]:
                del page.pools[name]
