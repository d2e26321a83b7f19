"""Who sent a message, as far as its seal proves it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Sender"]


@dataclass(frozen=True, slots=True)
class Sender:
    """The sender of a sealed frame: whoever has the key with `key_id`, as the node `node_id` in its life `instance`.

    Handlers get None instead on a bus without keys, where nothing is proved.
    """

    key_id: str
    node_id: str
    instance: str
