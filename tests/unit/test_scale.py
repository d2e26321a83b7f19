"""The laws by which the control bus scales, on small simulated buses; `make scale` shows them up to 10,000 nodes."""

from __future__ import annotations

import pytest

from dse.core.membership import AT_ONCE, DEAD_AFTER, NodeState
from dse.testing.simulation import laws
from dse.testing.simulation.scale import DELAYS, Figures, ScaleBus, measure

LIMIT = 200  # messages that a node receives in a second, about
SAMPLE = 6  # full nodes
SIZES = [10, 50, 200]


@pytest.fixture(scope="module", params=SIZES)
def figures(request: pytest.FixtureRequest) -> Figures:
    return measure(request.param, min(SAMPLE, request.param), seed=request.param)


def test_a_node_receives_what_the_law_says_and_never_much_more_than_the_limit(figures: Figures) -> None:
    steady = laws.steady_messages(figures.nodes)
    assert figures.interval == laws.interval(figures.nodes)
    assert figures.steady.messages == pytest.approx(steady, rel=0.05)
    assert figures.steady.most_messages <= laws.busiest(steady)
    assert figures.joiner.most_messages <= laws.busiest(laws.joiner_messages(figures.nodes))
    assert figures.outage.most_messages <= laws.busiest(laws.reconnect_messages(figures.nodes))
    assert figures.half_dead.most_messages <= laws.busiest(steady)
    assert max(figures.most_messages.values()) <= 1.2 * LIMIT


def test_a_join_costs_each_node_one_catalogue(figures: Figures) -> None:
    assert figures.join_sent == pytest.approx(1.0, abs=1.5 / figures.nodes + 0.01)


def test_joins_leaves_and_deaths_are_known_when_the_law_says(figures: Figures) -> None:
    on_the_way = DELAYS[1]
    look = 0.1  # how often it is looked whether the newcomer knows all
    assert figures.join <= laws.join(figures.nodes)
    assert figures.joiner_knows_all <= laws.joiner_knows_all(figures.nodes) + look
    assert figures.leave <= laws.leave(figures.nodes)
    for (_, last), law in ((figures.suspect, laws.suspect), (figures.dead, laws.dead)):
        assert law(figures.nodes) - laws.interval(figures.nodes) <= last <= law(figures.nodes) + on_the_way
    assert figures.half_dead_settled <= laws.dead(figures.nodes) + look


def test_nobody_is_taken_for_dead_because_the_broker_restarted(figures: Figures) -> None:
    assert figures.outage_doubted == 0


def test_a_sampled_bus_tells_what_a_full_one_tells() -> None:
    sampled, full = measure(AT_ONCE + 10, SAMPLE), measure(AT_ONCE + 10)
    assert sampled.steady.messages == pytest.approx(full.steady.messages, rel=0.05)
    assert sampled.steady.bytes == pytest.approx(full.steady.bytes, rel=0.05)
    assert sampled.joiner.most_messages == pytest.approx(full.joiner.most_messages, rel=0.25)
    assert sampled.outage.messages == pytest.approx(full.outage.messages, rel=0.1)
    assert sampled.join == pytest.approx(full.join, abs=2 * DELAYS[1])
    assert sampled.dead[1] == pytest.approx(full.dead[1], abs=laws.interval(full.nodes))
    assert full.start is not None
    assert full.start.most_messages <= laws.busiest(laws.start_messages(full.nodes, 10.0))


def test_who_has_no_services_is_asked_by_nobody_either() -> None:
    bus = ScaleBus(2 * AT_ONCE, SAMPLE)
    bus.establish()
    client = bus.add()
    client.offers = False
    sent = bus.asked_and_told
    bus.start(client)
    bus.run(DEAD_AFTER * laws.interval(len(bus.nodes)))
    assert bus.asked_and_told - sent <= len(bus.nodes)
    assert len(client.complete) == len(bus.nodes) - 1
    others = [node.machine.peers[client.instance] for node in bus.full if node is not client]
    assert all(peer.state is NodeState.JOINED and peer.version == 0 for peer in others)
