"""What a node takes from peers, in numbers: whatever is beyond is refused, counted and costs nothing more.

`docs/limits.md` says what each is for. They bound what one frame, one peer and all peers together can make a node keep
or do; none of them is reached by a bus that works as intended.
"""

from __future__ import annotations

__all__ = [
    "ALIKE",
    "CATALOGUE",
    "CATALOGUES",
    "CHANGE",
    "CHANGES",
    "COLUMNS",
    "CONTROL_JOBS",
    "COROUTINES",
    "DEPTH",
    "INSTANCES",
    "LEAST_INTERVAL",
    "LONGEST_INTERVAL",
    "LONGEST_TIMEOUT",
    "MESSAGE",
    "METHODS",
    "NAME",
    "PEERS",
    "REPLICAS",
    "REQUESTS",
    "ROWS",
    "SERVICES",
    "SHORT",
    "SUBSCRIBERS",
    "TRACE",
    "WAITING_BYTES",
    "WAITING_ROWS",
]

# One frame

SHORT = 1 << 14
"""Bytes of a frame that is decoded without a look at it first: whatever it holds takes some milliseconds at most."""

MESSAGE = 1 << 16
"""Bytes of a frame of any message that has no limit of its own below; calls and answers have the driver's."""

CHANGE = 4 << 20
"""Bytes of an encoded change, of the changes of a catch-up, of a chunk of a snapshot, and of a renewal."""

CATALOGUE = 1 << 20
"""Bytes of a catalogue."""

NAME = 1000
"""Characters of a name."""

SERVICES = 5_000
"""Services of a node."""

METHODS = 5_000
"""Methods of a service, or of a node; tables of a service; subscriptions of a service."""

COLUMNS = 1_000
"""Columns of a table."""

CHANGES = 1_000
"""Changes that come in one frame because they were published fast."""

REPLICAS = 20_000
"""Tables that one node follows."""

TRACE = 64
"""Entries of a call's trace."""

DEPTH = 32
"""How deep the lists and maps of an argument or a result are nested where it is longer than `SHORT`."""

ALIKE = 32
"""Rows, or keys of a map, with one hash: Python's sets and dicts take quadratic time for them."""

# One peer, and all of them

PEERS = 20_000
"""Lives of other nodes that a node knows, those that ended lately included."""

INSTANCES = 16
"""Lives of one node_id among them."""

CATALOGUES = 64 << 20
"""Bytes of all peers' catalogues together."""

LEAST_INTERVAL, LONGEST_INTERVAL = 0.01, 3600.0
"""Seconds between heartbeats that a peer may promise; what is beyond counts as these."""

CONTROL_JOBS = 10_000
"""Answers to the control bus that wait for the broker; beyond, none is given: peers ask again."""

# Calls

LONGEST_TIMEOUT = 7 * 86_400.0
"""Seconds that a request may wait; a longer timeout counts as this."""

REQUESTS = 256 << 20
"""Bytes of the arguments of requests that wait for a worker."""

COROUTINES = 10
"""How many times `max_pending` calls of ``async def`` methods may be under way; half of them for one node."""

# Tables

ROWS = 10_000_000
"""Rows of a table."""

SUBSCRIBERS = 10_000
"""Nodes that subscribe to one table."""

WAITING_BYTES = 64 << 20
"""Bytes, about, of changes that wait in a replica while it is brought up to date."""

WAITING_ROWS = 200_000
"""Rows of the changes that wait for a slow callback, beyond which they are merged."""
