"""What the simulation found, each as a test of the part that was wrong."""

from __future__ import annotations

import threading
import uuid

from dse import DataService, Node, ReplicaState, Table
from dse.core.membership import JOIN_WINDOW, Membership
from dse.core.messages import Clash, Heartbeat


class Watched(DataService):
    """Says in which order its hooks are called."""

    items = Table("name")

    def __init__(self, service_id: str) -> None:
        super().__init__(service_id)
        self.hooks: list[str] = []
        self.called = threading.Condition()

    def on_start(self) -> None:
        self._note("start")

    def on_first_subscriber(self, table: str) -> None:
        self._note("first")

    def on_last_unsubscribe(self, table: str) -> None:
        self._note("last")

    def _note(self, hook: str) -> None:
        with self.called:
            self.hooks.append(hook)
            self.called.notify_all()

    def wait(self, *hooks: str) -> None:
        with self.called:
            assert self.called.wait_for(lambda: self.hooks == list(hooks), 10.0), self.hooks


def test_a_service_that_is_registered_again_hears_of_those_who_still_subscribe() -> None:
    """They were adopted before the service was known to run, and `on_first_subscriber` was never called."""
    url = f"fake://{uuid.uuid4().hex}"
    first, reader = Watched("watched"), DataService("reader")
    with Node(url, services=[first]) as publisher, Node(url, services=[reader]) as subscriber:
        subscriber.wait_for("watched")
        replica = reader.subscribe("watched", "items")
        replica.wait(ReplicaState.LIVE)
        first.wait("start", "first")
        publisher.unregister("watched")
        replica.wait(ReplicaState.STALE)
        second = Watched("watched")
        publisher.register(second)
        second.wait("start", "first")
        replica.wait(ReplicaState.LIVE)
        reader.unsubscribe(replica)
        second.wait("start", "first", "last")


def joined(instance: str) -> Membership:
    """A node that has joined half a second after it was started at 0."""
    node = Membership("twin", instance, 1.0, lambda: ([], []))
    node.start(0.0)
    node.heartbeat(0.1, Heartbeat("twin", instance, 0.1, 1.0, 0, True))
    node.tick(0.2 + JOIN_WINDOW)
    assert node.state == "JOINED"
    return node


def clash_for(node: Membership, now: float, heartbeat: Heartbeat) -> Clash | None:
    """Return what a node says to its twin."""
    said = [effect.message for effect in node.heartbeat(now, heartbeat) if isinstance(effect.message, Clash)]  # type: ignore[union-attr]
    return said[0] if said else None


def test_late_words_of_joining_do_not_stop_both_twins() -> None:
    """Each heard how the other joined after it had joined itself, and told it to stop."""
    first, second = joined("twin/1"), joined("twin/2")
    to_second = clash_for(first, 0.6, Heartbeat("twin", "twin/2", 0.1, 1.0, 0, True))
    to_first = clash_for(second, 0.6, Heartbeat("twin", "twin/1", 0.1, 1.0, 0, True))
    assert to_second is not None
    assert to_first is not None
    first.clashed(1.0, to_first)
    second.clashed(1.0, to_second)
    assert first.clash is None
    assert second.clash is None
    # What both have joined with decides: the one that sorts first does, alone.
    to_second = clash_for(first, 1.2, Heartbeat("twin", "twin/2", 1.2, 1.0, 0))
    assert to_second is not None
    assert clash_for(second, 1.2, Heartbeat("twin", "twin/1", 1.2, 1.0, 0)) is None
    second.clashed(1.0, to_second)
    assert first.clash is None
    assert second.clash == "twin/1"


def test_a_node_does_not_yield_to_a_twin_that_it_told_to_stop() -> None:
    """A message under way for longer made the twin older than the difference that counts, and both stopped."""
    first = joined("twin/1")
    assert clash_for(first, 4.0, Heartbeat("twin", "twin/2", 5.9, 1.0, 0)) is not None
    assert clash_for(first, 4.1, Heartbeat("twin", "twin/2", 6.2, 1.0, 0)) is not None
    assert first.clash is None
    assert clash_for(first, 4.1, Heartbeat("twin", "twin/3", 6.2, 1.0, 0)) is None
    assert first.clash == "twin/3"
