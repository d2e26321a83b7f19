"""For drivers that are being written: places that say which guarantee they are for, until somebody fills them.

`dse new-transport` writes a driver in which each such place is marked ``@unfinished(n)``. A marked function raises
`dse.errors.Unfinished` when it is called, and the contract fails the tests of guarantee `n` with that word as long as
the driver's package has a place for it. To finish a place is to write its body and to take the mark away.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from dse.errors import Unfinished

__all__ = ["unfinished", "unfinished_places"]

P = ParamSpec("P")
T = TypeVar("T")

_places: dict[str, dict[int, list[str]]] = {}  # by package and guarantee; written while modules are imported


def unfinished(guarantee: int) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Mark a function as the place for this guarantee of ``docs/transports.md``; until then it raises `Unfinished`."""

    def mark(function: Callable[P, T]) -> Callable[P, T]:
        place = function.__qualname__
        package = _package(function.__module__)
        _places.setdefault(package, {}).setdefault(guarantee, []).append(place)

        @functools.wraps(function)
        def refuse(*_: P.args, **__: P.kwargs) -> T:
            raise Unfinished(
                f"not implemented: guarantee {guarantee}, {place}; see docs/new-transport.md of DSE",
                guarantee=guarantee,
                place=place,
            )

        return refuse

    return mark


def unfinished_places(driver: type) -> dict[int, list[str]]:
    """Return the marked functions of the packages that a driver's class and its bases are from, by guarantee.

    Packages within these count, and those that these are in.
    """
    found: dict[int, list[str]] = {}
    packages = {_package(base.__module__) for base in driver.__mro__}
    for package in sorted(marked for marked in _places if any(_within(marked, each) for each in packages)):
        for guarantee, places in _places[package].items():
            found.setdefault(guarantee, []).extend(places)
    return dict(sorted(found.items()))


def _package(module: str) -> str:
    return module.rpartition(".")[0] or module


def _within(one: str, other: str) -> bool:
    """Whether one package is a part of the other, or the same."""
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")
