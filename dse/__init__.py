"""DSE: data services that share one message bus.

A service publishes tables, subscribes to the tables of others and offers RPC methods; which message bus carries them is
a URL. Start with `Node` and `DataService`.

PYTEST_DONT_REWRITE: or pytest, of which `dse_pytest` is a plugin, would warn where `dse` was imported before it ran.
"""

from dse.core.controlbus import ControlBus
from dse.core.info import BusStatus, DataServiceInfo, MethodInfo, NodeStatus
from dse.core.membership import NodeState
from dse.core.methods import CallContext, call_context, every, on_change, rpc
from dse.core.node import Node, Proxy
from dse.core.observer import Observer
from dse.core.permissions import Permission
from dse.core.replica import ReplicaState
from dse.core.rpc import Outcome, register_error
from dse.core.service import DataService
from dse.core.table import Change, PublishedTable, Replica, Table
from dse.core.transport import (
    Address,
    Capabilities,
    ConnectionState,
    Delivery,
    Transport,
    TransportEvents,
    TransportUrl,
)
from dse.errors import (
    CallTimeout,
    ConfigError,
    DseError,
    FrameTooLarge,
    InvalidArguments,
    InvalidUrl,
    MissingExtra,
    NodeIdClash,
    NodeLost,
    NoSuchMethod,
    NoSuchService,
    NoSuchTable,
    Overloaded,
    RemoteError,
    RowError,
    RpcError,
    ServiceExists,
    TableError,
    TransportError,
    TransportUnavailable,
    UnknownTransport,
    Untrusted,
)

__version__ = "0.1.0"

__all__ = [
    "Address",
    "BusStatus",
    "CallContext",
    "CallTimeout",
    "Capabilities",
    "Change",
    "ConfigError",
    "ConnectionState",
    "ControlBus",
    "DataService",
    "DataServiceInfo",
    "Delivery",
    "DseError",
    "FrameTooLarge",
    "InvalidArguments",
    "InvalidUrl",
    "MethodInfo",
    "MissingExtra",
    "NoSuchMethod",
    "NoSuchService",
    "NoSuchTable",
    "Node",
    "NodeIdClash",
    "NodeLost",
    "NodeState",
    "NodeStatus",
    "Observer",
    "Outcome",
    "Overloaded",
    "Permission",
    "Proxy",
    "PublishedTable",
    "RemoteError",
    "Replica",
    "ReplicaState",
    "RowError",
    "RpcError",
    "ServiceExists",
    "Table",
    "TableError",
    "Transport",
    "TransportError",
    "TransportEvents",
    "TransportUnavailable",
    "TransportUrl",
    "UnknownTransport",
    "Untrusted",
    "call_context",
    "every",
    "on_change",
    "register_error",
    "rpc",
]
