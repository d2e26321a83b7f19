"""One table on its way from the bus of its publisher to the other one.

Rules:

1. The table is followed on its own bus while somebody follows it on the other: from the first subscriber to the last.
2. What the stand-in publishes is, change by change and in order, what the copy of the publisher's table went through.
   Until that copy is complete for the first time the table is pending: who follows it keeps the rows that it had.
3. While the copy is STALE (its publisher, or the way to it, is gone) the stand-in does not publish the table, so that
   its followers are STALE, too. It is published again, with the rows as they are then, when the copy is LIVE. A copy
   that does not become complete again within `PATIENCE` seconds counts as STALE.
4. Each spell of following has a table and a copy of its own (a `_Spell`): what comes late from an earlier one goes
   nowhere.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Protocol

from dse.core.messages import Row
from dse.core.replica import ReplicaState
from dse.core.table import Change, PublishedTable, Replica
from dse.errors import ConfigError, TableError

__all__ = ["Follower", "Lane"]

_log = logging.getLogger("dse.bridge")

PATIENCE = 5.0
"""Seconds that a copy may take to be complete again, until its followers are told that it is not."""


class Follower(Protocol):
    """Who follows tables on the publisher's bus: a service there."""

    def subscribe(
        self,
        service_id: str,
        table: str,
        callback: Callable[[Change], None],
        *,
        on_state: Callable[[ReplicaState], None],
        patient: bool,
    ) -> Replica: ...

    def unsubscribe(self, replica: Replica) -> None: ...


class _Spell:
    """The table as it is published for some time, and the copy that it follows. Its lane's lock protects the fields
    but `rows` and `complete`, which are the follower's callbacks' own: these run one at a time."""

    def __init__(self, service_id: str, name: str, columns: tuple[str, ...]) -> None:
        self.table = PublishedTable(service_id, name, columns, pending=True)
        self.following = False
        self.over = False
        self.replica: Replica | None = None
        self.state = ReplicaState.SYNCING
        self.late_at = math.inf  # when a copy that was complete is to be so again
        self.rows: set[Row] = set()  # of the copy until it is complete
        self.complete = False


class Lane:
    """See the rules at the top of this file.

    show: publishes a table in place of the one before it, or (None) only takes that away. stale: set while the copy
    has no publisher.

    Lock: ``_lock`` protects ``_spell`` and its fields, ``_wanted``, ``_shown``, ``_settling`` and ``_closed``. Showing
    and hiding are done, with the lock released, by whoever finds nobody at it, until what is shown is what is wanted.
    """

    def __init__(
        self,
        service_id: str,
        name: str,
        columns: tuple[str, ...],
        follower: Follower,
        show: Callable[[PublishedTable | None], None],
    ) -> None:
        self.service_id = service_id
        self.name = name
        self.changes = 0
        """Changes that were passed on."""
        self._follower = follower
        self._show = show
        self._lock = threading.Lock()
        self._spell = _Spell(service_id, name, columns)
        self._wanted: PublishedTable | None = self._spell.table
        self._shown: PublishedTable | None = None
        self._settling = False
        self._closed = False
        self.stale = threading.Event()

    def open(self) -> None:
        """Publish the table."""
        self._settle()

    @property
    def following(self) -> bool:
        """Whether somebody on the other bus follows the table."""
        with self._lock:
            return self._spell.following

    def first_subscriber(self) -> None:
        """Somebody on the other bus follows the table."""
        with self._lock:
            spell = self._spell
            if spell.following or self._closed:
                return
            spell.following = True
        self.stale.clear()
        try:
            replica = self._follower.subscribe(
                self.service_id,
                self.name,
                lambda change: self._changed(spell, change),
                on_state=lambda state: self._turned(spell, state),
                patient=True,
            )
        except ConfigError as error:  # the follower has stopped
            _log.debug("%s:%s is not followed: %s", self.service_id, self.name, error)
            return
        with self._lock:
            over = spell.over
            if not over:
                spell.replica = replica
        if over:
            self._follower.unsubscribe(replica)

    def last_unsubscribe(self) -> None:
        """Nobody on the other bus follows the table any more."""
        with self._lock:
            spell = self._spell
        if not spell.table.subscribers:
            self._renew(spell, spell.table.columns)

    def columns_are(self, columns: tuple[str, ...]) -> None:
        """Publishers say that these are the table's columns; the one that is followed knows better."""
        with self._lock:
            spell = self._spell
            replica = spell.replica
        if replica is not None and replica.columns:
            columns = replica.columns
        if columns != spell.table.columns:
            self._renew(spell, columns)

    def look(self) -> None:
        """Do what is due by now."""
        with self._lock:
            if time.monotonic() < self._spell.late_at:
                return
            self._wanted = None
        self._settle()

    def close(self) -> None:
        """Follow the table no more."""
        with self._lock:
            self._closed = True
            replica = self._end(self._spell)
            self._wanted = None
        if replica is not None:
            self._follower.unsubscribe(replica)
        self._settle()

    # What the copy goes through

    def _changed(self, spell: _Spell, change: Change) -> None:
        if spell.over:
            return
        self.changes += 1
        if not spell.complete:
            spell.rows -= change.removed
            spell.rows |= change.added
            return
        try:
            spell.table.apply(change.added, change.removed)
        except TableError as error:
            self._misfit(spell, error)

    def _turned(self, spell: _Spell, state: ReplicaState) -> None:
        if state is ReplicaState.LIVE and not spell.complete and not spell.over:
            try:
                spell.table.replace(spell.rows)
            except TableError as error:
                self._misfit(spell, error)
                return
            spell.rows = set()
            spell.complete = True
        with self._lock:
            if spell.over:
                return
            if state is ReplicaState.SYNCING and spell.state is ReplicaState.LIVE:
                spell.late_at = time.monotonic() + PATIENCE
            elif state is not ReplicaState.SYNCING:
                spell.late_at = math.inf
            spell.state = state
            shown = self._wanted is not None
            if state is ReplicaState.STALE:
                self._wanted = None
            elif state is ReplicaState.LIVE:
                self._wanted = spell.table
        if state is ReplicaState.STALE:
            self.stale.set()
        else:
            self.stale.clear()
        self._settle()
        if state is ReplicaState.LIVE:
            spell.table.apply()  # known now: ends what is pending
            if not shown and not spell.table.subscribers:  # those that were there meanwhile went
                self._renew(spell, spell.table.columns)

    def _misfit(self, spell: _Spell, error: TableError) -> None:
        """The table has other columns now."""
        with self._lock:
            replica = spell.replica
        columns = replica.columns if replica is not None else ()
        if not columns or columns == spell.table.columns:
            _log.error("%s:%s: a change cannot be passed on: %s", self.service_id, self.name, error)
        self._renew(spell, columns or spell.table.columns)

    # Spells

    def _renew(self, spell: _Spell, columns: tuple[str, ...]) -> None:
        """Begin a new spell, whose table nobody knows yet; its subscribers are those of the one before."""
        with self._lock:
            if spell is not self._spell or self._closed:
                return
            replica = self._end(spell)
            self._spell = _Spell(self.service_id, self.name, columns)
            self._wanted = self._spell.table
        if replica is not None:
            self._follower.unsubscribe(replica)
        self._settle()

    def _end(self, spell: _Spell) -> Replica | None:
        """(The lock is held.) Return the copy to give up."""
        spell.over = True
        replica, spell.replica = spell.replica, None
        return replica

    def _settle(self) -> None:
        while True:
            with self._lock:
                if self._settling or self._shown is self._wanted:
                    return
                self._settling = True
                table, spell = self._wanted, self._spell
            self._show(table)
            with self._lock:
                self._settling = False
                self._shown = table
                known = table is spell.table and spell.state is ReplicaState.LIVE and not spell.over
            if known:
                spell.table.apply()  # a table that is published anew is pending
