"""Finding services by name: a plugin is a `DataService` behind an entry point in the group ``dse.services``."""

from __future__ import annotations

from dse.core.plugins import installed_plugins, load_plugin
from dse.core.service import DataService
from dse.errors import ConfigError

__all__ = ["installed_services", "load_service"]

SERVICES = "dse.services"

# Which extra of DSE's own brings which service's packages; a third party's plugin brings its own.
_EXTRAS = {"files": "files", "host": "host", "http": "http", "sql": "sql"}


def installed_services() -> list[str]:
    """Return the names of the installed service plugins, importing none of them."""
    return installed_plugins(SERVICES)


def load_service(name: str) -> type[DataService]:
    """Return the class of a service plugin; no other plugin is imported.

    Raises `ConfigError`, listing the installed names, for one that is not installed (or cannot be loaded), and
    `MissingExtra` naming what to install.
    """
    try:
        return load_plugin(SERVICES, name, kind="service plugin", base=DataService, extras=_EXTRAS)
    except LookupError:
        raise ConfigError(
            f"no service plugin {name!r} is installed; installed are {', '.join(installed_services()) or 'none'}"
        ) from None
