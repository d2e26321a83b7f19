"""Every exception that DSE raises, all under `DseError`.

The tree separates *the bus failed* (`TransportError`), *the call failed* (`RpcError`), *the table was misused*
(`TableError`) and *the program or its configuration is wrong* (the rest).
"""

from __future__ import annotations

__all__ = [
    "CallTimeout",
    "ConfigError",
    "DseError",
    "FrameTooLarge",
    "InvalidArguments",
    "InvalidUrl",
    "MissingExtra",
    "NoSuchMethod",
    "NoSuchService",
    "NoSuchTable",
    "NodeIdClash",
    "NodeLost",
    "Overloaded",
    "RemoteError",
    "RowError",
    "RpcError",
    "ServiceExists",
    "StorageError",
    "TableError",
    "TransportError",
    "TransportUnavailable",
    "Unfinished",
    "UnknownTransport",
    "Untrusted",
]


class DseError(Exception):
    """Base of every error that DSE raises."""


class TransportError(DseError):
    """The bus, or the way to it, failed."""


class TransportUnavailable(TransportError):
    """The broker cannot be reached now, or the transport is not open.

    `url` is the transport's URL without its password; `cause` what the client library said.
    """

    def __init__(self, message: str, *, url: str | None = None, cause: BaseException | None = None) -> None:
        super().__init__(message)
        self.url = url
        self.cause = cause


class FrameTooLarge(TransportError):
    """A frame is longer than the driver carries; nothing was sent.

    `size` and `limit` are in bytes.
    """

    def __init__(self, message: str, *, size: int = 0, limit: int = 0) -> None:
        super().__init__(message)
        self.size = size
        self.limit = limit


class UnknownTransport(TransportError):
    """No driver of that name is installed; the message lists those that are."""


class Unfinished(TransportError, NotImplementedError):
    """A driver that is being written lacks what this needs.

    `guarantee` is the number of the guarantee in ``docs/transports.md``, `place` the function to write.
    """

    def __init__(self, message: str, *, guarantee: int = 0, place: str = "") -> None:
        super().__init__(message)
        self.guarantee = guarantee
        self.place = place


class InvalidUrl(TransportError, ValueError):
    """A transport URL has a part or an option that its driver does not know or cannot use."""


class MissingExtra(TransportError, ImportError):
    """A driver or service family is known, but the packages it needs are not installed.

    `extra` is what to install: ``pip install 'dse[<extra>]'``.
    """

    def __init__(self, message: str, *, extra: str = "") -> None:
        super().__init__(message)
        self.extra = extra


class RpcError(DseError):
    """A call did not return a result."""


class CallTimeout(RpcError, TimeoutError):
    """No answer came within the timeout; the message says how far the call got."""


class NoSuchService(RpcError):
    """No node on the bus offers the service (or the node that was named does not)."""


class NoSuchMethod(RpcError):
    """The service has no RPC method of that name; the message lists those it has."""


class InvalidArguments(RpcError, TypeError):
    """The arguments do not fit the method's signature; it was not run."""


class NodeLost(RpcError):
    """The node that was to answer died, left, or was replaced before it answered.

    Whether the method ran there is unknown.
    """


class Overloaded(RpcError):
    """The node has as many requests waiting as it accepts; the method was not run."""


class RemoteError(RpcError):
    """The method raised on the other side.

    `type_name` is the remote exception's qualified name, `message` its text and `traceback` its formatted traceback.
    All three are text from the peer and are never used to import or run anything.
    """

    def __init__(self, type_name: str, message: str, traceback: str = "") -> None:
        super().__init__(type_name, message, traceback)
        self.type_name = type_name
        self.message = message
        self.traceback = traceback

    def __str__(self) -> str:
        return f"{self.type_name}: {self.message}" if self.message else self.type_name


class TableError(DseError):
    """A table was misused."""


class NoSuchTable(TableError):
    """The service publishes no table of that name; the message lists those it does."""


class RowError(TableError, ValueError):
    """A row does not fit its table; nothing was published.

    `row` is the row as given, `column` the name of the column at fault (None when the row as a whole does not fit).
    """

    def __init__(self, message: str, *, row: object = None, column: str | None = None) -> None:
        super().__init__(message)
        self.row = row
        self.column = column


class ServiceExists(DseError):
    """The node already hosts a service of that id."""


class NodeIdClash(DseError):
    """An older live node on the bus has this node's id; this node has stopped.

    `instance` is the other node's.
    """

    def __init__(self, message: str, *, instance: str = "") -> None:
        super().__init__(message)
        self.instance = instance


class ConfigError(DseError, ValueError):
    """A name, option or definition is not usable.

    `key` is where in the options of a service the culprit stands, as in ``("tables", "machines", "path")``; () if the
    message says it all.
    """

    def __init__(self, message: str, *, key: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.key = key


class StorageError(DseError):
    """A file in which a service keeps what it knows cannot be used: damaged, in use, full; the message names it.

    What was to be written is not, and was not published.
    """


class Untrusted(DseError):
    """Permissions do not allow this: those of the peer that was asked, or this node's own; it was not done."""
