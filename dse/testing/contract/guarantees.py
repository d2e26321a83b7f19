"""The guarantees by name: those of every driver, by number, and those of a whole bus on a driver.

`Contract.guarantee` of a class names the one that it proves: a number, or a name of level 2.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["GUARANTEES", "Guarantee", "find_guarantee"]


@dataclass(frozen=True)
class Guarantee:
    """What the contract proves.

    name: stable, for programs. number: that of docs/transports.md; None on level 2. title: for people.
    """

    name: str
    title: str
    number: int | None = None

    def __str__(self) -> str:
        return self.title if self.number is None else f"{self.number} {self.title}"


GUARANTEES = (
    # Level 1, frames
    Guarantee("ready", "Ready on return", 1),
    Guarantee("delivery", "Delivery", 2),
    Guarantee("order", "Order", 3),
    Guarantee("at-most-once", "At most once", 4),
    Guarantee("undeliverable", "Undeliverable", 5),
    Guarantee("ttl", "TTL", 6),
    Guarantee("isolation", "Isolation", 7),
    Guarantee("size", "Size", 8),
    Guarantee("threads", "Threads", 9),
    Guarantee("outage", "Outage", 10),
    Guarantee("clean", "Clean", 11),
    Guarantee("fork-and-reopen", "Fork and reopen", 12),
    # Level 2, a bus
    Guarantee("control-bus", "Bus: who is there"),
    Guarantee("observer", "Bus: observers"),
    Guarantee("calls", "Bus: calls"),
    Guarantee("load", "Bus: calls under load"),
    Guarantee("lost-callee", "Bus: lost callees"),
    Guarantee("table-changes", "Bus: changes of tables"),
    Guarantee("replicas", "Bus: replicas"),
    Guarantee("bus-outage", "Bus: outage"),
    Guarantee("bus-clean", "Bus: clean"),
)
"""All of them, in the order of a report."""


def find_guarantee(which: int | str) -> Guarantee:
    """Return the guarantee with a number or a name; raises `LookupError`."""
    for guarantee in GUARANTEES:
        if which in (guarantee.name, guarantee.number):
            return guarantee
    raise LookupError(f"there is no guarantee {which!r}")
