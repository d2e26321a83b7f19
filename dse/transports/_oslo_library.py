"""oslo.messaging and oslo.config, imported without a word.

Importing oslo.messaging imports oslo.service, and that eventlet, which warns that it is deprecated; nothing of either is
used here, and nothing is monkey-patched.
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
