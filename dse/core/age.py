"""How old a frame is on arrival, without trusting anybody's wall clock.

Rules:

1. A sender stamps a frame with its machine's monotonic clock and that clock's id (the machine's boot).
2. Where sender and receiver share a clock (one machine), the age is the difference: exact.
3. Otherwise the offset between two clocks is learnt: the smallest (arrival - stamp) seen lately is taken as the offset
   plus the shortest possible journey, and a frame's age is what it took beyond that. The first frame from a machine is
   taken as fresh. An estimate is therefore never above the true age: no fresh frame is ever dropped because two clocks
   differ or jump, and a stale one is found as soon as one quick frame came from the same machine (heartbeats do).
4. Offsets are learnt in two windows, so that clocks that drift apart are followed.
5. A stamp is no more to be believed than what it is on. A frame that seems to come from earlier than any before makes
   frames after it seem stale: it teaches that only once who received it has not refused it (`believe`). One that seems
   to come from later does no harm, and teaches at once.
"""

from __future__ import annotations

import struct
import uuid
from pathlib import Path

__all__ = ["CLOCK_ID", "FrameAges"]

_WINDOW = 120.0  # seconds an offset is learnt over before the older half is forgotten
_MAX_CLOCKS = 4096  # machines remembered; more than that on one bus and the oldest are learnt anew


def _clock_id() -> bytes:
    try:
        return uuid.UUID(Path("/proc/sys/kernel/random/boot_id").read_text().strip()).bytes[:8]
    except (OSError, ValueError):
        return uuid.uuid4().bytes[:8]


CLOCK_ID = _clock_id()
"""Names the monotonic clock of this machine since its boot (8 bytes)."""


class FrameAges:
    """Estimates ages of frames on arrival; see the rules above. Not locked: one thread, or one lock, uses it."""

    def __init__(self, clock_id: bytes = CLOCK_ID) -> None:
        self._own = clock_id
        # clock id -> (smallest offset in the last window, smallest in this one, when this window began)
        self._offsets: dict[bytes, tuple[float, float, float]] = {}

    def age(self, now: float, clock_id: bytes, stamp: float) -> float:
        """Return the age in seconds of a frame that was stamped `stamp` by the clock `clock_id` and arrived `now`."""
        if clock_id == self._own:
            return now - stamp
        offset = now - stamp
        known = self._offsets.get(clock_id)
        if known is None or offset < min(known[:2]):
            return 0.0
        self.believe(now, clock_id, stamp)
        return offset - min(self._offsets[clock_id][:2])

    def believe(self, now: float, clock_id: bytes, stamp: float) -> None:
        """Learn from a frame that was stamped `stamp` by the clock `clock_id` and arrived `now`."""
        offset = now - stamp
        last, current, began = self._offsets.get(clock_id, (offset, offset, now))
        if now - began > _WINDOW:
            last, current, began = current, offset, now
        current = min(current, offset)
        if clock_id not in self._offsets and len(self._offsets) >= _MAX_CLOCKS:
            del self._offsets[next(iter(self._offsets))]
        self._offsets[clock_id] = (last, current, began)


STAMP = struct.Struct(">B8sdd")  # 1, clock id, stamp, ttl
