"""What nodes count, in the form that Prometheus reads."""

from dse.errors import MissingExtra

try:
    import prometheus_client as _prometheus_client  # noqa: F401
except ImportError as error:
    raise MissingExtra(
        "the service metrics needs prometheus-client: pip install 'dse[metrics]'", extra="metrics"
    ) from error

from dse.services.metrics.families import exposition
from dse.services.metrics.service import Metrics

__all__ = ["Metrics", "exposition"]
