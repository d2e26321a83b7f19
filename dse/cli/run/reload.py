"""What a changed run file changes: the difference between what runs and what shall run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dse.cli.run.file import NodeOptions
from dse.cli.run.services import ServiceSpec

__all__ = ["Changes", "find_changes"]


@dataclass(frozen=True)
class Changes:
    """What to do.

    node: the options that the node must be restarted for. permissions: whether others are to apply, for which it need
    not. The others are ids of services.
    """

    node: tuple[str, ...] = ()
    permissions: bool = False
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    added: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.node or self.permissions or self.removed or self.changed or self.added)


def find_changes(
    running: Mapping[str, ServiceSpec], node: NodeOptions, wanted: Mapping[str, ServiceSpec], wanted_node: NodeOptions
) -> Changes:
    """Return what leads from the services and node that run to those that are wanted."""
    options = node.changes(wanted_node)
    return Changes(
        node=tuple(each for each in options if each != "permissions"),
        permissions="permissions" in options,
        removed=tuple(each for each in running if each not in wanted),
        changed=tuple(each for each in wanted if each in running and running[each] != wanted[each]),
        added=tuple(each for each in wanted if each not in running),
    )
