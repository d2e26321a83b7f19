"""What becomes of a call on the other side of a bridge, said as a message."""

from __future__ import annotations

import msgspec

from dse.core.messages import Failure

__all__ = ["RelayedFailure"]


class RelayedFailure(Exception):
    """A call that was passed on to another bus has no result; the caller is told `failure`, under the call's number."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.code}: {failure.message}")
        self.failure = failure

    def answer_to(self, call_id: int) -> Failure:
        """Return the answer to the call of that number."""
        return msgspec.structs.replace(self.failure, id=call_id)
