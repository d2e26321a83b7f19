"""What nodes and services say about themselves: the public, immutable descriptions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dse.core.membership import NodeState
from dse.errors import ConfigError

__all__ = ["BusStatus", "DataServiceInfo", "MethodInfo", "NodeStatus", "identifier"]


def identifier(kind: str, name: object) -> str:
    """Return a name that is an identifier; raise `ConfigError` for any other."""
    if not isinstance(name, str):
        raise ConfigError(f"a {kind} is text, not {type(name).__name__}")
    if not name.isidentifier() or len(name) > 200:
        shown = ascii(name[:60]) + ("…" if len(name) > 60 else "")
        raise ConfigError(f"a {kind} is an identifier (letters, digits and _, at most 200), not {shown}")
    return name


@dataclass(frozen=True, slots=True)
class MethodInfo:
    """An RPC method: its signature and documentation as text, and whether a caller may repeat it."""

    signature: str
    doc: str = ""
    idempotent: bool = False


STAND_IN = "stand_in"
"""The key by which a catalogue says, beside the fields of a `DataServiceInfo`, that a service stands in for one on
another bus: its value is the instance of a node there that offers it."""

_FIELDS = ("service_id", "node_id", "published_tables", "subscribed_tables", "rpc_methods")


@dataclass(frozen=True, slots=True)
class DataServiceInfo:
    """What one service on one node offers.

    published_tables: table name -> column names. subscribed_tables: (service_id, table) pairs. rpc_methods: method name
    -> `MethodInfo`.
    """

    service_id: str
    node_id: str
    published_tables: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    subscribed_tables: tuple[tuple[str, str], ...] = ()
    rpc_methods: Mapping[str, MethodInfo] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists and dicts that `from_dict` reads."""
        return {
            "service_id": self.service_id,
            "node_id": self.node_id,
            "published_tables": {name: list(columns) for name, columns in self.published_tables.items()},
            "subscribed_tables": [list(pair) for pair in self.subscribed_tables],
            "rpc_methods": {
                name: {"signature": m.signature, "doc": m.doc, "idempotent": m.idempotent}
                for name, m in self.rpc_methods.items()
            },
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DataServiceInfo:
        """Read what `to_dict` wrote; raise `ConfigError` that names missing, unknown and unusable keys."""
        if not isinstance(data, Mapping):
            raise ConfigError(f"DataServiceInfo: a mapping is needed, not {type(data).__name__}")
        _check_keys("DataServiceInfo", data, _FIELDS, _FIELDS)
        try:
            methods = {}
            for name, method in data["rpc_methods"].items():
                _check_keys(f"DataServiceInfo: rpc_methods[{name!r}]", method, ("signature", "doc", "idempotent"), ())
                methods[_name(name)] = _method(f"DataServiceInfo: rpc_methods[{name!r}]", method)
            return cls(
                service_id=_text(data, "service_id"),
                node_id=_text(data, "node_id"),
                published_tables={_name(k): _columns(k, v) for k, v in data["published_tables"].items()},
                subscribed_tables=tuple((_name(s), _name(t)) for s, t in data["subscribed_tables"]),
                rpc_methods=methods,
            )
        except (TypeError, ValueError, AttributeError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"DataServiceInfo: {error}") from None


def _name(name: object) -> str:
    if not isinstance(name, str):
        raise ConfigError(f"DataServiceInfo: a name is text, not {type(name).__name__}")
    return name


def _columns(table: object, columns: object) -> tuple[str, ...]:
    if not isinstance(columns, list | tuple):
        raise ConfigError(f"DataServiceInfo: published_tables[{table!r}] is a list of columns")
    return tuple(map(_name, columns))


def _method(what: str, method: Mapping[str, Any]) -> MethodInfo:
    info = MethodInfo(**method)
    for key, kind in (("signature", str), ("doc", str), ("idempotent", bool)):
        if not isinstance(getattr(info, key), kind):
            raise ConfigError(f"{what}: {key} is {'text' if kind is str else 'true or false'}")
    return info


def _check_keys(what: str, data: Mapping[str, Any], known: tuple[str, ...], needed: tuple[str, ...]) -> None:
    missing = [key for key in needed if key not in data]
    unknown = sorted(str(key) for key in data if key not in known)
    if missing or unknown:
        parts = []
        if missing:
            parts.append(f"missing: {', '.join(missing)}")
        if unknown:
            parts.append(f"unknown: {', '.join(unknown)}")
        raise ConfigError(f"{what}: {'; '.join(parts)}")


def _text(data: Mapping[str, Any], key: str) -> str:
    if not isinstance(data[key], str):
        raise ConfigError(f"DataServiceInfo: {key} is text, not {type(data[key]).__name__}")
    return str(data[key])


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """One node as seen from here. `last_heard` is seconds ago (0.0 for the node itself).

    stand_ins: the ids of those of its services that stand in for a service on another bus, as a bridge's do.
    """

    node_id: str
    instance: str
    state: NodeState
    last_heard: float
    services: tuple[DataServiceInfo, ...] = ()
    stand_ins: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class BusStatus:
    """A node and the peers it knows, those that left or died lately included.

    transport: the URL without its password. node: the one that was asked; an observer, which is not on the bus, says
    LEFT of itself. peers: by node_id. counters: what was counted since the node was made
    (`bad_frames`, `foreign_frames`, `undeliverable`, `denied_calls`, ...). untrusted: the tables that this node wants
    to follow and may not, as ``service.table``, and what their publisher said.
    """

    bus: str
    transport: str
    connected: bool
    node: NodeStatus
    peers: Mapping[str, NodeStatus]
    counters: Mapping[str, int]
    untrusted: Mapping[str, str] = field(default_factory=dict)

    @property
    def nodes(self) -> dict[str, NodeStatus]:
        """The node itself, unless it only observes, and its peers, by node_id."""
        own = {} if self.node.state is NodeState.LEFT else {self.node.node_id: self.node}
        return {**own, **self.peers}
