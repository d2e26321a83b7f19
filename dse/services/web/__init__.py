"""The web gateway: a bus over HTTP, and a page to look at it."""

from dse.errors import MissingExtra

try:
    import starlette as _starlette  # noqa: F401
    import uvicorn as _uvicorn  # noqa: F401
except ImportError as error:
    raise MissingExtra("the service web needs starlette and uvicorn: pip install 'dse[web]'", extra="web") from error

from dse.services.web.options import Limits
from dse.services.web.service import Gateway, Web
from dse.services.web.tokens import make_token

__all__ = ["Gateway", "Limits", "Web", "make_token"]
