"""Frames into a whole node: no handler raises, whoever is honest is served, and what it publishes arrives."""

from __future__ import annotations

import atexit
import itertools

from dse.core.messages import MAJOR, MINOR, encode
from fuzz.draw import Draw, Exhausted
from fuzz.hostile import Site
from fuzz.recorded import FRAMES

SEEDS = [bytes([200, n % 5]) + frame for n, frame in enumerate(FRAMES)] + [
    bytes([start, *[start + 17 * step & 255 for step in range(200)]]) for start in range(0, 200, 9)
]
_EVERY = 200  # inputs between two looks whether all is well
_sites: list[Site] = []
_numbers = itertools.count(1)


def run(data: bytes) -> None:
    if not _sites:
        _sites.append(Site())
        atexit.register(_sites[0].close)
    site = _sites[0]
    honest, own = site.honest.runtime.instance, site.runtime.instance
    draw = Draw(data, ["s", "h", "u", "t", "honest", honest, own, "liar", "liar/1", "liar/2", "ping", "later"])
    try:
        if draw.byte() >= 200:
            site.tell(draw.byte(), bytes((MAJOR, MINOR)) + draw.take(1 << 20)[2:])
        else:
            while True:
                _tell(site, draw)
    except (Exhausted, UnicodeEncodeError, OverflowError):
        pass
    if next(_numbers) % _EVERY == 0:
        site.check()
    if site.raised:
        raise AssertionError(site.raised.pop(0))


def _tell(site: Site, draw: Draw) -> None:
    which = draw.byte()
    message = draw.message()
    # Who says to be the honest node, or the one under test, can end their lives: without keys that is how it is.
    if getattr(message, "node_id", None) not in ("honest", "under-test"):
        site.tell(which, encode(message))
