"""What a client module that `dse describe --client` wrote stands on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

import msgspec

from dse.core.info import DataServiceInfo
from dse.core.node import Node
from dse.describe.signatures import Parameter, Signature
from dse.errors import ConfigError, RpcError

__all__ = ["UNSET", "ServiceClient"]


class _Unset:
    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final[Any] = _Unset()
"""Stands for an argument that was not given: the service's own default holds."""


class ServiceClient:
    """Base of the clients that `dse describe --client` writes: typed calls of one service.

    Making one waits for the service and compares what it was written for with what the bus offers now, so that a
    program with an outdated client stops where it starts. What has been added since does no harm.

    node: a started `Node` or `Observer`. timeout: seconds for each call. wait: seconds for the service to be there.
    Raises `TimeoutError` when the service does not come, `ConfigError` that lists the differences. Calls raise what
    `Node.call` raises, and `RpcError` for a result that is not of the annotated type.
    """

    _dse_service: ClassVar[str]
    _dse_methods: ClassVar[Mapping[str, str]]
    _dse_tables: ClassVar[Mapping[str, tuple[str, ...]]]

    def __init__(self, node: Node, *, timeout: float = 10.0, wait: float = 10.0) -> None:
        self._dse_node = node
        self._dse_timeout = timeout
        node.wait_for(self._dse_service, wait)
        offered = [
            info
            for each in node.status().nodes.values()
            for info in each.services
            if info.service_id == self._dse_service
        ]
        problems = [problem for info in offered for problem in self._dse_differences(info)]
        if problems:
            raise ConfigError(
                f"{type(self).__module__}.{type(self).__qualname__} was written for another "
                f"{self._dse_service!r} than the one on the bus {node.bus!r}: {'; '.join(dict.fromkeys(problems))}. "
                f"Write it again: dse describe --client {self._dse_service}"
            )

    def __repr__(self) -> str:
        return f"<{type(self).__name__}, client of {self._dse_service!r}>"

    def _dse_differences(self, info: DataServiceInfo) -> list[str]:
        problems = []
        for name, signature in self._dse_methods.items():
            method = info.rpc_methods.get(name)
            if method is None:
                problems.append(f"there is no method {name} on {info.node_id}")
            elif method.signature != signature:
                problems += [f"method {name}: {what}" for what in _differences(signature, method.signature)]
        for name, columns in self._dse_tables.items():
            offered = info.published_tables.get(name)
            if offered is None:
                problems.append(f"there is no table {name} on {info.node_id}")
            elif offered != columns:
                problems.append(f"table {name} has the columns {', '.join(offered)}, not {', '.join(columns)}")
        return problems

    def _dse_call(self, method: str, arguments: dict[str, Any], returns: Any) -> Any:
        result = self._dse_node.call(self._dse_service, method, _given(arguments), timeout=self._dse_timeout)
        return self._dse_result(method, result, returns)

    async def _dse_acall(self, method: str, arguments: dict[str, Any], returns: Any) -> Any:
        result = await self._dse_node.acall(self._dse_service, method, _given(arguments), timeout=self._dse_timeout)
        return self._dse_result(method, result, returns)

    def _dse_result(self, method: str, result: Any, returns: Any) -> Any:
        """Make of a result what its annotation says: a tuple travels as a list, a date as text."""
        if returns is Any:
            return result
        try:
            return msgspec.convert(result, returns)
        except msgspec.ValidationError as error:
            raise RpcError(
                f"{self._dse_service}.{method} returned what its annotation does not allow: {error}"
            ) from None


def _given(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not UNSET}


def _differences(written_for: str, offered: str) -> list[str]:
    """Say which calls, made for one signature, would not fit the other."""
    try:
        before, now = Signature.parse(written_for), Signature.parse(offered)
    except ConfigError:
        return [f"it is {offered} now, and was {written_for}"]
    old, new = _by_name(before), _by_name(now)
    problems = [f"the argument {name} is gone" for name in old if name not in new]
    problems += [f"the argument {each.name} is new, and must be given" for each in new.values() if _demanded(each, old)]
    problems += [
        f"the argument {name} is {new[name].annotation or 'of any type'}, not {each.annotation or 'of any type'}"
        for name, each in old.items()
        if name in new and new[name].annotation != each.annotation
    ]
    if before.returns != now.returns:
        problems.append(f"it returns {now.returns or 'anything'}, not {before.returns or 'anything'}")
    return problems


def _by_name(signature: Signature) -> dict[str, Parameter]:
    return {each.name: each for each in signature.parameters}


def _demanded(parameter: Parameter, old: Mapping[str, Parameter]) -> bool:
    return parameter.required and (parameter.name not in old or not old[parameter.name].required)
