"""The log of a run on stderr, as text or as one JSON object a line, without the secrets of its file."""

from __future__ import annotations

import json
import logging
import sys
import threading
import traceback
from datetime import UTC, datetime
from typing import Any, TextIO

from dse.cli.run.file import LogOptions
from dse.cli.run.redact import Redactor
from dse.cli.text import clean

__all__ = ["JsonFormatter", "Logs", "TextFormatter"]

_log = logging.getLogger("dse.run")

_CHATTY = ("watchfiles", "httpx", "httpcore")
_LONGEST = 20_000  # characters of a message, or of one line of a traceback


class TextFormatter(logging.Formatter):
    """``2026-11-24T22:25:12.123Z WARNING dse.node: …``, and the lines of a traceback below."""

    def __init__(self, redact: Redactor) -> None:
        super().__init__()
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's line or lines; what comes from elsewhere cannot forge another or drive a terminal."""
        message = clean(self._redact(_message(record)), _LONGEST)
        lines = [f"{_time(record)} {record.levelname} {record.name}: {message}"]
        lines += [f"  {clean(line, _LONGEST)}" for line in self._redact(_exception(self, record)).splitlines()]
        return "\n".join(lines)


class JsonFormatter(logging.Formatter):
    """``{"time": …, "level": …, "logger": …, "message": …}``, with ``exception`` where there is one."""

    def __init__(self, redact: Redactor) -> None:
        super().__init__()
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a JSON object in one line of ASCII."""
        said = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": self._redact(_message(record)),
        }
        if exception := _exception(self, record):
            said["exception"] = self._redact(exception)
        return json.dumps(said)


class Logs:
    """Sends all that is logged to a stream, while it is installed; uncaught exceptions of threads and warnings too."""

    def __init__(self, redact: Redactor, stream: TextIO | None = None) -> None:
        self._redact = redact
        # Closed by whoever started us: then nobody reads it.
        self._handler = logging.StreamHandler(stream or sys.stderr) if stream or sys.stderr else logging.NullHandler()
        self._before: tuple[int, Any, bool] | None = None

    def apply(self, options: LogOptions) -> None:
        """Log in this way from now on."""
        formatter = JsonFormatter if options.format == "json" else TextFormatter
        self._handler.removeFilter(_without_chatter)
        if options.level != "debug":
            self._handler.addFilter(_without_chatter)
        self._handler.setFormatter(formatter(self._redact))
        root = logging.getLogger()
        if self._before is None:
            self._before = root.level, threading.excepthook, logging.raiseExceptions
            logging.raiseExceptions = False  # a stream that is gone is no reason to end
            threading.excepthook = _log_uncaught
            logging.captureWarnings(True)
            root.addHandler(self._handler)
        root.setLevel(options.level.upper())

    def close(self) -> None:
        """Log no more, and leave logging as it was."""
        if self._before is not None:
            root = logging.getLogger()
            root.removeHandler(self._handler)
            logging.captureWarnings(False)
            level, threading.excepthook, logging.raiseExceptions = self._before
            root.setLevel(level)
            self._before = None


def _without_chatter(record: logging.LogRecord) -> bool:
    """Leave out what the libraries of our own services say at INFO about each request or event."""
    return record.levelno >= logging.WARNING or record.name.partition(".")[0] not in _CHATTY


def _log_uncaught(args: threading.ExceptHookArgs) -> None:
    name = args.thread.name if args.thread is not None else "?"
    if args.exc_value is not None and args.exc_type is not SystemExit:
        _log.error(
            "the thread %s ended by an exception",
            name,
            exc_info=(args.exc_type, args.exc_value, args.exc_traceback),
        )


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:  # arguments that do not fit, or whose text cannot be had
        return f"{record.msg!s} (its arguments cannot be shown: {type(error).__name__})"


def _exception(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = []
    if record.exc_info and record.exc_info[0] is not None:
        try:
            parts.append(formatter.formatException(record.exc_info))
        except Exception:  # the text of an exception is anybody's code
            parts.append("".join(traceback.format_tb(record.exc_info[2])) + record.exc_info[0].__name__)
    if record.stack_info:
        parts.append(formatter.formatStack(record.stack_info))
    return "\n".join(parts)


def _time(record: logging.LogRecord) -> str:
    stamp = datetime.fromtimestamp(record.created, UTC)
    return stamp.isoformat(timespec="milliseconds").replace("+00:00", "Z")
