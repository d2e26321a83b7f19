"""``${NAME}`` in the strings of a run file: what stands in the environment takes its place.

``${NAME:-default}`` has a default for a variable that is unset or empty, ``$${`` stands for a plain ``${``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dse.cli.run.lines import Key
from dse.cli.run.problems import BAD, Problems

__all__ = ["Expanded", "expand"]

_REFERENCE = re.compile(r"\$\$\{|\$\{(?:([^}]*)\})?")
_NAME = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?\Z", re.DOTALL)


@dataclass(frozen=True)
class Expanded:
    """A document with its variables filled in.

    written: the text, as it stands in the file, of each string that refers to variables. secrets: the values that came
    from the environment, by the key they are in.
    """

    data: dict[str, Any] = field(repr=False)
    written: Mapping[Key, str]
    secrets: Mapping[Key, tuple[str, ...]] = field(repr=False)


def expand(data: dict[str, Any], environment: Mapping[str, str], problems: Problems) -> Expanded:
    """Return the document with its variables filled in; a string that cannot be is a problem, and BAD."""
    written: dict[Key, str] = {}
    secrets: dict[Key, tuple[str, ...]] = {}

    def text(value: str, key: Key) -> Any:
        found: list[str] = []
        parts: list[str] = []
        end, wrong = 0, False
        for match in _REFERENCE.finditer(value):
            parts.append(value[end : match.start()])
            end = match.end()
            if match[0] == "$${":
                parts.append("${")
            elif (filled := fill(match, key)) is not None:
                parts.append(filled[0])
                found += [filled[0]] if filled[1] else []
            else:
                wrong = True
        if not end:
            return value
        written[key] = value
        secrets[key] = tuple(found)
        return BAD if wrong else "".join(parts) + value[end:]

    def fill(match: re.Match[str], key: Key) -> tuple[str, bool] | None:
        """Return what takes the place of a reference, and whether it came from the environment."""
        reference = _NAME.match(match[1]) if match[1] is not None else None
        if reference is None:
            problems.add(key, f"{match[0]!r} is not ${{NAME}} or ${{NAME:-default}}; a plain '${{' is written '$${{'")
            return None
        name, default = reference[1], reference[2]
        value = environment.get(name)
        if value is None or (not value and default is not None):
            if default is None:
                problems.add(key, f"the environment variable {name} is not set; a default is written ${{{name}:-…}}")
                return None
            return default, False
        return value, True

    def walk(value: Any, key: Key) -> Any:
        if isinstance(value, str):
            return text(value, key)
        if isinstance(value, dict):
            return {name: walk(each, (*key, name)) for name, each in value.items()}
        if isinstance(value, list):
            return [walk(each, (*key, index)) for index, each in enumerate(value)]
        return value

    return Expanded(walk(data, ()), written, secrets)
