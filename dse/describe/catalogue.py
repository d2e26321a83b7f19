"""What a bus offers, put together from the catalogues of its nodes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dse.core.info import DataServiceInfo
from dse.core.observer import Observer
from dse.describe.signatures import Signature
from dse.errors import ConfigError, NoSuchService

__all__ = ["BusDescription", "MethodDescription", "ServiceDescription", "TableDescription", "describe"]


@dataclass(frozen=True, slots=True)
class MethodDescription:
    """An RPC method. `signature` is its text; `parsed` None where that is no Python (a default that has no literal)."""

    name: str
    signature: str
    doc: str
    idempotent: bool
    parsed: Signature | None


@dataclass(frozen=True, slots=True)
class TableDescription:
    """A published table: its columns, and the types that each was found to hold (none: nothing is known)."""

    name: str
    columns: tuple[str, ...]
    types: tuple[frozenset[str], ...]


@dataclass(frozen=True, slots=True)
class ServiceDescription:
    """A service and where it runs. `differences` says in words in what its replicas differ."""

    service_id: str
    nodes: tuple[str, ...]
    tables: tuple[TableDescription, ...]
    methods: tuple[MethodDescription, ...]
    follows: tuple[tuple[str, str], ...]
    differences: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BusDescription:
    """A bus. `transport` is its URL without the password."""

    bus: str
    transport: str
    services: tuple[ServiceDescription, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain lists and dicts."""
        return {
            "bus": self.bus,
            "transport": self.transport,
            "services": {service.service_id: _service_dict(service) for service in self.services},
        }


def describe(observer: Observer, services: Collection[str] = (), *, timeout: float = 1.0) -> BusDescription:
    """Describe the services that the observer sees, or those that are named.

    timeout: seconds that the nodes have to tell the types of their columns. Raises `NoSuchService` for one that is
    named and not there, with those that are.
    """
    status = observer.status()
    infos = [info for node in status.peers.values() for info in node.services]
    known = {info.service_id for info in infos}
    for service_id in services:
        if service_id not in known:
            there = ", ".join(sorted(known)) or "none"
            raise NoSuchService(f"no service {service_id!r} on the bus {status.bus!r}; there are: {there}")
    types = observer.column_types(timeout)
    found = [
        _service(service_id, [info for info in infos if info.service_id == service_id], types)
        for service_id in sorted(set(services) or known)
    ]
    return BusDescription(status.bus, status.transport, tuple(found))


def _service(
    service_id: str, infos: list[DataServiceInfo], types: Mapping[tuple[str, str], list[set[str]]]
) -> ServiceDescription:
    infos = sorted(infos, key=lambda info: info.node_id)
    tables: dict[str, TableDescription] = {}
    methods: dict[str, MethodDescription] = {}
    differences: list[str] = []
    for info in infos:
        for name, columns in info.published_tables.items():
            table = TableDescription(name, columns, _column_types(columns, types.get((service_id, name), ())))
            if tables.setdefault(name, table).columns != columns:
                differences.append(f"table {name}: other columns on {info.node_id}: {', '.join(columns)}")
        for name, said in info.rpc_methods.items():
            method = MethodDescription(name, said.signature, said.doc, said.idempotent, _parsed(said.signature))
            if methods.setdefault(name, method).signature != said.signature:
                differences.append(f"method {name}: on {info.node_id} it is {name}{said.signature}")
    for info in infos:
        differences += _missing("table", tables, info.published_tables, info.node_id)
        differences += _missing("method", methods, info.rpc_methods, info.node_id)
    return ServiceDescription(
        service_id,
        tuple(info.node_id for info in infos),
        tuple(tables[name] for name in sorted(tables)),
        tuple(methods[name] for name in sorted(methods)),
        tuple(sorted({pair for info in infos for pair in info.subscribed_tables})),
        tuple(differences),
    )


def _column_types(columns: tuple[str, ...], found: Iterable[set[str]]) -> tuple[frozenset[str], ...]:
    types = [frozenset(each) for each in found]
    return tuple(types) if len(types) == len(columns) else (frozenset(),) * len(columns)


def _parsed(signature: str) -> Signature | None:
    try:
        return Signature.parse(signature)
    except ConfigError:
        return None


def _missing(kind: str, all_of_them: Iterable[str], here: Collection[str], node_id: str) -> list[str]:
    return [f"{kind} {name}: not on {node_id}" for name in sorted(all_of_them) if name not in here]


def _service_dict(service: ServiceDescription) -> dict[str, Any]:
    return {
        "nodes": list(service.nodes),
        "tables": {
            table.name: {column: sorted(types) for column, types in zip(table.columns, table.types, strict=True)}
            for table in service.tables
        },
        "methods": {
            method.name: {
                "signature": method.signature,
                "arguments": [
                    {"name": each.name, "type": each.annotation, "default": each.default, "required": each.required}
                    for each in (method.parsed.parameters if method.parsed is not None else ())
                ],
                "returns": method.parsed.returns if method.parsed is not None else None,
                "doc": method.doc,
                "idempotent": method.idempotent,
            }
            for method in service.methods
        },
        "follows": [f"{service_id}:{table}" for service_id, table in service.follows],
        "differences": list(service.differences),
    }
