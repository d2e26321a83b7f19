"""What a node tells of itself to whoever asks, and what is made of it."""

from __future__ import annotations

import random
import threading
import uuid
from collections.abc import Iterator

import pytest

from dse import DataService, InvalidArguments, Node, NoSuchMethod, Observer, RemoteError, Table, rpc
from dse.core.figures import EDGES, RECENT, Traffic, is_figures, quantile


class Shop(DataService):
    stock = Table("thing", "count")

    def __init__(self, service_id: str) -> None:
        super().__init__(service_id)
        self.open = threading.Event()

    @rpc
    def price(self, of: int) -> int:
        return of * 2

    @rpc
    async def later(self) -> str:
        return "later"

    @rpc
    def fail(self) -> None:
        raise ValueError("sold out")

    @rpc
    def wait(self) -> None:
        self.open.wait(30)


class Endpoint:
    def hello(self) -> str:
        return "hello"


@pytest.fixture
def shop() -> Iterator[tuple[Shop, Node, Node, Observer]]:
    url = f"fake://{uuid.uuid4().hex}"
    service = Shop("shop")
    with (
        Node(url, node_id="seller", services=[service], workers=2, node_endpoints=[Endpoint()]) as seller,
        Node(url, node_id="buyer") as buyer,
        Observer(url) as observer,
    ):
        buyer.wait_for("shop", 10)
        try:
            yield service, seller, buyer, observer
        finally:
            service.open.set()


def test_a_node_tells_what_it_served_and_made(shop: tuple[Shop, Node, Node, Observer]) -> None:
    _, _, buyer, observer = shop
    before = observer.figures()
    for number in range(5):
        buyer.call("shop", "price", {"of": number})
    buyer.call("shop", "later")
    with pytest.raises(RemoteError):
        buyer.call("shop", "fail")
    with pytest.raises(InvalidArguments):
        buyer.call("shop", "price", {"of": "much"})
    with pytest.raises(NoSuchMethod):
        buyer.call("shop", "steal")
    after = observer.figures()

    def grew(node_id: str, counter: str) -> int:
        new, old = after[node_id], before[node_id]
        assert new is not None
        assert old is not None
        return int(new["counters"][counter] - old["counters"][counter])

    assert grew("seller", "calls_served") == 8
    assert grew("seller", "serve_errors") == 2
    assert grew("seller", "refused") == 1
    assert grew("buyer", "calls_made") == 9
    assert grew("buyer", "call_errors") == 3
    assert grew("seller", "messages_in") >= 9
    assert grew("seller", "messages_out") >= 9


def test_a_node_tells_of_its_tables(shop: tuple[Shop, Node, Node, Observer]) -> None:
    service, _, _, observer = shop
    service.stock.insert([("tea", 1), ("milk", 2)])
    service.stock.delete([("tea", 1)])
    figures = observer.figures()["seller"]
    assert figures is not None
    assert figures["tables"] == {"shop:stock": {"rows": 1, "changes": 2, "followers": 0}}
    assert figures["counters"]["changes"] == 2


def test_a_node_whose_workers_all_wait_still_tells_so(shop: tuple[Shop, Node, Node, Observer]) -> None:
    service, _, buyer, observer = shop
    calls = [buyer.call_async("shop", "wait", timeout=30) for _ in range(5)]

    def waiting() -> int:
        figures = observer.figures()["seller"]
        assert figures is not None
        return int(figures["gauges"]["requests_waiting"])

    for _ in range(1000):
        if waiting() == 3:
            break
    assert waiting() == 3
    service.open.set()
    for call in calls:
        call.result(10)


def test_no_endpoint_clashes_and_nobody_is_shown_the_method(shop: tuple[Shop, Node, Node, Observer]) -> None:
    _, seller, buyer, _ = shop
    assert buyer.call_node("seller", "hello") == "hello"
    assert is_figures(buyer.call_node("seller", "_dse_figures"))
    assert is_figures(buyer.call_node("buyer", "_dse_figures"))
    assert sorted(seller.endpoints) == ["hello"]
    with pytest.raises(NoSuchMethod, match=r"it has: hello$"):
        buyer.call_node("seller", "goodbye")
    with pytest.raises(NoSuchMethod):
        buyer.call("shop", "_dse_figures")


def test_a_node_that_has_nothing_to_tell_does_not_hold_up_the_others(shop: tuple[Shop, Node, Node, Observer]) -> None:
    _, seller, _, observer = shop
    seller.runtime.server.builtins = {}  # as a release before
    figures = observer.figures()
    assert figures["seller"] is None
    assert is_figures(figures["buyer"])


@pytest.mark.parametrize("seed", range(5))
def test_quantiles_are_exact_to_an_eighth(seed: int) -> None:
    chance = random.Random(seed)
    seconds = sorted(chance.lognormvariate(-7, 2) for _ in range(5000))
    traffic = Traffic()
    for each in seconds:
        traffic.took.append(each)
        if len(traffic.took) == 1000:
            traffic.served()
    for share in (0.1, 0.5, 0.9, 0.99):
        assert quantile(traffic.served(), share) == pytest.approx(seconds[int(share * 5000)], rel=0.125)


def test_what_nobody_looks_at_is_bounded() -> None:
    traffic = Traffic()
    for _ in range(3 * RECENT):
        traffic.took.append(0.001)
    assert sum(traffic.served().values()) == RECENT
    assert sum(traffic.served().values()) == RECENT


def test_the_ends_of_the_histogram_and_an_empty_one() -> None:
    assert quantile({0: 1}, 0.5) < EDGES[0]  # type: ignore[operator]
    assert quantile({len(EDGES): 1}, 0.5) == EDGES[-1]
    assert quantile({}, 0.5) is None
    assert quantile({3: 0, 4: -2, 10**6: 7}, 0.5) is None


@pytest.mark.parametrize("answer", [None, 5, [], {}, {"counters": {}, "gauges": [], "served": {}, "tables": {}}])
def test_other_answers_are_no_figures(answer: object) -> None:
    assert not is_figures(answer)
