"""The processes under measurement, as the one that measures sees them."""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["Failed", "Worker", "python_of"]

_HERE = Path(__file__).parent


class Failed(Exception):
    """A process could not do what it was asked."""


def python_of(script: str, environments: Path) -> Path:
    """Return the interpreter that a contestant's script runs on."""
    if not script.startswith("peer_"):
        return Path(sys.executable)
    return environments / ("nameko" if script == "peer_nameko" else "peers") / "bin" / "python"


class Worker:
    """One process; ended by `end`, and by the end of its stdin in any case."""

    def __init__(self, python: Path, script: str, *arguments: object) -> None:
        self.name = f"{script} {arguments[0]}"
        if not python.exists():
            raise Failed(f"{script} is not installed")
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by `end`; not a pipe, which would fill)
        self._process = subprocess.Popen(
            [python, _HERE / f"{script}.py", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )
        self._answer(60.0)

    def ask(self, operation: str, patience: float = 180.0, **arguments: object) -> Any:
        """Let it do something and return what came of it; raise `Failed`."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([operation, arguments]) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failed("has ended") from None
        return self._answer(patience)

    def tell(self, operation: str, **arguments: object) -> None:
        """Let it do something whose answer `hear` brings."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([operation, arguments]) + "\n")
        self._process.stdin.flush()

    def hear(self, patience: float = 180.0) -> Any:
        """Return what came of what it was told."""
        return self._answer(patience)

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._said):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what is still in its buffer has nowhere to go
                    pipe.close()

    def _answer(self, patience: float) -> Any:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], patience)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            raise self._failed("has ended" if ready else f"did not answer within {patience:g} s")
        good, answer = json.loads(line)
        if not good:
            raise Failed(f"{self.name}: {answer}")
        return answer

    def _failed(self, what: str) -> Failed:
        self._process.kill()
        self._process.wait()
        self._said.seek(0)
        said = self._said.read()[-400:]
        return Failed(f"{self.name} {what}: {said.strip()}")
