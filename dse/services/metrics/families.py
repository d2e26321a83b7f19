"""The figures of nodes as Prometheus's metrics.

Names follow the OpenTelemetry conventions for messaging and RPC
(https://opentelemetry.io/docs/specs/semconv/messaging/messaging-metrics/, …/rpc/rpc-metrics/), written as Prometheus
writes them; what these have no name for begins with ``dse_``. Every sample has the labels ``node_id`` and ``bus``, so
that one scrape may stand for a node or for the whole bus.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from dse.core.figures import EDGES
from dse.core.info import BusStatus

__all__ = ["CONTENT_TYPE", "exposition"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_LABELS = ["node_id", "bus"]
_COARSE = 4  # of the edges of the nodes' histograms each so manieth: a factor of two between two buckets

# Name, counter of the node, what it is, further labels.
_COUNTERS: tuple[tuple[str, str, str, dict[str, str]], ...] = (
    (
        "messaging_client_sent_messages",
        "messages_out",
        "Messages that the node sent",
        {"messaging_operation_name": "send"},
    ),
    (
        "messaging_client_consumed_messages",
        "messages_in",
        "Messages that the node received",
        {"messaging_operation_name": "receive"},
    ),
    ("rpc_server_calls", "calls_served", "Calls that were run", {}),
    ("rpc_server_errors", "serve_errors", "Calls that raised, or whose arguments did not fit", {}),
    ("rpc_server_refused", "refused", "Calls that were not run: overloaded, unknown, not allowed", {}),
    ("rpc_client_calls", "calls_made", "Calls that the node made", {}),
    ("rpc_client_errors", "call_errors", "Calls of the node that failed", {}),
    ("dse_changes", "changes", "Changes that the node's tables published", {}),
    ("dse_replica_syncs", "syncs", "Times that replicas asked for what they had not: at first, and after each gap", {}),
    ("dse_disconnects", "disconnects", "Times that the node lost its connection to the broker", {}),
    ("dse_undeliverable_messages", "undeliverable", "Messages that nobody listened for", {}),
    ("dse_bad_frames", "bad_frames", "Frames that were no messages of this protocol, and were dropped", {}),
)
_GAUGES = (
    ("uptime", "dse_uptime_seconds", "Seconds since the node started"),
    ("calls_pending", "dse_calls_pending", "Calls that wait for an answer"),
    ("tables", "dse_published_tables", "Tables that the node publishes"),
    ("replicas", "dse_replicas", "Tables that the node follows"),
)
_QUEUES = {
    "requests_waiting": "requests",
    "jobs_waiting": "jobs",
    "callbacks_waiting": "callbacks",
    "control_waiting": "control",
}


def exposition(status: BusStatus, figures: Mapping[str, Mapping[str, Any] | None]) -> bytes:
    """Return the text that a scrape is answered with.

    figures: what each node counts, by node_id (`Node.figures`); None for one that did not answer.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(status, figures))
    return generate_latest(registry)


class _Families(Collector):
    def __init__(self, status: BusStatus, figures: Mapping[str, Mapping[str, Any] | None]) -> None:
        self._status = status
        self._figures = {node_id: each for node_id, each in sorted(figures.items()) if each is not None}
        self._silent = sum(each is None for each in figures.values())

    def collect(self) -> Iterable[Metric]:
        """Yield the families."""
        yield from self._counters()
        yield from self._gauges()
        yield self._histogram()
        yield from self._tables()
        yield from self._peers()

    def _each(self, part: str) -> Iterator[tuple[list[str], Mapping[Any, Any]]]:
        for node_id, figures in self._figures.items():
            found = figures.get(part)
            if isinstance(found, Mapping):
                yield [node_id, self._status.bus], found

    def _counters(self) -> Iterator[Metric]:
        system = self._status.transport.partition("://")[0]
        for name, counter, what, more in _COUNTERS:
            labels = {**more, **({"messaging_system": system} if name.startswith("messaging_") else {})}
            family = CounterMetricFamily(name, what, labels=[*_LABELS, *labels])
            for values, counters in self._each("counters"):
                if (value := _number(counters.get(counter))) is not None:
                    family.add_metric([*values, *labels.values()], value)
            yield family

    def _gauges(self) -> Iterator[Metric]:
        for gauge, name, what in _GAUGES:
            family = GaugeMetricFamily(name, what, labels=_LABELS)
            for values, gauges in self._each("gauges"):
                if (value := _number(gauges.get(gauge))) is not None:
                    family.add_metric(values, value)
            yield family
        queues = GaugeMetricFamily("dse_queue_length", "What waits to begin", labels=[*_LABELS, "queue"])
        for values, gauges in self._each("gauges"):
            for gauge, queue in _QUEUES.items():
                if (value := _number(gauges.get(gauge))) is not None:
                    queues.add_metric([*values, queue], value)
        yield queues

    def _histogram(self) -> Metric:
        family = HistogramMetricFamily(
            "rpc_server_call_duration_seconds",
            "From the arrival of a request to its answer; of more than 4,096 calls between two looks, the latest",
            labels=_LABELS,
        )
        for values, served in self._each("served"):
            counts = [_number(served.get(place)) or 0.0 for place in range(len(EDGES) + 1)]
            total, buckets = 0.0, []
            for place, edge in enumerate(EDGES):
                total += counts[place]
                if place % _COARSE == 0:
                    buckets.append((f"{edge:.3g}", total))
            buckets.append(("+Inf", total + counts[-1]))
            seconds = _number(self._figures[values[0]].get("served_seconds"))
            family.add_metric(values, buckets, seconds if seconds is not None else None)
        return family

    def _tables(self) -> Iterator[Metric]:
        families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {
            "rows": GaugeMetricFamily("dse_table_rows", "Rows of a table", labels=[*_LABELS, "service", "table"]),
            "followers": GaugeMetricFamily(
                "dse_table_followers", "Nodes that follow a table", labels=[*_LABELS, "service", "table"]
            ),
            "changes": CounterMetricFamily(
                "dse_table_changes", "Changes of a table in this life of it", labels=[*_LABELS, "service", "table"]
            ),
        }
        for values, tables in self._each("tables"):
            for name, figures in tables.items():
                if not (isinstance(name, str) and isinstance(figures, Mapping)):
                    continue
                service, _, table = name.partition(":")
                for key, family in families.items():
                    if (value := _number(figures.get(key))) is not None:
                        family.add_metric([*values, service, table], value)
        yield from families.values()

    def _peers(self) -> Iterator[Metric]:
        states = Counter(node.state.value for node in self._status.nodes.values())
        peers = GaugeMetricFamily("dse_peers", "Nodes of the bus, as seen from here", labels=["bus", "state"])
        for state in ("JOINING", "JOINED", "SUSPECT", "DEAD", "LEFT"):
            peers.add_metric([self._status.bus, state], states[state])
        yield peers
        connected = GaugeMetricFamily("dse_connected", "Whether the broker is reached from here", labels=["bus"])
        connected.add_metric([self._status.bus], float(self._status.connected))
        yield connected
        silent = GaugeMetricFamily("dse_silent_nodes", "Nodes that did not say what they count", labels=["bus"])
        silent.add_metric([self._status.bus], self._silent)
        yield silent


def _number(value: Any) -> float | None:
    """Return a number that a node said, or None for anything else: a peer may say anything."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
