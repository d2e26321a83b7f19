"""The server's side of a call: its answers, on their way to the caller."""

from __future__ import annotations

import logging
import time

from oslo_messaging._drivers import common
from oslo_messaging.exceptions import MessageDeliveryFailure

from dse.oslo.connection import Connection
from dse.oslo.messages import Reply, Request, encode
from dse.oslo.port import TooLarge, Unreachable

__all__ = ["PATIENCE", "Answers"]

_log = logging.getLogger(__name__)

PATIENCE = 60.0
"""Seconds that an answer is kept for a caller of whom it is not known how long he waits."""

_LONGEST = 86400.0


class Answers:
    """Sends the answers to one request."""

    def __init__(self, connection: Connection, request: Request) -> None:
        self._connection = connection
        self._address = request.sender
        wanted = request.timeout  # the peer's number, which may be none
        patience = min(wanted, _LONGEST) if wanted is not None and wanted > 0 else PATIENCE
        self._deadline = time.monotonic() + patience

    def send(self, reply: Reply) -> None:
        """Send a reply: one that still matters waits for the connection to come back, as long as its caller does."""
        connection = self._connection
        reply.timeout = left = self._deadline - time.monotonic()
        if left <= 0:
            return
        try:
            if reply.ending:
                self._send(connection, reply, left)
            else:
                connection.port.send(self._address, encode(reply), left)
        except Unreachable as error:
            raise MessageDeliveryFailure(str(error)) from error

    def _send(self, connection: Connection, reply: Reply, left: float) -> None:
        try:
            try:
                connection.send(self._address, encode(reply), deadline=self._deadline, ttl=left, retry=None)
            except MessageDeliveryFailure as error:
                if not isinstance(error.__cause__, Unreachable):
                    raise
                # The caller takes the first and no other: this may be sent twice.
                connection.send(self._address, encode(reply), deadline=self._deadline, ttl=left, retry=None)
        except MessageDeliveryFailure as error:
            if not isinstance(error.__cause__, TooLarge):
                raise
            _log.error("the answer to message %d cannot be sent: %s", reply.number, error)
            failure = common.serialize_remote_exception((type(error), error, None))
            connection.send(
                self._address, encode(Reply(reply.number, None, failure)), deadline=self._deadline, ttl=left, retry=None
            )
