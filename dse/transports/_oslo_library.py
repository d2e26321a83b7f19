"""oslo.messaging and oslo.config, imported without a word.

Importing oslo.messaging imports oslo.service, and that eventlet, which warns that it is deprecated. Nothing of either
is used here, and nothing is monkey-patched. The import also defines, but does not set, some options on the global
configuration (`oslo_messaging_metrics`, `oslo_messaging_tracing`, `oslo_concurrency`), as it does in any program.
"""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import oslo_messaging
    from oslo_config import cfg
    from oslo_messaging import transport
    from oslo_messaging._drivers import amqp, base, common, impl_fake, impl_rabbit

__all__ = ["amqp", "base", "cfg", "common", "impl_fake", "impl_rabbit", "oslo_messaging", "transport"]
