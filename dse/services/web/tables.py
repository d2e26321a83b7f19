"""The tables that the gateway follows: one replica and one `Feed` for each, whatever number of clients look at it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from dse.core.info import BusStatus
from dse.core.replica import ReplicaState
from dse.core.table import Change, Replica
from dse.errors import ConfigError, NoSuchTable
from dse.services.web.errors import Refused
from dse.services.web.feed import Feed
from dse.services.web.options import Limits

__all__ = ["Bus", "Followed", "Tables"]

_log = logging.getLogger("dse.web")

_PACE = 0.1  # seconds, at least, between two times that the clients of a table are woken
_PATIENCE = 10.0  # seconds that a request waits for a table to come
_PAGE = resource.getpagesize()
_SWEEP = 1.0  # seconds between two looks at what nobody wants any more, and at how much there is


class Bus(Protocol):
    """What the gateway needs of the bus; a service and an `Observer` have it alike."""

    def status(self) -> BusStatus: ...

    def subscribe(
        self,
        service_id: str,
        table: str,
        callback: Callable[[Change], Any] | None = None,
        *,
        on_state: Callable[[ReplicaState], Any] | None = None,
        patient: bool = False,
    ) -> Replica: ...

    def unsubscribe(self, replica: Replica) -> None: ...

    async def acall(
        self, service_id: str, method: str, args: dict[str, Any], *, timeout: float, node_id: str | None = None
    ) -> Any: ...

    def figures(self, timeout: float = 1.0) -> dict[str, dict[str, Any] | None]: ...

    def first_rows(self, service_id: str, table: str, most: int, timeout: float = 1.0) -> Any: ...

    def clashes(self) -> list[tuple[str, str]]: ...

    def watch(self, callback: Callable[[], None]) -> Callable[[], None]: ...


class Followed:
    """A table that is followed. Used on the event loop alone, but for `wake`, which any thread may call."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.feed = Feed(self.wake)
        self.replica: Replica | None = None
        self.users = 0
        self.idle_since = 0.0
        self.gone = ""  # why it is followed no more
        self._event = asyncio.Event()
        self._woken_at = 0.0
        self._asked = False  # to be woken; written by any thread, a lost write costs one needless wake

    def wake(self) -> None:
        """Something happened to the table."""
        if not self._asked:
            self._asked = True
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._soon)

    def _soon(self) -> None:
        wait = self._woken_at + _PACE - self._loop.time()
        if wait > 0:
            self._loop.call_later(wait, self._now)
        else:
            self._now()

    def _now(self) -> None:
        self._asked = False
        self._woken_at = self._loop.time()
        self._event.set()
        self._event = asyncio.Event()

    async def changed(self, timeout: float) -> bool:
        """Wait until something happens; False when nothing did within that many seconds."""
        event = self._event
        try:
            await asyncio.wait_for(event.wait(), timeout)
        except TimeoutError:
            return False
        return True

    @property
    def rows(self) -> int:
        """The rows that are here or on their way."""
        loading = self.replica.loading if self.replica is not None else None
        return max(self.feed.count, loading[1] if loading is not None else 0)


class Tables:
    """Follows what clients look at, and `Limits.linger` seconds longer. Used on the event loop alone."""

    def __init__(self, bus: Bus, limits: Limits) -> None:
        self._bus = bus
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._followed: dict[tuple[str, str], Followed] = {}
        self._opening: dict[tuple[str, str], asyncio.Task[Followed]] = {}
        self._sweeper = self._loop.create_task(self._sweep())
        self.full = False
        """Whether the process holds as much memory as it may."""

    async def close(self) -> None:
        """Follow nothing any more."""
        self._sweeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._sweeper
        for task in list(self._opening.values()):
            task.cancel()
        for key in list(self._followed):
            await self._drop(key, "the gateway stops")

    @property
    def rows(self) -> int:
        """The rows of all of them."""
        return sum(each.rows for each in self._followed.values())

    def known(self, service_id: str, table: str) -> bool:
        """Whether the whole table is here."""
        followed = self._followed.get((service_id, table))
        return followed is not None and followed.feed.known

    @contextlib.asynccontextmanager
    async def use(self, service_id: str, table: str, *, whole: bool = True) -> AsyncIterator[Followed]:
        """Follow a table for the time of a block. whole: wait until all of it is here. Raises `Refused`."""
        followed = await self._open(service_id, table)
        followed.users += 1
        try:
            if whole:
                await self._wait_known(followed, service_id, table)
            yield followed
        finally:
            followed.users -= 1
            followed.idle_since = self._loop.time()

    async def _open(self, service_id: str, table: str) -> Followed:
        key = (service_id, table)
        followed = self._followed.get(key)
        if followed is not None:
            return followed
        task = self._opening.get(key)
        if task is None:
            task = self._opening[key] = self._loop.create_task(self._follow(key))
            task.add_done_callback(lambda _: self._opening.pop(key, None))
        return await asyncio.shield(task)

    async def _follow(self, key: tuple[str, str]) -> Followed:
        self.require_memory()
        if len(self._followed) >= self._limits.tables:
            await self._make_room()
        followed = Followed(self._loop)
        followed.idle_since = self._loop.time()
        try:
            followed.replica = await asyncio.to_thread(
                self._bus.subscribe, *key, followed.feed.changed, on_state=followed.feed.state_changed
            )
        except (NoSuchTable, ConfigError) as error:
            raise Refused(404, "NoSuchTable", str(error)) from None
        self._followed[key] = followed
        return followed

    def _look_at_memory(self) -> None:
        full = memory_of_process() > self._limits.memory << 20
        if full and not self.full:
            _log.warning("over the limit of %d MiB: nobody new is taken on", self._limits.memory)
        self.full = full

    def require_memory(self) -> None:
        """Raise `Refused` when the process holds as much memory as it may."""
        if self.full:
            raise Refused(
                503,
                "Busy",
                f"the gateway holds {self._limits.memory} MiB of memory, as much as it may",
                headers={"Retry-After": "30"},
            )

    async def _make_room(self) -> None:
        idle = [key for key, each in self._followed.items() if not each.users]
        if not idle:
            raise Refused(
                503,
                "Busy",
                f"the gateway follows {len(self._followed)} tables already, as many as it may",
                headers={"Retry-After": "30"},
            )
        await self._drop(min(idle, key=lambda key: self._followed[key].idle_since), "")

    async def _wait_known(self, followed: Followed, service_id: str, table: str) -> None:
        end = self._loop.time() + _PATIENCE
        while not followed.feed.known and not followed.gone:
            if followed.replica is not None and followed.replica.error is not None:
                raise Refused(403, "Untrusted", f"the gateway may not follow it: {followed.replica.error}")
            left = end - self._loop.time()
            if left <= 0:
                raise Refused(
                    503,
                    "NotYet",
                    f"the rows of {service_id}:{table} have not come yet: its publisher may be starting, or away",
                    headers={"Retry-After": "5"},
                )
            await followed.changed(min(left, 0.5))  # the number of rows on their way is not an event
            await self._check_room()
        await self._check_room()
        if followed.gone:
            raise Refused(503, "TooLarge", followed.gone)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP)
            try:
                self._look_at_memory()
                old = self._loop.time() - (0.0 if self.full else self._limits.linger)
                for key, each in list(self._followed.items()):
                    if not each.users and each.idle_since < old:
                        await self._drop(key, "")
                await self._check_room()
            except Exception:
                _log.exception("a look at the followed tables failed")

    async def _check_room(self) -> None:
        """Give up the tables that make it too much: those that nobody looks at first, then the largest."""
        while self.rows > self._limits.rows:
            key = max(self._followed, key=lambda key: (not self._followed[key].users, self._followed[key].rows))
            rows = self._followed[key].rows
            why = (
                f"{key[0]}:{key[1]} has {rows:,} rows, and the gateway holds at most {self._limits.rows:,} "
                "of all tables that are looked at together"
            )
            _log.warning("followed no more: %s", why)
            await self._drop(key, why)

    async def _drop(self, key: tuple[str, str], why: str) -> None:
        followed = self._followed.pop(key, None)
        if followed is None:
            return
        followed.gone = why or "nobody looked at it"
        followed.wake()
        if followed.replica is not None:
            await asyncio.to_thread(self._bus.unsubscribe, followed.replica)


def memory_of_process() -> int:
    """Return the bytes of memory that the process holds; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except (OSError, ValueError, IndexError):
        return 0
