"""What was sent and may have reached nobody, without a server: a simulated one takes it in order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dse.core.transport import Address, Delivery
from dse_nats._pending import Awaited, Pending

WHERE = Address(Delivery.DIRECT, "somewhere")

# What happens, in order: a frame that somebody hears (True) or nobody (False), or a PING (None).
histories = st.lists(st.sampled_from([True, False, None]), max_size=60)


@given(histories, st.data())
def test_exactly_what_reached_nobody_is_found_however_late_the_answers(
    history: list[bool | None], data: st.DataObject
) -> None:
    pending, answers, unheard, found = Pending(), list[int | None](), list[bytes](), list[bytes]()

    def hear(count: int) -> None:
        for answer in answers[:count]:
            if answer is None:
                pending.ponged()
            elif (frame := pending.reached_nobody(answer)) is not None:
                found.append(frame[1])
        del answers[:count]

    for index, heard in enumerate(history):
        if heard is None:
            pending.pinged(None)
            answers.append(None)
        else:
            number = pending.sent(WHERE, b"%d" % index)
            if not heard:
                unheard.append(b"%d" % index)
                answers.append(number)
        hear(data.draw(st.integers(0, len(answers))))
    hear(len(answers))
    assert found == unheard
    assert pending.reached_nobody(10**6) is None


@given(histories)
def test_after_a_pong_nothing_sent_before_its_ping_is_kept(history: list[bool | None]) -> None:
    pending = Pending()
    for heard in history:
        if heard is not None:
            pending.sent(WHERE, b"")
    awaited = Awaited()
    pending.pinged(awaited)
    pending.sent(WHERE, b"later")
    assert pending.awaited == [awaited]
    pending.ponged()
    assert awaited.done
    assert pending.awaited == []
    assert pending.take(lambda address: address == WHERE) == (WHERE, b"later")
    assert pending.take(lambda address: True) is None


@given(st.lists(st.integers(1, 1 << 20), max_size=600))
def test_what_is_not_proved_is_bounded(sizes: list[int]) -> None:
    pending, messages, size = Pending(), 0, 0
    for each in sizes:
        messages, size = messages + 1, size + each
        if pending.ping_due(1, each):
            pending.pinged(None)
            messages = size = 0
        assert messages < 256
        assert size < 1 << 18


def test_an_answer_for_a_frame_that_is_not_known_is_nothing() -> None:
    pending = Pending()
    pending.ponged()
    assert pending.reached_nobody(1) is None
    number = pending.sent(WHERE, b"frame")
    assert pending.reached_nobody(number) == (WHERE, b"frame")
    assert pending.reached_nobody(number) is None  # the later parts of a large frame
