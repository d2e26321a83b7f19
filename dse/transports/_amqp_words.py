"""What is wrong with a RabbitMQ, in words: for every driver that speaks to one through py-amqp."""

from __future__ import annotations

import socket
import ssl

import amqp

__all__ = ["explain"]


def explain(error: BaseException, vhost: str, waited: float) -> str:
    """Return what is wrong with a broker, to stand behind its name; it was waited for `waited` seconds."""
    text = str(getattr(error, "reply_text", None) or error)
    if isinstance(error, TimeoutError):
        return f"did not answer within {round(waited, 1):g} s"
    if isinstance(error, ConnectionRefusedError):
        return "refused the connection"
    if isinstance(error, socket.gaierror):
        return f"is not a known host: {error.strerror}"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"has a certificate that is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"does not speak TLS, or not ours: {error.reason or text}"
    if isinstance(error, amqp.AccessRefused) and "Login was refused" in text:
        return "refuses the user name or password"
    if isinstance(error, amqp.NotAllowed) and "not found" in text:
        return f"has no virtual host {vhost!r}"
    if isinstance(error, ConnectionResetError) or "Server unexpectedly closed connection" in text:
        return f"broke the connection off during login: {text}"
    return f"refuses: {text}" if isinstance(error, amqp.AMQPError) else f"failed: {text or repr(error)}"
