"""A bridge joins two buses: services and tables of each appear on the other. See ``docs/bridge.md``."""

from dse.services.bridge.bridge import Bridge
from dse.services.bridge.filters import Filters

__all__ = ["Bridge", "Filters"]
