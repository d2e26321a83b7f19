"""The keys of a bus: ``id:base64`` texts, checked. A secret appears in no repr, error or log."""

from __future__ import annotations

import base64
import binascii
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from dse.errors import ConfigError

__all__ = ["KEY_BYTES", "Key", "new_key", "parse_keys"]

KEY_BYTES = 32
MOST_KEYS = 16

_KEY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_ID_FORM = "1 to 64 letters, digits, '.', '_' or '-', and begins with a letter or digit"


@dataclass(frozen=True, slots=True)
class Key:
    """A key: its `id` is public, and travels with every frame; its `secret` are `KEY_BYTES` random bytes."""

    id: str
    secret: bytes = field(repr=False)


def new_key(key_id: str) -> str:
    """Return a new key as text, ``id:base64``. Raises `ConfigError` for an id that cannot be used."""
    if not _KEY_ID.match(key_id):
        raise ConfigError(f"a key's id is {_ID_FORM}: {ascii(key_id)[:80]} is not")
    return f"{key_id}:{base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()}"


def parse_keys(keys: Iterable[str]) -> tuple[Key, ...]:
    """Read keys, the one that seals first.

    Raises `ConfigError` for none, for more than `MOST_KEYS`, for two of one id, and for one that is not ``id:base64``
    of `KEY_BYTES` bytes; it names the key by its place and id, and never says more of it.
    """
    if isinstance(keys, str | bytes) or not isinstance(keys, Sequence):
        raise ConfigError("keys are a list of texts 'id:base64', as `dse keygen` prints them")
    found: list[Key] = []
    for place, text in enumerate(keys, 1):
        key = _parse_key(text, f"key {place}")
        if any(key.id == other.id for other in found):
            raise ConfigError(f"keys: two of them have the id {key.id!r}; each has its own")
        if any(key.secret == other.secret for other in found):
            raise ConfigError(f"keys: {key.id!r} has the same bytes as another; each has its own")
        found.append(key)
    if not found:
        raise ConfigError("keys: there is none; leave keys out for a bus without")
    if len(found) > MOST_KEYS:
        raise ConfigError(f"keys: at most {MOST_KEYS}, not {len(found)}: drop those that nobody seals with any more")
    return tuple(found)


def _parse_key(text: object, which: str) -> Key:
    if not isinstance(text, str):
        raise ConfigError(f"{which} is text, 'id:base64', as `dse keygen` prints it")
    key_id, colon, encoded = text.strip().partition(":")
    if not colon:
        # Not even the text before is said: without a colon it may be the secret itself.
        raise ConfigError(f"{which} is not 'id:base64', as `dse keygen` prints it: it has no ':'")
    if not _KEY_ID.match(key_id):
        raise ConfigError(f"{which}: what stands before the ':' is no id, which is {_ID_FORM}")
    try:
        secret = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise ConfigError(f"{which} ({key_id!r}): what stands behind the ':' is not base64") from None
    if len(secret) != KEY_BYTES:
        raise ConfigError(f"{which} ({key_id!r}) has {len(secret)} bytes; a key has {KEY_BYTES}")
    if len(set(secret)) < 8:
        raise ConfigError(f"{which} ({key_id!r}) is not random; make one with `dse keygen`")
    return Key(key_id, secret)
