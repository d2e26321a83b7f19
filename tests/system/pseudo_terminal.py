"""A `dse` command in a terminal of its own, for tests: what it shows, the keys it gets, the state it leaves."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Sequence
from typing import Any, Self

PATIENCE = 30.0


class PseudoTerminal:
    """Runs a command as a shell would: with a controlling terminal. Lock: ``_came`` protects ``_shown``."""

    def __init__(
        self,
        *arguments: str,
        size: tuple[int, int] = (120, 40),
        program: Sequence[str] = (sys.executable, "-m", "dse.cli.main"),
        **environment: str,
    ) -> None:
        self._ours, theirs = pty.openpty()
        self._theirs = theirs
        self._shown = ""
        self._came = threading.Condition()
        self.resize(*size)
        self.before = termios.tcgetattr(theirs)
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *program, *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm-256color", **environment},
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE)
        os.write(self._theirs, b"\x00END")  # wakes the reader, behind all that was written
        self._reader.join(PATIENCE)
        os.close(self._theirs)
        os.close(self._ours)

    @property
    def shown(self) -> str:
        """All that was written to it."""
        with self._came:
            return self._shown

    @property
    def mode(self) -> list[Any]:
        """Its settings now."""
        return termios.tcgetattr(self._theirs)

    def resize(self, columns: int, rows: int) -> None:
        """Give it another size, and tell the command."""
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._ours, keys.encode())

    def wait_for(self, pattern: str, after: int = 0) -> int:
        """Wait until what is written after a place matches; return the place where the match ends."""
        with self._came:
            found = self._came.wait_for(lambda: re.compile(pattern, re.DOTALL).search(self._shown, after), PATIENCE)
            assert found, f"{pattern!r} was not shown: {self._shown[after:][-2000:]!r}"
            return found.end()

    def ended(self) -> int:
        """Wait until the command has ended; return its exit code."""
        return self.process.wait(PATIENCE)

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._ours, 65536)
            except OSError:
                return
            with self._came:
                self._shown += data.decode(errors="replace")
                self._came.notify_all()
                if self._shown.endswith("\x00END"):
                    return
