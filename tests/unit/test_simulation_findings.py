"""What the simulation found, each as a test of the part that was wrong."""

from __future__ import annotations

import threading
import uuid

from dse import DataService, Node, ReplicaState, Table


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
