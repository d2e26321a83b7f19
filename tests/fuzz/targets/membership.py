"""The membership machine, told anything at any time: it never raises, keeps within its bounds, and goes on."""

from __future__ import annotations

import math
import random
from typing import Any

from dse.core import limits
from dse.core.effects import Send
from dse.core.membership import Membership, NodeState
from dse.core.messages import Catalogue, CatalogueRequest, Clash, Heartbeat, Leave
from fuzz.draw import Draw, Exhausted

SEEDS = [bytes([start + 7 * step & 255 for step in range(120)]) for start in range(0, 256, 25)]
_KINDS = (Heartbeat, Catalogue, CatalogueRequest, Leave, Clash, Heartbeat, Heartbeat, Catalogue)


def run(data: bytes) -> None:
    draw = Draw(data, ["me", "me/1", "peer", "peer/1", "peer/2", "me/0", "me/9"])
    machine = Membership("me", "me/1", 1.0, lambda: ([], []), random.Random(1), passive=data[:1] == b"\xff")
    now, state = 100.0, NodeState.JOINING
    machine.start(now)
    try:
        while True:
            now += draw.choice((0.0, 0.0, 0.01, 0.5, 1.0, 10.0, 1e4))
            effects = _step(machine, now, draw)
            assert len(effects) <= 200
            assert all(isinstance(effect, Send) for effect in effects)
            machine.events.clear()
            assert not (state is NodeState.LEFT and machine.state is not NodeState.LEFT)
            state = machine.state
            _check(machine, now)
    except Exhausted:
        pass
    for _ in range(5):  # whatever it was told, time goes on
        now = min(max(machine.wakeup, now), now + 1e5)
        machine.tick(now)
    assert machine.wakeup > now or state is NodeState.LEFT


def _step(machine: Membership, now: float, draw: Draw) -> list[Any]:
    what = draw.below(20)
    if what < 14:
        message = draw.message(_KINDS)
        if type(message) is Heartbeat:
            return machine.heartbeat(now, message)
        if type(message) is Catalogue:
            return machine.catalogue_of(now, message)
        if type(message) is CatalogueRequest:
            return machine.catalogue_request(now, message)
        if type(message) is Leave:
            return machine.left(now, message)
        assert type(message) is Clash
        return machine.clashed(now, message)
    if what < 17:
        return machine.tick(now)
    if what == 17:
        return machine.changed(now)
    if what == 18:
        machine.disconnected()
        return []
    return machine.connected(now)


def _check(machine: Membership, now: float) -> None:
    peers = machine.peers
    assert machine._live == sum(peer.live for peer in peers.values())
    assert len(peers) <= limits.PEERS
    assert sum(len(instances) for instances in machine._by_node.values()) == len(peers)
    assert all(len(instances) <= limits.INSTANCES for instances in machine._by_node.values())
    assert machine._catalogues == sum(peer.weight for peer in peers.values())
    assert len(machine._checks) <= 2 * len(peers) + 16
    assert len(machine._to_answer) == len(machine._answers)
    assert not math.isnan(machine.wakeup)
    for peer in peers.values():
        assert limits.LEAST_INTERVAL <= peer.interval <= limits.LONGEST_INTERVAL
        assert peer.node_id != machine.node_id
        assert peer.last_heard <= now
