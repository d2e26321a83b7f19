"""The protocol, without a server: bytes in, events out."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dse_nats.protocol import (
    NO_RESPONDERS,
    Event,
    Info,
    Message,
    NotNats,
    Parser,
    Refusal,
    Signal,
    connect,
    publish,
    subscribe,
    unsubscribe,
)

tokens = st.text("abcXYZ019.%:-_", min_size=1, max_size=30).map(str.encode)
replies = st.just(b"") | tokens


def on_wire(event: Event) -> bytes:
    """What a server says for an event."""
    if isinstance(event, Signal):
        return event.value.encode() + b"\r\n"
    if isinstance(event, Info):
        return b"INFO " + json.dumps(dict(event.fields)).encode() + b" \r\n"
    if isinstance(event, Refusal):
        return b"-ERR '" + event.text.encode() + b"'\r\n"
    words = [event.subject, event.sid, *([event.reply] if event.reply else [])]
    if event.status:
        header = b"NATS/1.0 %d\r\nNats-Subject: x\r\n\r\n" % event.status
        sizes = b"%d %d" % (len(header), len(header) + len(event.payload))
        return b"HMSG %b %b\r\n%b%b\r\n" % (b" ".join(words), sizes, header, event.payload)
    return b"MSG %b %d\r\n%b\r\n" % (b" ".join(words), len(event.payload), event.payload)


messages = st.builds(
    Message,
    tokens,
    st.integers(0, 10**6).map(lambda number: b"%d" % number),
    replies,
    st.sampled_from([0, 0, 100, NO_RESPONDERS]),
    st.binary(max_size=300) | st.sampled_from([b"\r\n", b"MSG a 1 5\r\n", b"PING\r\n", b"\r\nPONG\r\n"]),
)
events = st.one_of(
    messages,
    st.sampled_from(Signal),
    st.builds(Info, st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=20), max_size=3)),
    st.text("abc XYZ", min_size=1, max_size=20).map(str.strip).filter(bool).map(Refusal),
)


def drained(parser: Parser) -> list[Event]:
    return list(iter(parser.next, None))


@given(st.lists(events, max_size=8), st.lists(st.integers(0, 3000), max_size=12))
def test_events_are_the_same_in_whatever_pieces_they_come(said: list[Event], cuts: list[int]) -> None:
    data = b"".join(map(on_wire, said))
    parser, got = Parser(), list[Event]()
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for start, end in itertools.pairwise(edges):
        if start < end:
            parser.feed(data[start:end])
            got += drained(parser)
    assert got == said
    assert parser.waiting == 0


@given(messages)
def test_a_message_that_comes_byte_by_byte_is_whole_at_its_last(message: Message) -> None:
    parser, data = Parser(), on_wire(message)
    for index in range(len(data) - 1):
        parser.feed(data[index : index + 1])
        assert parser.next() is None
    parser.feed(data[-1:])
    assert parser.next() == message


@given(st.binary(max_size=200))
def test_whatever_comes_is_an_event_not_yet_whole_or_refused(noise: bytes) -> None:
    parser = Parser()
    parser.feed(noise)
    try:
        drained(parser)
    except NotNats:
        pass
    assert parser.waiting <= len(noise)


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        b"SSH-2.0-OpenSSH_9.2p1\r\n",
        b"+PONG\r\n",
        b"MSG a 1\r\n",
        b"MSG a 1 -5\r\n",
        b"MSG a 1 x\r\n",
        b"MSG a 1 b 3 4\r\n",
        b"MSG a 1 999999999\r\n",
        b"MSG a 1 9999999999999\r\n",
        b"MSG a 1 3\r\nabcd\r\n",
        b"HMSG a 1 5\r\n",
        b"HMSG a 1 9 5\r\n",
        b"INFO {\r\n",
        b"INFO []\r\n",
        b"x" * 300_000,
    ],
)
def test_what_no_server_says_is_refused(said: bytes) -> None:
    parser = Parser()
    parser.feed(said)
    with pytest.raises(NotNats):
        drained(parser)


def test_large_messages_in_small_pieces_cost_no_more_than_their_bytes() -> None:
    parser, payload = Parser(), bytes(8 * 2**20)
    data = on_wire(Message(b"a", b"1", b"", 0, payload))
    got = []
    for start in range(0, len(data), 4096):
        parser.feed(data[start : start + 4096])
        got += drained(parser)
    assert [message.payload == payload for message in got if isinstance(message, Message)] == [True]


@given(tokens, st.binary(max_size=50), replies)
def test_what_a_client_publishes_has_its_length(subject: bytes, payload: bytes, reply: bytes) -> None:
    line, _, rest = publish(subject, payload, reply).partition(b"\r\n")
    assert line.split(b" ") == [b"PUB", subject, *([reply] if reply else []), b"%d" % len(payload)]
    assert rest == payload + b"\r\n"


def test_what_else_a_client_says() -> None:
    assert subscribe(b"a.b", b"7") == b"SUB a.b 7\r\n"
    assert subscribe(b"a.b", b"7", b"q") == b"SUB a.b q 7\r\n"
    assert unsubscribe(b"7") == b"UNSUB 7\r\n"
    word, _, options = connect(headers=True, user='a"b\r\n').partition(b" ")
    assert (word, json.loads(options)) == (b"CONNECT", {"headers": True, "user": 'a"b\r\n'})
    assert options.count(b"\r\n") == 1
