"""DSE over NATS: ``nats://``, ``nats+tls://`` and ``nats+local://``; see the README."""

from dse_nats.transport import NatsTransport

__all__ = ["NatsTransport"]
