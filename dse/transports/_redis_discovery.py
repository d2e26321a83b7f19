"""Which servers make up a bus: asked of Sentinels, or of the members of a cluster."""

from __future__ import annotations

import time
from collections.abc import Sequence

from redis.exceptions import RedisError

from dse.core.sockets import unavailable
from dse.errors import TransportUnavailable
from dse.transports._redis_wire import Endpoint, Wire, in_words

__all__ = ["Found", "find_cluster", "find_master"]

_SLOTS = 16384


class Found:
    """The connection that is just being asked, so that another thread can end it."""

    def __init__(self, url: object) -> None:
        self.url = url
        self._wire: Wire | None = None
        self._killed = False

    def connect(self, endpoint: Endpoint, deadline: float) -> Wire:
        """Return a connection to ask over; the next one replaces it."""
        wire = self._wire = Wire(self.url, endpoint)
        if self._killed:
            wire.kill()
        wire.open(deadline)
        return wire

    def kill(self) -> None:
        self._killed = True
        if self._wire is not None:
            self._wire.kill()

    def abandon(self) -> None:
        if self._wire is not None:
            self._wire.abandon()

    def drop(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.drop()


def find_master(found: Found, sentinels: Sequence[Endpoint], name: str, deadline: float) -> tuple[str, int]:
    """Ask one Sentinel after the other where the master is; an equal share of the time left is for each."""
    said: list[str] = []
    cause: BaseException | None = None
    for index, endpoint in enumerate(sentinels):
        now = time.monotonic()
        share = now + (deadline - now) / (len(sentinels) - index + 1)  # the last share is the master's own
        try:
            wire = found.connect(endpoint, share)
            answer = wire.ask(share, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", name)
        except (OSError, RedisError, TransportUnavailable) as error:
            cause = error
            said.append(_said(found, endpoint, error, share - now))
        else:
            if answer is not None:
                return answer[0].decode(), int(answer[1])
            said.append(f"{endpoint} knows no master {name!r}")
        finally:
            found.drop()
    raise unavailable(found.url, f"has no Sentinel that names a master {name!r}: {'; '.join(said)}", cause)


def find_cluster(found: Found, seeds: Sequence[Endpoint], deadline: float) -> tuple[list[tuple[str, int]], list[int]]:
    """Ask one seed after the other for the masters; return them, and the index of each slot's master."""
    said: list[str] = []
    cause: BaseException | None = None
    for index, seed in enumerate(seeds):
        now = time.monotonic()
        share = now + (deadline - now) / (len(seeds) - index + 1)
        try:
            wire = found.connect(seed, share)
            ranges = wire.ask(share, "CLUSTER", "SLOTS")
        except (OSError, RedisError, TransportUnavailable) as error:
            cause = error
            said.append(_said(found, seed, error, share - now))
            continue
        finally:
            found.drop()
        masters: dict[tuple[str, int], int] = {}
        slots = [-1] * _SLOTS
        for first, last, master, *_ in ranges:
            host = master[0].decode() if master[0] and master[0] != b"?" else seed.host
            at = masters.setdefault((host, int(master[1])), len(masters))
            slots[first : last + 1] = [at] * (last - first + 1)
        if -1 not in slots:
            return list(masters), slots
        said.append(f"{seed}: no server for {slots.count(-1):,} of the {_SLOTS:,} slots")
    raise unavailable(found.url, f"has no member that knows the whole cluster: {'; '.join(said)}", cause)


def _said(found: Found, endpoint: Endpoint, error: BaseException, timeout: float) -> str:
    if isinstance(error, TransportUnavailable):
        return str(error).removeprefix(f"{found.url} ")
    return f"{in_words(error, timeout) or repr(error)} ({endpoint})"
