"""What a server or listener of oslo.messaging is handed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from oslo_messaging._drivers import base, common

from dse.oslo.messages import Reply, to_json

__all__ = ["Answer", "DseIncoming"]

_log = logging.getLogger(__name__)

Answer = Callable[[Reply], None]


class DseIncoming(base.RpcIncomingMessage):  # type: ignore[misc]
    """A call, a cast or a notification.

    It was delivered once and will not be again, whatever becomes of it: to acknowledge it does nothing, and it cannot
    be requeued. number: the caller's of the request; answer: sends a `Reply` to it, None for a cast.
    """

    def __init__(
        self, ctxt: Any, message: Any, msg_id: str | None, monitor: float | None, number: int, answer: Answer | None
    ):
        super().__init__(ctxt, message, msg_id)
        self.client_timeout = monitor
        self._number = number
        self._answer = answer

    def reply(self, reply: Any = None, failure: Any = None) -> None:
        """Answer with a result, or with a failure, an exception's ``sys.exc_info()``."""
        if self._answer is None:
            return
        if failure is None:
            try:
                answer = Reply(self._number, to_json(reply))
            except Exception as error:
                # The caller learns at once what the server's log alone would say.
                failure = (type(error), error, error.__traceback__)
                _log.error("the result of message %s cannot be sent: %s", self.msg_id, error)
        if failure is not None:
            answer = Reply(self._number, None, _described(failure))
        self._answer(answer)

    def heartbeat(self) -> None:
        """Tell the caller that the method still runs."""
        if self._answer is not None:
            self._answer(Reply(self._number, ending=False))

    def requeue(self) -> None:
        """Raise `NotImplementedError`, as asking for the feature does: nothing is kept that could be given back."""
        raise NotImplementedError(
            f"message {self.msg_id} cannot be requeued: over DSE a message is delivered once and kept by nobody; "
            "allow_requeue=True is refused for that reason"
        )


def _described(failure: Any) -> str:
    """Return a failure as oslo.messaging writes it."""
    try:
        text: str = common.serialize_remote_exception(failure)
    except Exception:  # what it holds is no JSON: its text is
        plain = RuntimeError(f"{type(failure[1]).__name__}: {failure[1]}")
        text = common.serialize_remote_exception((RuntimeError, plain, failure[2]))
    return text
