"""TLS to a broker, as the options of a transport URL say: the same names and the same words for every driver.

TLS 1.2 or later; the server's certificate is always verified, and must be for the host of the URL unless an option says
otherwise. There is no option that trusts anybody, and no way back to plain text.
"""

from __future__ import annotations

import os
import socket
import ssl
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from dse.core.connection import flag
from dse.core.url import TransportUrl
from dse.errors import InvalidUrl

__all__ = ["TLS_OPTIONS", "NoHandshake", "Tls", "speaks_tls"]

TLS_OPTIONS: Mapping[str, Callable[[str], Any]] = {
    "ssl": flag,
    "ssl_ca_certs": str,
    "ssl_certfile": str,
    "ssl_keyfile": str,
    "ssl_keyfile_password": str,
    "ssl_check_hostname": flag,
    "ssl_server_name": str,
}
"""The URL options of every driver that does TLS, and how each is read."""


class NoHandshake(TimeoutError):
    """The server did not answer the handshake in time."""


def speaks_tls(received: bytes | bytearray) -> bool:
    """Return whether this is how a TLS server answers who does not speak TLS: an alert, in the clear."""
    return received[:2] == b"\x15\x03"


# X509_V_ERR_… of OpenSSL
_NOT_YET_VALID, _EXPIRED, _WRONG_HOST, _WRONG_ADDRESS = 9, 10, 62, 64
_NO_ISSUER = frozenset({2, 18, 19, 20, 21})

_NO_TLS = frozenset(
    {
        *("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE"),
        *("PACKET_LENGTH_TOO_LONG", "RECORD_TOO_SMALL", "UNEXPECTED_MESSAGE", "BAD_RECORD_TYPE"),
    }
)
_OLD_TLS = frozenset({"UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_PROTOCOL_VERSION", "NO_PROTOCOLS_AVAILABLE"})
# What a server says of the certificate that we showed, or did not show: RFC 8446, section 6.2.
_OF_OURS = {
    "CERTIFICATE_REQUIRED": "none was shown",
    "UNKNOWN_CA": "it does not trust the authority that signed it",
    "CERTIFICATE_EXPIRED": "it has expired, or is not valid yet",
    "CERTIFICATE_REVOKED": "it was revoked",
    "BAD_CERTIFICATE": "it is none that it can use",
    "UNSUPPORTED_CERTIFICATE": "it is not meant for a client",
    "CERTIFICATE_UNKNOWN": "it does not say why",
    "ACCESS_DENIED": "whom it names is not let in",
    "DECRYPT_ERROR": "its signature is wrong",
}


@dataclass(frozen=True)
class Tls:
    """How connections are encrypted, for one life of them: certificates are read once, when they are first needed."""

    url: TransportUrl
    ca_certs: str | None = None
    certfile: str | None = None
    keyfile: str | None = None
    password: str | None = field(default=None, repr=False)
    check_hostname: bool = True
    server_name: str | None = None

    @classmethod
    def read(cls, url: TransportUrl, given: Mapping[str, Any], *, sealed: bool, scheme: str) -> Tls | None:
        """Return what the options of a URL ask for, or None when they do not ask for TLS.

        given: the options as read, others among them. sealed: the URL's scheme itself asks for TLS. scheme: one that
        does, for what an error says. Raises `InvalidUrl` that names the option, and the file, which cannot be used.
        """
        options = {name: value for name, value in given.items() if name in TLS_OPTIONS}
        wanted = options.pop("ssl", sealed)
        if not wanted:
            if sealed:
                raise InvalidUrl(f"{url}: {url.scheme}:// is TLS, which option 'ssl' cannot turn off")
            if options:
                raise InvalidUrl(f"{url}: option {next(iter(options))!r} needs TLS, that is {scheme}:// or ssl=true")
            return None
        for option in ("ssl_keyfile", "ssl_keyfile_password"):
            if option in options and "ssl_certfile" not in options:
                raise InvalidUrl(f"{url}: option {option!r} needs 'ssl_certfile'")
        tls = cls(
            url,
            options.get("ssl_ca_certs"),
            options.get("ssl_certfile"),
            options.get("ssl_keyfile"),
            options.get("ssl_keyfile_password"),
            options.get("ssl_check_hostname", True),
            options.get("ssl_server_name"),
        )
        tls._try_name()
        return tls

    # What the files hold

    def again(self) -> Tls:
        """Return the same for connections made anew: certificates may have been renewed."""
        return replace(self)

    @cached_property
    def context(self) -> ssl.SSLContext:
        """What the files hold; raises `InvalidUrl` when one cannot be used."""
        if self.ca_certs is not None:
            self._look("ssl_ca_certs", self.ca_certs)
        try:
            context = ssl.create_default_context(cafile=self.ca_certs)
        except ssl.SSLError as error:
            what = f"{self.ca_certs} has no certificate in PEM form ({_reason(error)})"
            raise self._unusable("ssl_ca_certs", what) from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.check_hostname = self.check_hostname
        if self.certfile is not None:
            self._load_own(context, self.certfile)
        return context

    def _load_own(self, context: ssl.SSLContext, certfile: str) -> None:
        key_option, keyfile = ("ssl_keyfile", self.keyfile) if self.keyfile is not None else ("ssl_certfile", certfile)
        self._look("ssl_certfile", certfile)
        self._look(key_option, keyfile)
        asked = False

        def password() -> str:
            # Without this OpenSSL would ask the terminal, and wait.
            nonlocal asked
            asked = True
            return self.password or ""

        try:
            context.load_cert_chain(certfile, self.keyfile, password)
        except (ssl.SSLError, ValueError) as error:  # ValueError: a password longer than OpenSSL takes
            reason = _reason(error)
            if reason == "KEY_VALUES_MISMATCH" or reason == "KEY_TYPE_MISMATCH":
                what = f"the key in {keyfile} does not belong to the certificate in {certfile}"
            elif asked and self.password is None:
                what = f"the key in {keyfile} is encrypted, and its password is missing (ssl_keyfile_password)"
            elif asked:
                key_option = "ssl_keyfile_password"
                what = f"it does not open the key in {keyfile}"
            elif not _has_certificate(certfile):
                key_option, what = "ssl_certfile", f"{certfile} has no certificate in PEM form ({reason})"
            else:
                more = "" if self.keyfile is not None else "; name the file that has it with ssl_keyfile"
                what = f"{keyfile} has no private key in PEM form ({reason}){more}"
            raise self._unusable(key_option, what) from error

    def _look(self, option: str, file: str) -> None:
        """See that there is a file that can be read: OpenSSL would not say which one cannot, and wait for a pipe."""
        try:
            if not stat.S_ISREG(os.stat(file).st_mode):
                raise self._unusable(option, f"{file} is not a file")
            with open(file, "rb"):
                pass
        except OSError as error:
            raise self._unusable(option, f"{file or 'its value'}: {error.strerror or error}") from error
        except ValueError as error:
            raise self._unusable(option, str(error)) from error

    def _try_name(self) -> None:
        context = self.context
        if self.server_name is None:
            return
        try:
            context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=self.server_name)
        except (ValueError, ssl.SSLError) as error:
            raise self._unusable("ssl_server_name", f"{self.server_name!r} is no host name") from error
        if not self.server_name:
            raise self._unusable("ssl_server_name", "it is empty")

    def _unusable(self, option: str, what: str) -> InvalidUrl:
        return InvalidUrl(f"{self.url}: option {option!r} cannot be used: {what}")

    # On the way to a server

    def wrap(self, sock: socket.socket, host: str) -> ssl.SSLSocket:
        """Return a connection to a host made ready for the handshake, with what it must prove to be."""
        return self.context.wrap_socket(sock, server_hostname=self._name(host), do_handshake_on_connect=False)

    def _name(self, host: str) -> str:
        return self.server_name or host

    def in_words(self, error: BaseException, host: str, waited: float) -> str | None:
        """Say what is wrong in the TLS with a server, to stand behind its name; None when that is not what is wrong.

        waited: seconds that it had for its answer.
        """
        if isinstance(error, NoHandshake):
            return f"did not answer within {round(waited, 1):g} s: no TLS handshake; is that its TLS port?"
        if isinstance(error, ssl.SSLCertVerificationError):
            return f"shows a TLS certificate that is not trusted: {self._untrusted(error)}"
        ours = f"the client certificate {self.certfile} (ssl_certfile)"
        if isinstance(error, ConnectionResetError | BrokenPipeError | ssl.SSLEOFError):
            may = "want a client certificate (ssl_certfile)" if self.certfile is None else f"not accept {ours}"
            return f"closed the connection without an answer in TLS; it may {may}, or that is not its TLS port"
        if isinstance(error, ssl.SSLError):
            reason = _reason(error)
            _, alert, said = reason.partition("_ALERT_")
            if alert and said in ("CERTIFICATE_REQUIRED", "BAD_CERTIFICATE") and self.certfile is None:
                return f"wants a client certificate, and none is given (ssl_certfile) [{reason}]"
            if alert and said in _OF_OURS and self.certfile is not None:
                return f"does not accept {ours}: {_OF_OURS[said]} [{reason}]"
            if reason in _NO_TLS:
                return f"does not speak TLS on this port [{reason}]"
            if reason in _OLD_TLS:
                return f"speaks no version of TLS that counts as safe: 1.2 or later is needed [{reason}]"
            if said == "UNRECOGNIZED_NAME":
                return f"has no certificate for {self._name(host)!r} [{reason}]"
            if said == "HANDSHAKE_FAILURE" and self.certfile is None:
                return f"finds no cipher in common, or wants a client certificate (ssl_certfile) [{reason}]"
            return f"cannot be spoken to in TLS: {reason}"
        return None

    def _untrusted(self, error: ssl.SSLCertVerificationError) -> str:
        said, code = error.verify_message.rstrip("."), error.verify_code
        if code in (_EXPIRED, _NOT_YET_VALID):
            return f"{said}; here it is {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC"
        if code in (_WRONG_HOST, _WRONG_ADDRESS):
            return f"{said}; if it is the right server, say with ssl_server_name which name its certificate is for"
        if code in _NO_ISSUER and self.ca_certs is not None:
            return f"{said}; no authority in {self.ca_certs} (ssl_ca_certs) vouches for it"
        if code in _NO_ISSUER:
            return f"{said}; no authority that this system trusts vouches for it (ssl_ca_certs names a file of others)"
        return said


def _has_certificate(file: str) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
    except ssl.SSLError:
        return False
    return True


def _reason(error: BaseException) -> str:
    return str(getattr(error, "reason", None) or error)
