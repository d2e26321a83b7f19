"""Nested options of services: msgspec Structs, or from Python plain mappings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from dse.errors import ConfigError

__all__ = ["structs"]

S = TypeVar("S", bound=msgspec.Struct)


def structs(kind: type[S], option: str, values: Mapping[str, S | Mapping[str, Any]]) -> dict[str, S]:
    """Return name -> Struct for an option that is a table of tables; raise `ConfigError` with the key of a bad one."""
    if not values:
        raise ConfigError(f"{option}: there is to be one at least", key=(option,))
    found: dict[str, S] = {}
    for name, value in values.items():
        if isinstance(value, kind):
            found[name] = value
            continue
        try:
            found[name] = msgspec.convert(value, kind, dec_hook=_path)
        except msgspec.ValidationError as error:
            raise ConfigError(f"{option}.{name}: {error}", key=(option, name)) from None
    return found


def _path(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    raise NotImplementedError(f"{kind.__name__} is not known as an option")
