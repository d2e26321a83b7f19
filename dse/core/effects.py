"""What a state machine asks its runtime to do. Machines return these; the runtime carries them out, in order."""

from __future__ import annotations

from dataclasses import dataclass

from dse.core.messages import Message
from dse.core.transport import Address

__all__ = ["Effect", "Listen", "Send", "Unlisten"]


@dataclass(slots=True)
class Send:
    """Send a message, or the body of one that is encoded already."""

    address: Address
    message: Message | bytes
    ttl: float | None = None


@dataclass(slots=True)
class Listen:
    """Listen on an address, then tell the machine that it is done."""

    address: Address


@dataclass(slots=True)
class Unlisten:
    """Listen on an address no longer."""

    address: Address


Effect = Send | Listen | Unlisten
