"""Why a broker could not be reached, in words: what really answers at the address, and what to do about it.

Each look is a connection of its own, all at once, and takes `LOOK` seconds at most.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from dse.core.url import TransportUrl

__all__ = ["advice", "what_answers"]

LOOK = 2.0
MOST_HOSTS = 3

_PORTS = {"redis": 6379, "rediss": 6379, "rabbit": 5672, "amqp": 5672, "amqps": 5671}
_SPEAKS = {"redis": "redis", "rediss": "redis", "rabbit": "amqp", "amqp": "amqp", "amqps": "amqp"}
_NAMES = {"redis": "a Redis server", "amqp": "a RabbitMQ server (AMQP 0-9-1)", "http": "an HTTP server", "ssh": "SSH"}
_PLAIN = {"redis": "redis", "amqp": "rabbit"}
_SEALED = {"redis": "rediss", "amqp": "amqps"}


def advice(url: TransportUrl, error: Exception) -> list[str]:
    """Look at what a URL that failed leads to, and return what to do, in lines; none where there is nothing to add."""
    wanted = _SPEAKS.get(url.scheme)
    if wanted is None:
        return []
    sealed = url.scheme in ("rediss", "amqps") or url.options.get("ssl", "").lower() in ("1", "true", "yes", "on")
    if certificate := _of_certificates(str(error)):
        return [certificate]
    lines = []
    for host, port in url.hosts[:MOST_HOSTS] or (("localhost", None),):
        port = port if port is not None else _PORTS["amqps" if sealed and wanted == "amqp" else url.scheme]
        lines.append(f"{host}:{port}: {_say(what_answers(host, port), wanted, sealed, url.scheme)}")
    return lines


def _of_certificates(said: str) -> str | None:
    """Return what to do about a certificate, the server's or ours, that was refused."""
    if "certificate that is not trusted" in said:
        if "certificate has expired" in said or "not yet valid" in said:
            return "renew the certificate of the broker, or set the clock of this machine"
        if "ismatch" in said:
            return "use the host name that the certificate is for, or say with ?ssl_server_name=NAME which one that is"
        return "say whom to trust with ?ssl_ca_certs=FILE in the URL, and use the host name the certificate is for"
    if "client certificate" in said:
        return "show one that the broker's authority has signed: ?ssl_certfile=FILE&ssl_keyfile=FILE in the URL"
    return None


def _say(found: set[str], wanted: str, sealed: bool, scheme: str) -> str:
    kind = next((_NAMES[name] for name in _NAMES if name in found), None)
    if "unknown host" in found:
        return "no such host name: check its spelling, and the resolver (DNS) of this machine"
    if "refused" in found:
        return "nothing listens on that port: start the broker, or correct the port"
    if "unreachable" in found:
        return "no way there: a firewall, a network that is down, or a wrong address"
    if "tls" in found and not sealed:
        return f"a server that speaks TLS: use {_SEALED[wanted]}:// instead of {scheme}://"
    if wanted in found and sealed and "tls" not in found:
        return f"{_NAMES[wanted]} without TLS: use {_PLAIN[wanted]}:// instead of {scheme}://, or its TLS port"
    if wanted in found or ("tls" in found and kind is None):
        return "the broker answers: what it refuses is said above (user, password, rights, database or virtual host)"
    if kind is not None:
        return f"this is {kind}, not {_NAMES[wanted]}: correct the scheme, host or port"
    if "silent" in found:
        return "something accepts connections and says nothing: a broker that hangs, or another kind of server"
    return f"what answers there is not {_NAMES[wanted]}"


def what_answers(host: str, port: int) -> set[str]:
    """Return what was found: of ``unknown host, refused, unreachable, tls, redis, amqp, http, ssh, silent, closed``."""
    try:
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return {"unknown host"}
    looks: tuple[Callable[[str, int], str], ...] = (_tls, _plain_redis, _plain_amqp, _plain_http)
    with ThreadPoolExecutor(len(looks)) as pool:
        found = set(pool.map(lambda look: _look(look, host, port), looks))
    known = found - {"silent", "closed"}
    return known or found


def _look(look: Callable[[str, int], str], host: str, port: int) -> str:
    try:
        return look(host, port)
    except ConnectionRefusedError:
        return "refused"
    except TimeoutError:
        return "silent"
    except ConnectionError:
        return "closed"
    except OSError:
        return "unreachable"


def _tls(host: str, port: int) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # only looked at: nothing is said over it
    with _connected(host, port) as plain:
        try:
            with contextlib.closing(context.wrap_socket(plain, server_hostname=host)):
                return "tls"
        except ssl.SSLError as error:
            # A server that asks for a certificate of ours, or for another version, speaks TLS none the less.
            return "tls" if "ALERT" in str(error.reason) else "closed"


def _plain_redis(host: str, port: int) -> str:
    return _ask(host, port, b"*1\r\n$4\r\nPING\r\n")


def _plain_amqp(host: str, port: int) -> str:
    return _ask(host, port, b"AMQP\x00\x00\x09\x01")


def _plain_http(host: str, port: int) -> str:
    return _ask(host, port, b"HEAD / HTTP/1.0\r\n\r\n")


def _ask(host: str, port: int, words: bytes) -> str:
    with _connected(host, port) as plain:
        plain.sendall(words)
        said = plain.recv(64)
    if said.startswith((b"+PONG", b"-NOAUTH", b"-ERR", b"-DENIED", b"-LOADING", b"-NOPERM")):
        return "redis"
    if said.startswith(b"AMQP") or (said[:1] == b"\x01" and b"\x00\x0a\x00\x0a" in said):  # connection.start
        return "amqp"
    if said.startswith(b"HTTP/") or b"<html" in said.lower() or b"<!doctype" in said.lower():
        return "http"
    return "ssh" if said.startswith(b"SSH-") else "closed"


def _connected(host: str, port: int) -> socket.socket:
    connection = socket.create_connection((host, port), LOOK)
    connection.settimeout(LOOK)
    return connection
