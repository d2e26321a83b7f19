"""The keys of a bus as text: what is taken, and what is said of what is not."""

from __future__ import annotations

import base64

import pytest

from dse import ConfigError, MissingExtra, Node
from dse.core.keys import Key, new_key, parse_keys

SECRET = base64.b64encode(bytes(range(100, 132))).decode()


def test_a_new_key_is_read_back_with_its_id_and_32_bytes() -> None:
    (key,) = parse_keys([new_key("2026-11")])
    assert key.id == "2026-11"
    assert len(key.secret) == 32


def test_two_new_keys_are_different() -> None:
    assert new_key("a") != new_key("a")


def test_the_first_key_stays_the_first() -> None:
    assert [key.id for key in parse_keys([new_key("new"), new_key("old")])] == ["new", "old"]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ([], "there is none"),
        (f"k1:{SECRET}", "a list of texts"),
        ([7], "key 1 is text"),
        ([SECRET], "key 1 is not 'id:base64'.*no ':'"),
        ([f"k1:{SECRET}", f":{SECRET}"], "key 2: what stands before the ':' is no id"),
        ([f"a b:{SECRET}"], "key 1: what stands before the ':' is no id"),
        ([f"{'k' * 65}:{SECRET}"], "key 1: what stands before the ':' is no id"),
        ([f"k1:{SECRET[:-4]}*==="], r"key 1 \('k1'\): what stands behind the ':' is not base64"),
        ([f"k1:{SECRET[:20]}"], r"key 1 \('k1'\) has 15 bytes; a key has 32"),
        ([f"k1:{base64.b64encode(bytes(32)).decode()}"], r"key 1 \('k1'\) is not random"),
        ([f"k1:{SECRET}", new_key("k1")], "two of them have the id 'k1'"),
        ([f"k1:{SECRET}", f"k2:{SECRET}"], "'k2' has the same bytes as another"),
        ([new_key(f"k{number}") for number in range(17)], "at most 16, not 17"),
    ],
)
def test_what_is_no_key_is_refused_and_named_without_its_bytes(keys: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        parse_keys(keys)  # type: ignore[arg-type]
    assert SECRET[:12] not in str(caught.value)


def test_a_secret_is_in_no_repr() -> None:
    key = Key("k1", base64.b64decode(SECRET))
    node = Node("fake://", keys=[f"k1:{SECRET}"])
    for text in (repr(key), repr(node), repr(node._keys)):
        assert SECRET[:8] not in text
        assert repr(key.secret)[2:20] not in text
    assert node.key_ids == ("k1",)


def test_a_node_refuses_wrong_keys_when_it_is_made() -> None:
    with pytest.raises(ConfigError, match="key 1"):
        Node("fake://", keys=["k1"])


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    monkeypatch.delitem(sys.modules, "dse.core.seal", raising=False)
    with pytest.raises(MissingExtra, match=r"dse\[security\]") as caught:
        Node("fake://", keys=[new_key("k1")])
    assert caught.value.extra == "security"
