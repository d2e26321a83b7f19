"""`dse bridge URL URL`: joins two buses until it is told to stop."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from types import FrameType
from typing import Self

from dse.cli.keys import keys_option, read_key_file
from dse.cli.run.mailbox import Mailbox
from dse.errors import ConfigError, InvalidUrl, NodeIdClash

__all__ = ["add_command"]


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser of `dse`."""
    bridge = commands.add_parser(
        "bridge",
        help="joins two buses: services and tables of each appear on the other",
        description=(
            "Join two buses until SIGTERM or Ctrl-C. A service that one of them has and the other has not appears "
            "there under its own name, with its tables and methods. So a site moves from one broker to another "
            "without stopping: see docs/bridge.md."
        ),
        epilog=(
            "A PATTERN is SERVICE or SERVICE:TABLE, where * stands for any letters and ? for one; --only and --except "
            "may be given several times. exit codes: 0 ended by SIGTERM or Ctrl-C; 1 failed on the way; 2 wrong "
            "arguments, the same bus twice, a name that is taken, no broker, or a missing package"
        ),
    )
    bridge.add_argument("url", metavar="URL", help="the one broker")
    bridge.add_argument("to", metavar="URL", help="the other broker")
    bridge.add_argument(
        "--bus",
        metavar="NAME",
        default=os.environ.get("DSE_BUS") or "dse",
        help="the bus on the one broker (default: $DSE_BUS or dse)",
    )
    bridge.add_argument("--to-bus", metavar="NAME", help="the bus on the other broker (default: the same)")
    bridge.add_argument(
        "--name", metavar="NAME", default="bridge", help="what it is called on both buses (default: bridge)"
    )
    bridge.add_argument(
        "--only", metavar="PATTERN", action="append", default=[], help="carry these services and tables, no others"
    )
    bridge.add_argument(
        "--except",
        metavar="PATTERN",
        action="append",
        default=[],
        dest="leave_out",
        help="do not carry these services or tables",
    )
    keys_option(bridge)
    bridge.add_argument(
        "--to-keys",
        metavar="FILE",
        help="the keys of the bus on the other broker (default: the same; '' is a bus without keys)",
    )
    bridge.add_argument("--one-way", action="store_true", help="carry from the first bus to the second, and not back")
    bridge.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from dse.cli.main import FAILED
    from dse.core.url import TransportUrl
    from dse.services.bridge import Bridge

    for url in (options.url, options.to):
        if TransportUrl.parse(url).driver == "fake":
            raise InvalidUrl("fake:// is the bus within one process: a bridge to it from here leads nowhere")
    bridge = Bridge(
        options.url,
        options.to,
        bus=options.bus,
        to_bus=options.to_bus,
        name=options.name,
        only=options.only,
        leave_out=options.leave_out,
        one_way=options.one_way,
        keys=read_key_file(options.keys),
        to_keys=None if options.to_keys is None else read_key_file(options.to_keys) or (),
    )
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    with _Told() as told:
        try:
            bridge.start()
        except NodeIdClash as error:
            raise ConfigError(f"{error}; give each bridge a --name of its own") from None
        ended = threading.Thread(
            target=lambda: told.end() if bridge.wait() else None, name="dse-bridge-end", daemon=True
        )
        ended.start()
        try:
            told.wait()
        finally:
            bridge.stop()
            ended.join()
    return FAILED if bridge.failed is not None else 0


class _Told:
    """Where the main thread waits until SIGTERM, SIGHUP, Ctrl-C or the bridge itself says that it is over.

    The second Ctrl-C ends the process at once.
    """

    def __init__(self) -> None:
        self._mailbox: Mailbox[bool] = Mailbox()
        self._before: dict[signal.Signals, object] = {}
        self._woken_before = -1
        self._interrupted = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._woken_before = self._mailbox.wake_for_signals()
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                self._before[number] = signal.signal(number, self._heard)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        if self._before:
            signal.set_wakeup_fd(self._woken_before)
        self._mailbox.close()

    def end(self) -> None:
        """It is over; from any thread."""
        self._mailbox.put(True)

    def wait(self) -> None:
        """Wait until it is."""
        while self._mailbox.get() is None:
            pass

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._interrupted:
            os._exit(128 + number)
        self._interrupted = self._interrupted or number == signal.SIGINT
        self.end()
