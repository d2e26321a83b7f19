"""Which services and tables a bridge carries."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Self

from dse.errors import ConfigError

__all__ = ["Filters"]

_PATTERN = re.compile(r"[\w*?\[\]!-]+(:[\w*?\[\]!-]+)?")


@dataclass(frozen=True, slots=True)
class _Pattern:
    text: str
    service: str
    table: str | None  # None: the service with all that it has

    @classmethod
    def parse(cls, text: str) -> Self:
        if not isinstance(text, str) or not _PATTERN.fullmatch(text):
            raise ConfigError(
                f"{text!r} is no pattern: it is SERVICE or SERVICE:TABLE, where * stands for any letters, ? for one, "
                "[ab] for one of these"
            )
        service, colon, table = text.partition(":")
        return cls(text, service, table if colon else None)

    def fits(self, service: str) -> bool:
        return fnmatchcase(service, self.service)


@dataclass(frozen=True, slots=True)
class Filters:
    """Patterns, ``SERVICE`` or ``SERVICE:TABLE``, with shell wildcards.

    only: what is carried; everything if there is none. A service that only patterns with a table name is carried with
    its methods and those tables. leave_out: what is not carried of it; it goes before `only`.
    """

    only: tuple[_Pattern, ...] = ()
    leave_out: tuple[_Pattern, ...] = ()

    @classmethod
    def of(cls, only: Iterable[str] = (), leave_out: Iterable[str] = ()) -> Self:
        """Read patterns. Raises `ConfigError` for what is none."""
        return cls(tuple(map(_Pattern.parse, only)), tuple(map(_Pattern.parse, leave_out)))

    def against(self, service: str) -> str:
        """Return why a service is not carried, as in ``--except 'host*'``; "" if it is."""
        for pattern in self.leave_out:
            if pattern.table in (None, "*") and pattern.fits(service):
                return f"--except {pattern.text}"
        if self.only and not any(pattern.fits(service) for pattern in self.only):
            return "not in --only"
        return ""

    def carries_table(self, service: str, table: str) -> bool:
        """Whether a table of a service that is carried is."""
        if any(each.table is not None and each.fits(service) and fnmatchcase(table, each.table)
               for each in self.leave_out):  # fmt: skip
            return False
        fitting = [pattern for pattern in self.only if pattern.fits(service)]
        return not fitting or any(each.table is None or fnmatchcase(table, each.table) for each in fitting)
