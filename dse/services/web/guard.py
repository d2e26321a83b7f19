"""What every request passes before it is looked at: host, origin, rate, size, token; and the headers of every answer.

Why each:

- Host: a page of a stranger may get its own name resolved to 127.0.0.1 and so speak to a gateway on loopback in the
  user's browser (DNS rebinding). The name in the request is then still the stranger's.
- Origin: a page of a stranger may send requests that it cannot read the answer of. Browsers say where a request comes
  from (``Sec-Fetch-Site``, ``Origin``); there are no cookies, so a token is never sent by itself.
- Rate: by address, a bucket of `burst` that fills with `rate` a second.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dse.services.web.errors import Refused, answer
from dse.services.web.options import Options
from dse.services.web.tokens import SCOPES, Token

__all__ = ["Guard", "Rates", "require"]

_EVERYBODY = Token("anybody on this machine", frozenset(SCOPES))
_NOBODY = Token("nobody", frozenset())
_MOST_ADDRESSES = 10_000

_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


class Rates:
    """How many requests an address may make: a bucket for each, the longest unused forgotten. For one thread."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # address -> (left, at)

    def take(self, address: str, now: float) -> float:
        """Take a request out of a bucket; return 0, or the seconds until there is one when it is empty."""
        left, at = self._left.pop(address, (self._burst, now))
        left = min(self._burst, left + (now - at) * self._rate)
        allowed = left >= 1
        self._left[address] = (left - 1 if allowed else left, now)
        if len(self._left) > _MOST_ADDRESSES:
            self._left.popitem(last=False)
        return 0.0 if allowed else (1 - left) / self._rate


class Guard:
    """The ASGI application around the application. Puts the `Token` of a request into ``scope["dse.token"]``."""

    def __init__(self, app: ASGIApp, options: Options) -> None:
        self._app = app
        self._options = options
        self._rates = Rates(options.limits.rate, options.limits.burst)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        try:
            self._check(scope)
        except Refused as refused:
            await answer(refused)(scope, receive, guarded)
            return
        await self._app(scope, receive, guarded)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        client = scope.get("client")
        wait = self._rates.take(client[0] if client else "", time.monotonic())
        if wait:
            raise Refused(
                429,
                "TooManyRequests",
                f"more than {self._options.limits.rate} requests a second from this address",
                headers={"Retry-After": str(int(wait) + 1)},
            )
        self._check_host(headers.get("host", ""))
        self._check_origin(scope, headers)
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length[:20]) > self._options.limits.body:
            raise Refused(413, "TooLarge", f"the body of a request has at most {self._options.limits.body:,} bytes")
        scope["dse.token"] = self._token(headers.get("authorization"))

    def _check_host(self, host: str) -> None:
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if not self._options.any_host and name.casefold() not in self._options.hosts:
            raise Refused(
                421, "WrongHost", f"this gateway is not called {name[:100]!a} (the option hosts says how it is called)"
            )

    def _check_origin(self, scope: Scope, headers: Headers) -> None:
        site = headers.get("sec-fetch-site")
        # A link on a stranger's page may lead to the page; nothing else of it may be asked for from there.
        navigation = headers.get("sec-fetch-mode") == "navigate" and scope["method"] in ("GET", "HEAD")
        if site in ("cross-site", "same-site") and not navigation:
            raise Refused(403, "CrossSite", "requests from pages of other sites are refused")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.casefold() != headers.get("host", "").casefold():
            raise Refused(403, "CrossSite", "requests from pages of other sites are refused")

    def _token(self, authorization: str | None) -> Token:
        tokens = self._options.tokens
        if tokens is None:
            return _EVERYBODY
        if authorization is None:
            return _NOBODY
        kind, _, token = authorization.partition(" ")
        found = tokens.find(token.strip()) if kind.casefold() == "bearer" and len(token) <= 200 else None
        if found is None:
            raise Refused(
                401,
                "BadToken",
                "the token is none of this gateway's",
                headers={"WWW-Authenticate": 'Bearer error="invalid_token"'},
            )
        return found


def require(scope: Scope, wanted: str) -> None:
    """Raise `Refused` when the request's token has not this scope."""
    token: Token = scope["dse.token"]
    if wanted in token.scopes:
        return
    if token is _NOBODY:
        raise Refused(
            401,
            "NoToken",
            f"this needs a token with the scope {wanted}: Authorization: Bearer …",
            headers={"WWW-Authenticate": "Bearer"},
        )
    raise Refused(403, "NotAllowed", f"the token of {token.name} has not the scope {wanted}")
