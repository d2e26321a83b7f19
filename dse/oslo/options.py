"""The options of the driver, and from oslo.messaging's URL to DSE's.

An option stands in the configuration's group ``[oslo_messaging_dse]`` or in the URL, which counts more. All else in the
query of the URL is for DSE's own driver.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from oslo_config import cfg
from oslo_messaging.transport import InvalidTransportURL

if TYPE_CHECKING:
    from dse.core.url import TransportUrl

__all__ = ["GROUP", "Settings", "dse_url", "list_opts", "read_settings"]

GROUP = "oslo_messaging_dse"

_OPTIONS = [
    cfg.StrOpt(
        "bus",
        default="oslo",
        help="The bus, a name space on the broker: programs on other buses are never heard.",
    ),
    cfg.FloatOpt(
        "hold_timeout",
        default=300.0,
        min=0.0,
        help="Seconds for which a cast or notification to a topic where nobody listens is kept by its sender, in "
        "memory, until somebody does. 0: it is dropped at once.",
    ),
    cfg.IntOpt(
        "hold_messages",
        default=10_000,
        min=1,
        help="How many messages a sender keeps for one topic or server at most.",
    ),
    cfg.IntOpt(
        "hold_bytes",
        default=64 * 2**20,
        min=1,
        help="How many bytes of messages a sender keeps in all at most.",
    ),
]


@dataclass(frozen=True)
class Settings:
    """What the driver is set to; see the options' help."""

    bus: str
    hold_timeout: float
    hold_messages: int
    hold_bytes: int


def list_opts() -> list[tuple[str, list[Any]]]:
    """Return the options, for ``oslo-config-generator``."""
    return [(GROUP, list(_OPTIONS))]


def read_settings(conf: Any, url: Any) -> Settings:
    """Return the settings of a configuration and URL; raise `InvalidTransportURL`.

    conf: the application's own `ConfigOpts`, on which the options are registered as every driver of oslo.messaging
    does. url: oslo.messaging's `TransportURL`.
    """
    conf.register_opts(_OPTIONS, group=GROUP)
    values = {}
    for option in _OPTIONS:
        values[option.dest] = getattr(conf[GROUP], option.dest)
        if option.dest in url.query:
            try:
                values[option.dest] = option.type(url.query[option.dest])
            except ValueError as error:
                raise InvalidTransportURL(None, f"{url.transport}://…: option {option.dest!r}: {error}") from None
    if not values["bus"]:
        raise InvalidTransportURL(None, f"{url.transport}://…: option 'bus' is empty")
    return Settings(**values)


def dse_url(url: Any, kind: type[TransportUrl]) -> TransportUrl:
    """Return the URL of DSE's transport, for ``dse+redis://…`` and for ``dse://?url=redis://…``.

    kind: the class of the result. Raises `InvalidTransportURL`, and what that class raises for text.
    """
    own = {option.dest for option in _OPTIONS}
    options = {name: value for name, value in url.query.items() if name not in own}
    scheme = url.transport.partition("+")[2]
    if not scheme:
        text = options.pop("url", None)
        if text is None or url.hosts or url.virtual_host or options:
            raise InvalidTransportURL(
                None,
                "which transport of DSE? As in dse+redis://host/0; or dse://?url=…, a whole URL of DSE, %-encoded, and "
                f"no other options than {', '.join(sorted(own))}",
            )
        return kind.parse(text)
    logins = {(host.username, host.password) for host in url.hosts}
    if len(url.hosts) > 1 and (None, None) in logins:
        logins.discard((None, None))  # oslo.messaging takes a login before the first host for all
    if len(logins) > 1:
        raise InvalidTransportURL(None, f"{url.transport}://…: user name and password must be the same for all hosts")
    username, password = next(iter(logins), (None, None))
    hosts = tuple((host.hostname, host.port) for host in url.hosts)
    return kind(scheme, hosts, username or None, password, url.virtual_host or "", options)
