"""RPC methods: the decorators, signatures turned into decoders, and checked invocation."""

from __future__ import annotations

import contextvars
import inspect
import typing
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, overload

import msgspec

from dse.core import limits
from dse.core.info import MethodInfo, identifier
from dse.core.inline import Briefness
from dse.core.messages import Request
from dse.core.untrusted import check_value
from dse.errors import ConfigError, InvalidArguments

__all__ = [
    "CallContext",
    "Method",
    "call_context",
    "current_request",
    "encode_args",
    "endpoint_methods",
    "every",
    "on_change",
    "rpc",
    "set_current_request",
]

F = TypeVar("F", bound=Callable[..., Any])


@overload
def rpc(function: F) -> F: ...
@overload
def rpc(*, idempotent: bool = False) -> Callable[[F], F]: ...
def rpc(function: F | None = None, *, idempotent: bool = False) -> F | Callable[[F], F]:
    """Offer a method of a service to the bus; its annotations are checked on every call.

    idempotent: running it twice is as good as once, so a caller may repeat it after a lost node or an outage.
    """

    def mark(function: F) -> F:
        identifier("RPC method's name", function.__name__)
        function.__dse_rpc__ = idempotent  # type: ignore[attr-defined]
        return function

    return mark(function) if function is not None else mark


def every(seconds: float) -> Callable[[F], F]:
    """Run a method every so many seconds while its service runs, first at once; it never overlaps itself."""
    if not seconds > 0 or seconds == float("inf"):
        raise ConfigError(f"every() takes a positive number of seconds, not {seconds!r}")

    def mark(function: F) -> F:
        function.__dse_every__ = float(seconds)  # type: ignore[attr-defined]
        return function

    return mark


def on_change(service_id: str, table: str) -> Callable[[F], F]:
    """Subscribe to a table while the service runs, and call the method with each `Change`."""
    identifier("service_id", service_id)
    identifier("table name", table)

    def mark(function: F) -> F:
        subscriptions = getattr(function, "__dse_on_change__", ())
        function.__dse_on_change__ = (*subscriptions, (service_id, table))  # type: ignore[attr-defined]
        return function

    return mark


@dataclass(frozen=True, slots=True)
class CallContext:
    """Who called the running method: the caller's node, its instance, the trace it passed on."""

    node_id: str
    instance: str
    trace: Mapping[str, str] = field(default_factory=dict)


_request: contextvars.ContextVar[Request | None] = contextvars.ContextVar("dse_request", default=None)

current_request = _request.get
"""Returns the request that runs in this thread or task, or None; the runtime's own."""

set_current_request = _request.set
"""Sets what `current_request` returns; the runtime's own."""


def call_context() -> CallContext | None:
    """Return the context of the RPC that runs in this thread or task, or None outside of one."""
    request = _request.get()
    return CallContext(request.node_id, request.instance, request.trace or {}) if request is not None else None


_Shape = tuple[msgspec.msgpack.Decoder[Any], bool, MethodInfo, Briefness]
_shapes: weakref.WeakKeyDictionary[Callable[..., Any], _Shape] = weakref.WeakKeyDictionary()


class Method:
    """One RPC method of one object: checks arguments against the signature, then runs it."""

    def __init__(self, owner: str, function: Callable[..., Any]) -> None:
        self.name = function.__name__
        self.owner = owner
        self.function = function
        self.is_async = inspect.iscoroutinefunction(function)
        # One class may have many instances: what its methods are is found out once.
        shape = _shapes.get(getattr(function, "__func__", function))
        if shape is None:
            signature = inspect.signature(function)
            info = MethodInfo(
                signature=_shown(signature),
                doc=inspect.getdoc(function) or "",
                idempotent=bool(getattr(function, "__dse_rpc__", False)),
            )
            defaults = any(each.default is not each.empty for each in signature.parameters.values())
            shape = (self._make_decoder(signature), defaults, info, Briefness())
            _shapes[getattr(function, "__func__", function)] = shape
        self._decoder, self._defaults, self.info, self.briefness = shape

    def takes_broadcast(self, request: Request) -> bool:
        """Whether a request that all replicas of the service have is run here. Called by threads that receive."""
        return True

    def bind(self, args: msgspec.Raw) -> dict[str, Any]:
        """Decode and check encoded arguments; raise `InvalidArguments` that says which does not fit."""
        try:
            if len(memoryview(args)) > _SHORT:
                check_value(args)
            values: dict[str, Any] = msgspec.structs.asdict(self._decoder.decode(args))
        except (msgspec.DecodeError, ValueError, TypeError, RecursionError) as error:
            raise InvalidArguments(f"{self.owner}.{self.name}{self.info.signature}: {_plain(str(error))}") from None
        if self._defaults:
            return {name: value for name, value in values.items() if value is not msgspec.UNSET}
        return values

    def _make_decoder(self, signature: inspect.Signature) -> msgspec.msgpack.Decoder[Any]:
        where = f"{self.owner}.{self.name}"
        try:
            hints = typing.get_type_hints(self.function, include_extras=True)
        except Exception as error:
            raise ConfigError(f"{where}: its annotations cannot be read: {error}") from error
        fields: list[Any] = []
        for name, parameter in signature.parameters.items():
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise ConfigError(f"{where}: parameter {name!r}: RPC arguments go by name; no *args, **kwargs or /")
            kind = hints.get(name, Any)
            if parameter.default is parameter.empty:
                fields.append((name, kind))
            else:
                # The default stays Python's own: it need not be something that can be sent.
                fields.append((name, kind | msgspec.UnsetType if kind is not Any else Any, msgspec.UNSET))
        try:
            struct = msgspec.defstruct("Arguments", fields, kw_only=True, forbid_unknown_fields=True)
            return msgspec.msgpack.Decoder(struct)
        except TypeError as error:
            raise ConfigError(f"{where}: an annotation cannot be checked: {error}") from error


class _Verbatim:
    """An annotation that is text already (``from __future__ import annotations``): shown without quotes."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def _shown(signature: inspect.Signature) -> str:
    def verbatim(annotation: Any) -> Any:
        return _Verbatim(annotation) if isinstance(annotation, str) else annotation

    parameters = [each.replace(annotation=verbatim(each.annotation)) for each in signature.parameters.values()]
    returns = verbatim(signature.return_annotation)
    return str(signature.replace(parameters=parameters, return_annotation=returns))


def _plain(message: str) -> str:
    """Say msgspec's messages in terms of arguments."""
    return (
        message.replace("Object missing required field", "missing argument")
        .replace("Object contains unknown field", "unknown argument")
        .replace(" - at `$.", " - for argument `")
    )


def encode_args(what: str, args: Mapping[str, Any] | None) -> msgspec.Raw:
    """Encode a call's arguments; raise `InvalidArguments` naming the one that cannot be sent."""
    if args is None:
        return _NO_ARGS
    if not isinstance(args, Mapping):
        raise InvalidArguments(f"{what}: arguments are a mapping of names to values, not {type(args).__name__}")
    try:
        for name in args:
            if type(name) is not str:
                raise InvalidArguments(f"{what}: the names of arguments are text")
        return msgspec.Raw(_encode(args if type(args) is dict else dict(args)))
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        if isinstance(error, InvalidArguments):
            raise
        for name, value in args.items():
            try:
                _encode(value)
            except Exception as reason:
                raise InvalidArguments(f"{what}: argument {name!r} cannot be sent: {reason}") from None
        raise InvalidArguments(f"{what}: the arguments cannot be sent: {error}") from None


_encode = msgspec.msgpack.Encoder().encode
_SHORT = limits.SHORT
_NO_ARGS = msgspec.Raw(_encode({}))


def endpoint_methods(endpoints: tuple[object, ...] | list[object]) -> dict[str, Method]:
    """Return the public methods of a node's endpoints, by name; raise `ConfigError` when two have the same."""
    methods: dict[str, Method] = {}
    for endpoint in endpoints:
        for name in dir(endpoint):
            if name.startswith("_") or not inspect.isroutine(getattr(type(endpoint), name, None)):
                continue
            if name in methods:
                raise ConfigError(f"two node_endpoints have a method {name!r}")
            methods[name] = Method(type(endpoint).__name__, getattr(endpoint, name))
    return methods
