"""Any file is rows of its table, or problems, or `ValueError`: CSV, JSON, JSON Lines, and what is pushed."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from dse.core.rows import check_shape, digest
from dse.services.sources.columns import Columns
from dse.services.sources.parsing import Layout, Rows, read_csv, read_json, read_json_lines
from fuzz.draw import Draw, Exhausted

SEEDS = [
    b"\x00a,b,c\n1,x,2.5\n",
    b'\x00\xef\xbb\xbfa,b\r\n1,"q""x\n"\n',
    b'\x01[{"a":1,"b":"x","c":1.5}]',
    b'\x02{"a":1}\n{"b":2}\n',
    b'\x01{"x":{"y":[{"a":1}]}}',
    b"\x01" + b"[" * 5000,
    b"\x02" + b'{"a":' * 1000,
    b'\x01[{"a":1e999,"c":NaN}]',
    b"\x00a\n" + b"9" * 5000,
    b'\x02{"a":123456789012345678901234567890,"d":"aGk="}',
    b"\x00a,b\n\xff,\xfe\n",
    b"\x03" + bytes(range(50)),
    b"\x00a;b\n\x00\n",
]
_COLUMNS = Columns({"a": "int?", "b": "str?", "c": "float?", "d": "bytes?", "e": "json?", "f": "bool?"})
_names = {name: name for name in _COLUMNS.names}
_READERS: tuple[Callable[..., None], ...] = (read_csv, read_json, read_json_lines)
_LAYOUTS = (
    Layout(_COLUMNS, _names),
    Layout(_COLUMNS, _names, at="x.y.0", header=False),
    Layout(_COLUMNS, _names, encoding="utf-16", delimiter=";"),
    Layout(_COLUMNS, _names, encoding="latin-1", at="0"),
)


def run(data: bytes) -> None:
    kind = data[0] if data else 0
    found: set[tuple[Any, ...]]
    if kind % 4 == 3:
        draw = Draw(data[1:], _COLUMNS.names)
        try:
            value = {draw.name(): draw.value() for _ in range(draw.below(6))}
            found = {_COLUMNS.from_values({name: value.get(name) for name in _COLUMNS.names})}
        except (Exhausted, ValueError):
            return
    else:
        rows = Rows("f", 1000, 1 << 16)
        try:
            _READERS[kind % 4](io.BytesIO(data[1:]), _LAYOUTS[kind // 4 % 4], "f", rows)
        except ValueError as error:
            str(error)
            return
        assert len(rows.problems) <= 100
        found = rows.rows
    check_shape("t", _COLUMNS.names, found)
    digest("t", _COLUMNS.names, found)
