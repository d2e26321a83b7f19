"""Run one server as a child and see that it dies with the process that asked for it.

Run as a script: ``python -I -S _guard.py PARENT_PID LOG_FILE FOLDER PROGRAM ARGUMENT…``. It prints the server's process
id, waits until the server ends, and exits. When the parent ends first, however it ends, the server is killed and FOLDER
removed; when this process is killed, the kernel kills the server (PR_SET_PDEATHSIG).

A process of its own, because the death signal goes by the parent *thread*: a server started from a test's short-lived
thread would die with the thread.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import sys
import time

_PR_SET_PDEATHSIG = 1


def main(parent: int, log_file: str, folder: str, command: list[str]) -> int:
    guard = os.getpid()
    server = os.fork()
    if server == 0:
        _become_server(guard, log_file, command)
    os.write(1, b"%d\n" % server)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    if _parent_ended_first(parent, server):
        os.kill(server, signal.SIGKILL)
        _, status = os.waitpid(server, 0)
        shutil.rmtree(folder, ignore_errors=True)
    else:
        _, status = os.waitpid(server, 0)
    return 1 if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _become_server(guard: int, log_file: str, command: list[str]) -> None:
    try:
        os.setsid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != guard:
            os._exit(1)
        log = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.execvp(command[0], command)
    except BaseException as error:
        os.write(2, f"cannot run {command[0]}: {error}\n".encode())
    finally:
        os._exit(127)


def _parent_ended_first(parent: int, server: int) -> bool:
    """Wait until the parent or the server ends; true if it was the parent."""
    try:
        parent_fd = os.pidfd_open(parent)
        server_fd = os.pidfd_open(server)
    except OSError:  # an old or a restricted kernel
        while os.getppid() == parent:
            if os.waitid(os.P_PID, server, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                return False
            time.sleep(0.1)
        return True
    if os.getppid() != parent:
        return True
    poll = select.poll()
    poll.register(parent_fd, select.POLLIN)
    poll.register(server_fd, select.POLLIN)
    ready = [fd for fd, _ in poll.poll()]
    return server_fd not in ready


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:]))
