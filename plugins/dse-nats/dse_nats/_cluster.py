"""Ready on return, in a cluster too.

A server tells the others of a cluster what its clients subscribe to, and does not say when they know. Until then a
message that is published to another server does not arrive (on one machine a third of those that are published at
once), and after the end of a subscription one for nobody is not returned. So whoever subscribes or ends a subscription
asks the others: it subscribes to a *marker* after all else, and publishes to the marker over a connection to each of
the others, until that one knows a subscriber. Servers pass on in order what clients subscribe to: then it knows the
rest too.

Source of the order: subscriptions and messages of one account travel on one route between two servers, "NATS Cluster
Protocol", https://docs.nats.io/reference/reference-protocols/nats-server-protocol
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Sequence

from dse.errors import TransportUnavailable
from dse_nats._wire import Endpoint, Wire
from dse_nats.protocol import publish, subscribe

__all__ = ["Others"]

_log = logging.getLogger("dse.transport")

_CONNECT_TIMEOUT = 1.0  # seconds for a server that may be down, or out of reach
_FORGET_AFTER = 30.0  # seconds after which it is tried again
_PAUSE = 0.001  # seconds between two questions: there is nothing that would wake us


class Others:
    """The other servers of the cluster. own: the id of the server that we are connected to. inbox: begins our subjects.

    endpoints: returns where servers may be; our own may be among them.
    """

    def __init__(self, url: object, own: str, inbox: bytes, endpoints: Callable[[], Sequence[Endpoint]]) -> None:
        self._url = url
        self._own = own
        self._inbox = inbox
        self._endpoints = endpoints
        self._skip: dict[str, float] = {}  # servers out of reach, and our own: until when

    def wait_known(self, marker: bytes, deadline: float) -> None:
        """Return once every server within reach knows a subscriber of `marker`; raises `TimeoutError`."""
        for endpoint in self._endpoints():
            if self._skip.get(str(endpoint), 0.0) <= time.monotonic():
                self._ask(endpoint, marker, deadline)

    def _ask(self, endpoint: Endpoint, marker: bytes, deadline: float) -> None:
        wire = Wire(self._url, endpoint)
        try:
            wire.open(min(deadline, time.monotonic() + _CONNECT_TIMEOUT))
            if wire.info.get("server_id") == self._own:
                self._skip[str(endpoint)] = float("inf")
                return
            answers = b"%bk%b" % (self._inbox, secrets.token_hex(8).encode())
            wire.ask(deadline, subscribe(answers, b"1"))
            while wire.ask(deadline, publish(marker, b"", answers)):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"a server of the cluster ({endpoint}) was not told of a subscription in time")
                time.sleep(_PAUSE)
        except (TransportUnavailable, ConnectionError) as error:
            # One that is down has no clients; when it is back, the others tell it, but nothing says when.
            _log.debug("%s: not asked whether it knows a subscription: %s", self._url, error)
            self._skip[str(endpoint)] = time.monotonic() + _FORGET_AFTER
        finally:
            wire.kill()
            wire.drop()
