"""Any file is a run file or `FileError`, with a line for each problem."""

from __future__ import annotations

import tempfile
from pathlib import Path

from dse.cli.run.file import read_run_file
from dse.cli.run.problems import FileError

SEEDS = [
    b'transport = "fake://"\n',
    b'transport = "redis://u:$P@h"\nbus = "b"\nnode_id = "n"\nworkers = 3\nmax_pending = 4\n[log]\nlevel = "info"\n',
    b'transport = "fake://"\n[services.files]\nplugin = "files"\ntables.t.path = "x.csv"\ntables.t.columns.a = "int"\n',
    b'transport = "fake://"\n[services.policy]\nplugin = "policy"\npolicies.p.r = "SELECT a FROM s.t"\n',
    b'transport = "fake://"\n[services.push]\nplugin = "push"\n[services.push.tables.t.columns]\na = "int?"\n',
    b'[services.sql]\nplugin = "sql"\nurl = "sqlite://"\n[services.sql.tables]\n"t" = {query="SELECT 1"}\n',
    b'[services.h]\nplugin = "http"\ntables.t = {url = "http://h", interval = 5, columns.a = {path="a", type="str"}}\n',
    b"a = " + b"[" * 200,
    b"a = " + b"9" * 5000,
    b'a."b".c = 1\na.b = 2\n',
    b"\xff\xfe",
    b"[[services]]\n",
    b"x = 1979-05-27\n",
]
_file = Path(tempfile.mkdtemp(prefix="dse-fuzz-")) / "node.toml"


def run(data: bytes) -> None:
    if len(data) > 4000:
        return
    _file.write_bytes(data)
    try:
        read_run_file(str(_file), environment={"P": "hunter2", "EMPTY": ""})
    except FileError as error:
        _check(error, data.count(b"\n") + data.count(b"\r") + 1)


def _check(error: FileError, lines: int) -> None:
    assert error.problems
    assert all(0 <= problem.line <= lines for problem in error.problems)
    str(error).encode("utf-8", "surrogateescape")
