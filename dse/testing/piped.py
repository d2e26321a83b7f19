"""A Python module in a process of its own, driven over pipes: a line on its stdin, a line of answer on its stdout.

The process's stderr is the caller's own, or a file. The process ends itself when its stdin does, however the caller
ended, if it reads its requests with ``for line in sys.stdin``.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from contextlib import suppress
from typing import IO

__all__ = ["PipedProcess", "run_module"]


def run_module(module: str, *arguments: str, stderr: IO[str] | None = None) -> subprocess.Popen[str]:
    """Start ``python -m module arguments…`` with this process's import path, and pipes for stdin and stdout."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )


class PipedProcess:
    """``python -m module arguments…``, asked a line at a time; `AssertionError` when it does not answer or has ended.

    `ask` is for one thread at a time.
    """

    def __init__(self, module: str, *arguments: str, stderr: IO[str] | None = None) -> None:
        self.process = run_module(module, *arguments, stderr=stderr)
        self._module = module
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, name=f"answers of {module}", daemon=True).start()

    @property
    def pid(self) -> int:
        return self.process.pid

    def ask(self, line: str, timeout: float) -> str:
        """Send one line, without its end, and return the line that answers it; wait `timeout` seconds for it."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # `answer` says how it ended
            print(line, file=self.process.stdin, flush=True)
        return self.answer(timeout)

    def answer(self, timeout: float) -> str:
        """Return the next line that the process says, within `timeout` seconds."""
        try:
            line = self._answers.get(timeout=timeout)
        except queue.Empty:
            raise AssertionError(f"the process of {self._module} does not answer") from None
        if not line:
            raise AssertionError(f"the process of {self._module} ended (status {self.process.wait()})")
        return line

    def kill(self) -> None:
        """Kill the process (SIGKILL), if it still runs, and wait until it is gone."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as pipe:
            for line in pipe:
                self._answers.put(line)
        self._answers.put("")
