"""How often something may be done: some times at once, then so many times a second. Plain state, no clock, no lock."""

from __future__ import annotations

__all__ = ["Pace"]


class Pace:
    """A token bucket. burst: how often at once; rate: how often a second then."""

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, burst: float, rate: float) -> None:
        self._burst = self._tokens = burst
        self._rate = rate
        self._at = 0.0

    def take(self, now: float, count: float = 1.0) -> bool:
        """Whether it may be done now (so many times); then it has been."""
        self._tokens = min(self._burst, self._tokens + max(0.0, now - self._at) * self._rate)
        self._at = now
        # Sums round: who comes back at `next_at` is not sent away for the last digit.
        if self._tokens + 1e-6 < count:
            return False
        self._tokens -= count
        return True

    def next_at(self) -> float:
        """When it may be done next, as far as can be told."""
        return self._at + max(0.0, 1.0 - self._tokens) / self._rate
