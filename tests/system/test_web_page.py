"""The page of the web gateway, driven in a real browser: Chromium of the distribution, over a real broker.

``DSE_SCREENSHOTS=docs/web`` keeps the pictures that the documentation shows.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dse.testing.brokers import Broker

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

HERE = Path(__file__).parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SCREENSHOTS = os.environ.get("DSE_SCREENSHOTS")
DEADLINE = 30_000  # ms
# Without these it asks its maker's servers for this and that at every start.
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

pytestmark = [
    pytest.mark.chromium,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (make brokers)"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that fails its test at the end when anything in it failed."""
    context = browser.new_context(viewport={"width": 1280, "height": 860}, reduced_motion="reduce")
    page = context.new_page()
    page.set_default_timeout(DEADLINE)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()
    assert errors == []


class Process:
    """A child process that is told things by stdin and ended for certain."""

    def __init__(self, *command: str) -> None:
        self.child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def say(self, added: list[Any], removed: list[Any] | None = None) -> None:
        """Have rows come, and these go; None: all others."""
        assert self.child.stdin is not None
        self.child.stdin.write(json.dumps([added, removed]) + "\n")
        self.child.stdin.flush()

    def kill(self, number: int = signal.SIGKILL) -> None:
        self.child.send_signal(number)
        self.child.wait(30)

    def close(self) -> None:
        if self.child.poll() is None:
            self.child.kill()
        self.child.communicate(timeout=30)


class World:
    """A bus with two nodes and a gateway, each a process."""

    def __init__(self, broker: Broker) -> None:
        self.url, self.bus = broker.url, f"page-{uuid.uuid4().hex[:8]}"
        with socket.socket() as free:
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.shop = self.child("shop")
        self.auditor = self.child("auditor")
        self.gateway: Process | None = None
        self.open_gateway()

    @property
    def page(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def child(self, kind: str) -> Process:
        child = Process(sys.executable, str(HERE / "web_child.py"), kind, self.url, self.bus)
        assert child.child.stdout is not None
        assert child.child.stdout.readline() == "ready\n"
        return child

    def open_gateway(self) -> None:
        if self.gateway is not None:
            self.gateway.close()
        where = ["--transport", self.url, "--bus", self.bus, "--port", str(self.port)]
        self.gateway = Process(sys.executable, "-m", "dse.cli.main", "web", *where, "--allow", "shop.price")
        assert self.gateway.child.stderr is not None
        line = self.gateway.child.stderr.readline()
        assert "until Ctrl-C" in line, line + self.gateway.child.stderr.read()

    def close(self) -> None:
        for each in (self.gateway, self.shop, self.auditor):
            if each is not None:
                each.close()


@pytest.fixture(scope="module")
def world(redis_server: Broker) -> Iterator[World]:
    with contextlib.closing(World(redis_server)) as made:
        yield made


@pytest.fixture
def mortal(redis_server: Broker) -> Iterator[World]:
    """A world of the test's own, for it breaks it."""
    with contextlib.closing(World(redis_server)) as made:
        yield made


def shoot(page: Any, name: str) -> None:
    if SCREENSHOTS:
        Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png")


def expect(where: Any) -> Any:
    sync_api.expect.set_options(timeout=DEADLINE)
    return sync_api.expect(where)


def test_rows_come_and_go_before_ones_eyes(world: World, page: Any) -> None:
    world.shop.say([["pear", 3], ["fig", 1]])
    page.goto(f"{world.page}#/tables/shop/stock")
    expect(page.locator("tbody tr td:has-text('pear')")).to_be_visible()
    expect(page.get_by_role("columnheader", name="article")).to_have_attribute("aria-sort", "ascending")
    # Text stays text, whatever it holds.
    world.shop.say([["<img src=x onerror=alert(1)>", 1]], [])
    expect(page.get_by_text("<img src=x onerror=alert(1)>")).to_be_visible()
    assert page.locator("tbody img").count() == 0
    came = page.locator("tr.came", has_text="<img")
    expect(came).to_be_visible()
    shoot(page, "table")
    world.shop.say([], [["fig", 1]])
    expect(page.get_by_text("fig", exact=True)).to_have_count(0)
    expect(page.get_by_text("2 rows", exact=True)).to_be_visible()


def test_a_gateway_that_dies_is_missed_and_found_again_with_what_came_meanwhile(mortal: World, page: Any) -> None:
    world = mortal
    world.shop.say([["pear", 3]])
    page.goto(f"{world.page}#/tables/shop/stock")
    expect(page.get_by_role("cell", name="pear")).to_be_visible()
    assert world.gateway is not None
    world.gateway.kill()
    expect(page.locator("#connection")).to_contain_text("No connection to the gateway")
    world.shop.say([["quince", 9]], [["pear", 3]])
    world.open_gateway()
    expect(page.locator("#connection")).to_contain_text("live, 2 nodes")
    expect(page.get_by_role("cell", name="quince")).to_be_visible()
    expect(page.get_by_role("cell", name="pear")).to_have_count(0)


def test_a_method_is_called_from_its_form(world: World, page: Any) -> None:
    page.goto(f"{world.page}#/methods")
    form = page.get_by_role("form", name="Call shop.price")
    form.get_by_label("article").fill("pear")
    form.get_by_label("count").fill("many")
    form.get_by_role("button", name="Call price").click()
    expect(form.get_by_text('count: "many" is no int')).to_be_visible()
    form.get_by_label("count").fill("4")
    form.get_by_label("rush").select_option("true")
    form.get_by_role("button", name="Call price").click()
    expect(form.locator("pre.result")).to_have_text("12")
    shoot(page, "methods")
    assert page.get_by_role("button", name="close_down").count() == 0


def test_a_killed_node_turns_suspect_and_dead(mortal: World, page: Any) -> None:
    world = mortal
    page.goto(world.page)
    node = page.locator("g.node[data-node='auditor-1']")
    expect(node).to_have_class("node JOINED")
    world.shop.say([["pear", 3]])
    expect(page.locator("path.edge")).to_have_count(1)
    shoot(page, "bus")
    world.auditor.kill()
    expect(node).to_have_class("node SUSPECT")
    shoot(page, "suspect")
    expect(node).to_have_class("node DEAD")
    expect(page.locator("ol.timeline")).to_contain_text("auditor-1 is silent: SUSPECT")
    expect(page.locator("ol.timeline")).to_contain_text("auditor-1 is taken for DEAD")
    shoot(page, "dead")


def test_policies_and_what_they_find(mortal: World, page: Any) -> None:
    policy = mortal.child("policy")
    try:
        mortal.shop.say([["pear", 3], ["fig", 1]])
        page.goto(f"{mortal.page}#/policies")
        rules = page.get_by_label("Table policy:rules")
        expect(rules.get_by_role("cell", name="scarce", exact=True)).to_be_visible()
        found = page.get_by_label("Table care:scarce")
        expect(found.get_by_role("cell", name="fig")).to_be_visible()
        mortal.shop.say([["pear", 1]], [["pear", 3], ["fig", 1]])
        expect(found.get_by_role("cell", name="pear")).to_be_visible()
        expect(found.get_by_role("cell", name="fig")).to_have_count(0)
    finally:
        policy.close()


def test_it_is_used_with_the_keyboard_alone(world: World, page: Any) -> None:
    world.shop.say([["pear", 3]])
    page.goto(world.page)
    expect(page.locator("g.node")).to_have_count(2)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    reached = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.dataset.node ?? document.activeElement.textContent"))
    assert {"Bus", "Tables", "Methods", "Policies", "shop-1", "auditor-1"} <= reached
    page.get_by_role("link", name="Tables").press("Enter")
    page.get_by_role("link", name="shop:stock").press("Enter")
    head = page.get_by_role("button", name="count")
    head.press("Enter")
    expect(page.get_by_role("columnheader", name="count")).to_have_attribute("aria-sort", "ascending")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_both_schemes(world: World, page: Any, scheme: str) -> None:
    world.shop.say([["pear", 3]])
    page.set_viewport_size({"width": 360, "height": 740})
    page.emulate_media(color_scheme=scheme)
    for view in ("#/bus", "#/tables/shop/stock", "#/methods", "#/policies"):
        page.goto(f"{world.page}{view}")
        expect(page.get_by_role("heading", level=2).first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, view
    ink, ground = page.evaluate(
        "[getComputedStyle(document.documentElement).color, getComputedStyle(document.documentElement).backgroundColor]"
    )
    assert contrast(ink, ground) > 7
    page.goto(f"{world.page}#/bus")
    expect(page.locator("g.node")).to_have_count(2)
    shoot(page, f"phone-{scheme}")


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours (https://www.w3.org/TR/WCAG21/#dfn-contrast-ratio)."""

    def luminance(colour: str) -> float:
        parts = [int(each) / 255 for each in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_it_asks_nobody_else_for_anything(world: World, page: Any) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(world.page)
    expect(page.locator("g.node")).to_have_count(2)
    assert [url for url in asked if not url.startswith((world.page, "data:"))] == []
