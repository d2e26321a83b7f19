"""oslo.messaging: ``oslo+rabbit://user:password@h1:5672,h2:5672/vhost``, ``oslo+fake://name``, any other.

How the deliveries map on oslo.messaging's targets, with `wire_name` as the name:

- DIRECT: a ``server=`` target of the topic ``dse:<bus>:d``.
- ANYCAST: a topic target.
- FANOUT: one fanout topic for the whole bus, ``dse:<bus>:f``, filtered on arrival.

All are casts that are never sent again. What goes over the wire differs by oslo.messaging's driver, and so does what
that driver cannot do: `_oslo_rabbit` keeps every guarantee, `_oslo_fake` all that an in-process broker can; any other
driver is used through oslo.messaging's driver interface alone (`_oslo_plain`), reports nothing undeliverable, and is
trusted to reconnect by itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from dse.core.connection import BrokerTransport, Session
from dse.core.transport import Capabilities, TransportEvents
from dse.core.url import TransportUrl
from dse.errors import InvalidUrl, MissingExtra
from dse.transports._oslo_config import RABBIT_GROUP, configuration, driver_of, known_options, messaging_url, oslo_url
from dse.transports._oslo_config import resolve as _resolve
from dse.transports._oslo_fake import FakeSession
from dse.transports._oslo_library import oslo_messaging
from dse.transports._oslo_plain import PlainSession
from dse.transports._oslo_rabbit import CONNECTION_ERRORS, Blocked, RabbitSession

__all__ = ["OsloTransport", "oslo_url"]

_MAX_FRAME = 8 * 2**20


class OsloTransport(BrokerTransport):
    """The driver. Options besides the usual: ``conf``, a configuration file; and oslo.messaging's own."""

    capabilities: Capabilities = Capabilities(  # type: ignore[misc]
        undeliverable=True, max_frame=_MAX_FRAME, survives_broker_restart=True
    )
    relieves: ClassVar[bool] = False
    connection_errors: ClassVar[tuple[type[BaseException], ...]] = (
        *CONNECTION_ERRORS,
        oslo_messaging.MessagingException,
    )

    def __init__(self, url: TransportUrl, *, bus: str, events: TransportEvents) -> None:
        source = getattr(url, "conf", None)
        url = _resolve(url)
        self.options: Mapping[str, Callable[[str], Any]] = known_options(url)  # type: ignore[misc]
        super().__init__(url, bus=bus, events=events)
        self.driver = driver_of(url)
        self._conf = configuration(source, self.given.pop("conf", None), url)
        if self.driver not in ("rabbit", "fake"):
            self.capabilities = Capabilities(undeliverable=False, max_frame=_MAX_FRAME, survives_broker_restart=False)
        if self.driver == "fake" and (url.username or url.password or url.path):
            raise InvalidUrl(f"{url}: the in-process broker has a name and no more, as in oslo+fake://name")
        if self.driver == "rabbit":
            self._settle_heartbeat()
            # No quorum queue goes with its last consumer: what is sent to a service that has gone waits there.
            quorum = self.messaging()._driver.conf[RABBIT_GROUP].rabbit_quorum_queue
            self.capabilities = dataclasses.replace(self.capabilities, undeliverable=not quorum)

    def session(self) -> Session:
        if self.driver == "rabbit":
            return RabbitSession(self)
        return FakeSession(self) if self.driver == "fake" else PlainSession(self)

    def lost(self, session: Session, cause: BaseException) -> None:
        if not isinstance(cause, Blocked):
            super().lost(session, cause)

    def messaging(self) -> Any:
        """Return a new transport of oslo.messaging, which is not connected yet."""
        try:
            return oslo_messaging.get_rpc_transport(self._conf, messaging_url(self._conf, self.url, self.given))
        except ImportError as error:
            raise MissingExtra(f"{self.url}: oslo.messaging's driver lacks its package: {error}", extra="") from error
        except (oslo_messaging.DriverLoadFailure, RuntimeError) as error:
            raise InvalidUrl(f"{self.url}: oslo.messaging refuses its configuration: {error}") from None

    def _settle_heartbeat(self) -> None:
        """DSE's option counts, then oslo.messaging's own in the URL, then the configuration's; 0 is none of them."""
        name = "heartbeat_timeout_threshold"
        configured = float(self.given.pop(name, self._conf[RABBIT_GROUP][name]))
        if "heartbeat" not in self.url.options and configured > 0:
            self.heartbeat = configured
        self._conf.set_override(name, max(1, int(self.heartbeat)), group=RABBIT_GROUP)
