"""Transport URLs: their parts, their mistakes, and that no password is ever shown."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dse.core.url import TransportUrl
from dse.errors import InvalidUrl

SECRET = "s3cr3t"


def test_the_parts_of_a_url() -> None:
    url = TransportUrl.parse("Redis+Sentinel://us%40er:p%3Aw@h1:5672,[::1]:99,h2/my%20master/0?a=1&b=%2F")
    assert (url.scheme, url.driver, url.variant) == ("redis+sentinel", "redis", "sentinel")
    assert url.hosts == (("h1", 5672), ("::1", 99), ("h2", None))
    assert (url.username, url.password, url.path) == ("us@er", "p:w", "my master/0")
    assert dict(url.options) == {"a": "1", "b": "/"}
    assert TransportUrl.parse(url) is url


def test_user_and_password_may_stand_before_each_host() -> None:
    url = TransportUrl.parse(f"oslo+rabbit://u:{SECRET}@h1:1,u:{SECRET}@[::1]:2,u:{SECRET}@h3//v")
    assert (url.username, url.password, url.path) == ("u", SECRET, "/v")
    assert url.hosts == (("h1", 1), ("::1", 2), ("h3", None))
    with pytest.raises(InvalidUrl, match="same for all hosts"):
        TransportUrl.parse(f"oslo+rabbit://u:{SECRET}@h1,u:other@h2")


@pytest.mark.parametrize("text", ["fake://", "fake://lab", "redis://localhost/0", "rabbit://h/%2F", "oslo+fake://"])
def test_a_url_is_shown_as_it_was_written(text: str) -> None:
    url = TransportUrl.parse(text)
    assert TransportUrl.parse(str(url)) == url
    assert (url.username, url.password) == (None, None)


@pytest.mark.parametrize(
    "text",
    ["", "redis", "://h", "1redis://h", "re dis://h", "redis:/h", "redis+://h", "redis://:80", "redis://h:0",
     "redis://h:65536", "redis://h:port", "redis://[::1", "redis://[::1]x", "redis://a,,b", "redis://h?a=1&a=2"],
)  # fmt: skip
def test_a_url_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(InvalidUrl):
        TransportUrl.parse(text)


def test_a_url_is_text() -> None:
    with pytest.raises(InvalidUrl, match="int"):
        TransportUrl.parse(5)  # type: ignore[arg-type]


def test_options_are_read_and_unknown_ones_refused_with_the_known() -> None:
    def positive(text: str) -> float:
        if float(text) <= 0:
            raise ValueError("not positive")
        return float(text)

    readers: dict[str, Callable[[str], float]] = {"heartbeat": positive, "timeout": positive}
    assert TransportUrl.parse("redis://h?heartbeat=2").read_options(readers) == {"heartbeat": 2.0}
    with pytest.raises(InvalidUrl, match=r"'beat'.*heartbeat, timeout"):
        TransportUrl.parse("redis://h?beat=2").read_options(readers)
    for bad in ("0", "x", ""):
        with pytest.raises(InvalidUrl, match="heartbeat"):
            TransportUrl.parse(f"redis://h?heartbeat={bad}").read_options(readers)


@pytest.mark.parametrize(
    "text",
    [
        f"redis://user:{SECRET}@h/0",
        f"redis://:{SECRET}@h/0",
        f"rabbit://user:{SECRET}@h1:1,h2:2/v?heartbeat=1",
        f"redis://h?password={SECRET}",
        f"rediss://h?ssl_keyfile_password={SECRET}&token={SECRET}&api_key={SECRET}&client_secret={SECRET}",
        f"redis://user:{SECRET}",
        f"redis://user:{SECRET}/x@h",
        f"redis://user:{SECRET}#@h",
        f"redis://user:{SECRET}?@h",
        f"redis://user:{SECRET}@h:port",
        f"redis://user:{SECRET}@:1",
        f"redis://user:x@{SECRET}@h",
        f"redis://user:{SECRET}@h?a=1&a=2",
        f"redis//user:{SECRET}@h",
        f"redis://user:{SECRET}@[::1",
        f"oslo+rabbit://user:{SECRET}@h1,user:{SECRET}@h2",
        f"oslo+rabbit://user:{SECRET}@h1,user:another@h2",
    ],
)
def test_a_password_is_never_shown(text: str) -> None:
    shown = ""
    try:
        url = TransportUrl.parse(text)
        shown = f"{url} {url!r} {[url]}"
        url.read_options({})
    except InvalidUrl as error:
        shown += "".join(traceback.format_exception_only(error)) + repr(error)
    assert shown
    assert SECRET not in shown


@given(password=st.text(min_size=1), user=st.text(min_size=1))
def test_whatever_is_quoted_comes_back(password: str, user: str) -> None:
    try:
        text = f"redis://{quote(user, safe='')}:{quote(password, safe='')}@h:1/0"
    except UnicodeEncodeError:
        return
    url = TransportUrl.parse(text)
    assert (url.username, url.password) == (user, password)
    assert str(url) == f"redis://{quote(user, safe='')}:***@h:1/0"


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    for candidate in (text, f"redis://{text}"):
        try:
            url = TransportUrl.parse(candidate)
        except InvalidUrl:
            continue
        str(url)
