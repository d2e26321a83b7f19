"""oslo.messaging over DSE: ``dse+redis://host``, ``dse+nats://host``, ``dse+`` and any other URL of a DSE transport.

A driver of oslo.messaging (entry point ``dse`` in the group ``oslo.messaging.drivers``), for programs that are written
for oslo.messaging: see `docs/oslo.md`. The other direction, DSE over oslo.messaging, is `dse.transports.oslo`.
"""
