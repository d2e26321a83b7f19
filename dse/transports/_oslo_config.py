"""From a DSE URL, or an application's oslo.config object, to what oslo.messaging is configured with.

oslo.messaging registers its options on the configuration object that it is given. Here that is always a private one: an
application's own is read, never written to, and the global one is not touched. Who decides, the first one first:

1. options in the URL, under oslo.messaging's own names (``?ssl=true&rabbit_quorum_queue=true``);
2. what the application's configuration object or the file of the option ``conf`` sets;
3. what DSE prefers to oslo.messaging's defaults (`_PREFERRED`).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from typing import Any

from dse.core.url import TransportUrl
from dse.errors import ConfigError, InvalidUrl
from dse.transports._oslo_library import amqp, cfg, impl_rabbit, oslo_messaging, transport

__all__ = [
    "RABBIT_GROUP",
    "OsloUrl",
    "configuration",
    "driver_of",
    "known_options",
    "messaging_url",
    "oslo_url",
    "resolve",
]

RABBIT_GROUP = "oslo_messaging_rabbit"
_RABBIT_DRIVERS = ("rabbit", "kombu")
_RABBIT_OPTIONS = (*impl_rabbit.rabbit_opts, *amqp.amqp_opts)
_GROUPS: Mapping[str | None, Iterable[Any]] = {None: transport._transport_opts, RABBIT_GROUP: _RABBIT_OPTIONS}
_FILES = ("ssl_ca_file", "ssl_cert_file", "ssl_key_file")
_PREFERRED = {
    "amqp_auto_delete": True,  # or the queue of each service ever offered stays on the broker for ever
    "rabbit_transient_queues_ttl": 30,  # seconds a queue may outlive a crash; the default is half an hour
    "rpc_conn_pool_size": 8,  # connections that a transport sends on at a time
    "conn_pool_min_size": 1,
    "heartbeat_timeout_threshold": 10,
}


@dataclasses.dataclass(frozen=True, repr=False)
class OsloUrl(TransportUrl):
    """A URL that brings the configuration object it is to be used with; made by `oslo_url`."""

    conf: Any = dataclasses.field(default=None, compare=False)


def oslo_url(conf: Any, url: str | None = None) -> TransportUrl:
    """Return the URL of the bus that an application's own `oslo_config.cfg.ConfigOpts` describes, for `Node`.

    conf: is read when a transport is made of the URL, and not changed; what oslo.messaging would read there holds:
    ``transport_url`` and the group ``[oslo_messaging_rabbit]``. url: instead of its ``transport_url``, as
    oslo.messaging or DSE writes it. Raises `InvalidUrl`, and `ConfigError` when this is no configuration.
    """
    if not isinstance(conf, cfg.ConfigOpts):
        raise ConfigError(f"oslo_url takes an oslo_config.cfg.ConfigOpts, not {type(conf).__name__}")
    parsed = _parse(url) if url is not None else _parse(configuration(conf).transport_url)
    fields = {field.name: getattr(parsed, field.name) for field in dataclasses.fields(TransportUrl)}
    return OsloUrl(**fields, conf=conf)


def resolve(url: TransportUrl) -> TransportUrl:
    """Return the URL with driver and hosts: those of the configuration where the URL itself has none."""
    conf = getattr(url, "conf", None)
    file = url.options.get("conf")
    if (conf is not None or file is not None) and not url.hosts:
        found = _parse(configuration(conf, file, url).transport_url)
        if url.variant and url.variant != found.variant:
            raise InvalidUrl(f"{url}: the configuration is for the oslo.messaging driver {found.variant!r}")
        where = {name: getattr(found, name) for name in ("scheme", "hosts", "username", "password", "path")}
        url = dataclasses.replace(url, **where, options={**found.options, **url.options})
    if not url.variant:
        raise InvalidUrl(
            f"{url}: which driver of oslo.messaging, as in oslo+rabbit://host? Or where is it configured,"
            " as in oslo://?conf=FILE"
        )
    installed = {entry_point.name for entry_point in metadata.entry_points(group="oslo.messaging.drivers")}
    if driver_of(url) not in installed:
        raise InvalidUrl(
            f"{url}: oslo.messaging has no driver {driver_of(url)!r} here; installed are {', '.join(sorted(installed))}"
        )
    return url


def driver_of(url: TransportUrl) -> str:
    """Return the name of oslo.messaging's driver: ``kombu`` for ``oslo+kombu+memory``."""
    return url.variant.partition("+")[0]


def known_options(url: TransportUrl) -> dict[str, Callable[[str], Any]]:
    """Return the options that the URL may have besides DSE's own, with how each is checked; all stay text."""
    known: dict[str, Callable[[str], Any]] = {"conf": _readable}
    if driver_of(url) in _RABBIT_DRIVERS:
        known |= {option.dest: _checked(option.type) for option in _RABBIT_OPTIONS}
        known |= dict.fromkeys(_FILES, _readable)
    elif driver_of(url) != "fake":
        known |= dict.fromkeys(url.options.keys() - {"connect_timeout", "heartbeat"}, str)  # the driver's to check
    return known


def configuration(source: Any = None, file: str | None = None, url: TransportUrl | None = None) -> Any:
    """Return a private configuration with what an application's own, or a file, sets, and else what DSE prefers."""
    conf = cfg.ConfigOpts()
    files = [file] if file is not None else list(_get(source, "config_file") or ())
    try:
        conf([], project="dse", default_config_files=files, default_config_dirs=list(_get(source, "config_dir") or ()))
        for group, options in _GROUPS.items():
            conf.register_opts(options, group=group)
            for option in options:
                _copy(source, conf, group, option)
        for name, value in _PREFERRED.items():
            conf.set_default(name, value, group=RABBIT_GROUP)
        for options, names in ((conf, ("transport_url",)), (conf[RABBIT_GROUP], [o.dest for o in _RABBIT_OPTIONS])):
            for name in names:
                getattr(options, name)  # or a wrong value is found out when it is needed
    except (cfg.Error, ValueError) as error:
        where = f"the configuration file {file}" if file is not None else "the configuration"
        raise ConfigError(f"{f'{url}: ' if url is not None else ''}{where} cannot be used: {error}") from None
    return conf


def messaging_url(conf: Any, url: TransportUrl, options: Mapping[str, str]) -> Any:
    """Return the URL as oslo.messaging's own class has it."""
    hosts = [
        oslo_messaging.TransportHost(hostname=host, port=port, username=url.username, password=url.password)
        for host, port in url.hosts
    ]
    return oslo_messaging.TransportURL(
        conf, transport=url.variant, virtual_host=url.path or None, hosts=hosts, query=dict(options)
    )


def _parse(text: str) -> TransportUrl:
    text = text.strip()
    return TransportUrl.parse(text if text.startswith("oslo") else f"oslo+{text}")


def _get(source: Any, name: str) -> Any:
    """Return a value of a configuration, None when it has none."""
    try:
        return getattr(source, name, None)
    except cfg.Error:
        return None


def _copy(source: Any, conf: Any, group: str | None, option: Any) -> None:
    """Let the private configuration have what the application's has, where that is not the default."""
    if source is None:
        return
    try:
        value = getattr(source if group is None else getattr(source, group), option.dest)
    except (cfg.NoSuchOptError, cfg.NoSuchGroupError):
        return  # the application has not registered it: if it is set, then in a file, which has been read
    if value != option.default:
        conf.set_override(option.dest, value, group=group)


def _checked(read: Callable[[str], Any]) -> Callable[[str], str]:
    def check(text: str) -> str:
        read(text)
        return text

    return check


def _readable(text: str) -> str:
    if not os.access(text, os.R_OK):
        raise ValueError(f"there is no readable file {text!r}")
    return text
