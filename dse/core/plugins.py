"""Finding drivers by name, through stevedore, one at a time: opening one driver imports no other."""

from __future__ import annotations

from typing import Any

from stevedore import DriverManager, NamedExtensionManager
from stevedore.exception import MultipleMatches, NoMatches

from dse.core.transport import Transport, TransportEvents
from dse.core.url import TransportUrl
from dse.errors import ConfigError, MissingExtra, UnknownTransport

__all__ = ["installed_transports", "load_transport", "open_transport"]

TRANSPORTS = "dse.transports"

# Which extra of DSE's own brings which driver's packages; a third party's plugin brings its own.
_EXTRAS = {"redis": "redis", "rediss": "redis", "rabbit": "rabbit", "amqp": "rabbit", "amqps": "rabbit", "oslo": "oslo"}


def installed_transports() -> list[str]:
    """Return the names of the installed drivers, importing none of them."""
    manager: Any = NamedExtensionManager(TRANSPORTS, names=[])
    return sorted({entry_point.name for entry_point in manager.list_entry_points()})


def load_transport(url: TransportUrl | str) -> type[Transport]:
    """Return the driver class that serves the URL's scheme.

    Raises `UnknownTransport`, listing the installed names, `MissingExtra` naming what to install, `InvalidUrl` for text
    that is no URL, and `ConfigError` where two installed plugins claim the same name.
    """
    parsed = TransportUrl.parse(url)
    failures: list[BaseException] = []
    try:
        manager: Any = DriverManager(
            TRANSPORTS,
            parsed.driver,
            invoke_on_load=False,
            on_load_failure_callback=lambda _manager, _entry_point, error: failures.append(error),
            on_missing_entrypoints_callback=None,
        )
        driver = manager.driver
    except MultipleMatches as error:
        raise ConfigError(f"several installed plugins claim the transport {parsed.driver!r}: {error}") from error
    except NoMatches:
        if failures:
            raise _cannot_load(parsed.driver, failures[0]) from failures[0]
        raise UnknownTransport(
            f"no transport {parsed.driver!r} is installed; installed are {', '.join(installed_transports()) or 'none'}"
        ) from None
    if not (isinstance(driver, type) and issubclass(driver, Transport)):
        raise ConfigError(f"the plugin {parsed.driver!r} is not a dse Transport: {driver!r}")
    return driver


def open_transport(url: TransportUrl | str, *, bus: str, events: TransportEvents) -> Transport:
    """Load the URL's driver, make a transport of it and open it; raises what those three raise."""
    parsed = TransportUrl.parse(url)
    transport = load_transport(parsed)(parsed, bus=bus, events=events)
    transport.open()
    return transport


def _cannot_load(name: str, error: BaseException) -> Exception:
    if isinstance(error, ImportError):
        extra = _EXTRAS.get(name, "")
        missing = f" ({error.name} cannot be imported)" if error.name else ""
        advice = f"install it with: pip install 'dse[{extra}]'" if extra else "install what its documentation names"
        return MissingExtra(f"the transport {name!r} lacks its packages{missing}; {advice}", extra=extra)
    return ConfigError(f"the transport {name!r} cannot be loaded: {type(error).__name__}: {error}")
