"""Finding plugins by name, through stevedore, one at a time: loading one imports no other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from stevedore import NamedExtensionManager

from dse.core.transport import Transport, TransportEvents
from dse.core.url import TransportUrl
from dse.errors import ConfigError, MissingExtra, UnknownTransport

__all__ = ["installed_plugins", "installed_transports", "load_plugin", "load_transport", "open_transport"]

T = TypeVar("T")

TRANSPORTS = "dse.transports"

# Which extra of DSE's own brings which driver's packages; a third party's plugin brings its own.
_EXTRAS = {"redis": "redis", "rediss": "redis", "rabbit": "rabbit", "amqp": "rabbit", "amqps": "rabbit", "oslo": "oslo"}


def installed_plugins(group: str) -> list[str]:
    """Return the names of the entry points of a group, importing none of them."""
    manager: Any = NamedExtensionManager(group, names=[])
    return sorted({entry_point.name for entry_point in manager.list_entry_points()})


def load_plugin(group: str, name: str, *, kind: str, base: type[T], extras: Mapping[str, str]) -> type[T]:
    """Return the class behind an entry point.

    kind: what such a plugin is, in a word, for messages. base: what it must be a subclass of. extras: which extra of
    DSE's own brings which plugin's packages. Raises `LookupError` when none of that name is installed, `MissingExtra`
    naming what to install, and `ConfigError` for one that cannot be loaded, is no such class, or exists twice.
    """
    failures: list[BaseException] = []
    # Not a DriverManager: that logs what is raised here.
    try:
        manager: Any = NamedExtensionManager(
            group,
            names=[name],
            on_load_failure_callback=lambda _manager, _entry_point, error: failures.append(error),
            on_missing_entrypoints_callback=lambda _names: None,
        )
    except SystemExit as error:  # the plugin's module ends the program: it does not end ours
        raise _cannot_load(kind, name, error, extras) from error
    found = {extension.entry_point_target: extension.plugin for extension in manager.extensions}
    if len(found) > 1:
        raise ConfigError(f"several installed plugins claim the {kind} {name!r}: {', '.join(sorted(found))}")
    if not found:
        if failures:
            raise _cannot_load(kind, name, failures[0], extras) from failures[0]
        raise LookupError(name)
    (plugin,) = found.values()
    if not (isinstance(plugin, type) and issubclass(plugin, base)):
        raise ConfigError(f"the {kind} {name!r} is not a dse {base.__name__}: {plugin!r}")
    return plugin


def installed_transports() -> list[str]:
    """Return the names of the installed drivers, importing none of them."""
    return installed_plugins(TRANSPORTS)


def load_transport(url: TransportUrl | str) -> type[Transport]:
    """Return the driver class that serves the URL's scheme.

    Raises `UnknownTransport`, listing the installed names, `MissingExtra` naming what to install, `InvalidUrl` for text
    that is no URL, and `ConfigError` where two installed plugins claim the same name.
    """
    parsed = TransportUrl.parse(url)
    try:
        return load_plugin(TRANSPORTS, parsed.driver, kind="transport", base=Transport, extras=_EXTRAS)  # type: ignore[type-abstract]
    except LookupError:
        raise UnknownTransport(
            f"no transport {parsed.driver!r} is installed; installed are {', '.join(installed_transports()) or 'none'}"
        ) from None


def open_transport(url: TransportUrl | str, *, bus: str, events: TransportEvents) -> Transport:
    """Load the URL's driver, make a transport of it and open it; raises what those three raise."""
    parsed = TransportUrl.parse(url)
    transport = load_transport(parsed)(parsed, bus=bus, events=events)
    transport.open()
    return transport


def _cannot_load(kind: str, name: str, error: BaseException, extras: Mapping[str, str]) -> Exception:
    if not isinstance(error, ImportError):
        return ConfigError(f"the {kind} {name!r} cannot be loaded: {type(error).__name__}: {error}")
    extra = extras.get(name, "")
    if isinstance(error, MissingExtra) and not extra:
        return error  # the plugin says it itself
    cause = error.__cause__ if isinstance(error, MissingExtra) else error
    package = cause.name if isinstance(cause, ImportError) else None
    missing = f" ({package} cannot be imported)" if package else ""
    advice = f"install it with: pip install 'dse[{extra}]'" if extra else "install what its documentation names"
    return MissingExtra(f"the {kind} {name!r} lacks its packages{missing}; {advice}", extra=extra)
