"""Every fuzzer, shortly: what broke something once, what it begins with, and some thousand inputs of hypothesis'."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent.parent))

from fuzz.engine import CORPUS, NAMES, Watched, corpus_of, load

_NEEDS = {"redis": "redis", "amqp": "kombu", "oslo": "oslo_messaging", "nats": "dse_nats", "rules": "sqlglot"}
_NEEDS_ALL = {"urls": ("redis", "kombu", "oslo_messaging", "dse_nats")}
EXAMPLES = 150
PATIENCE = 1.0  # seconds that an input may take where much else runs; `make fuzz` allows a tenth


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    """What a target keeps from input to input, nodes and its hold on the log, ends with its test."""
    logs = {name: logging.getLogger(name) for name in ("dse.transport", "sqlglot")}
    levels = {name: log.level for name, log in logs.items()}
    yield
    for name, log in logs.items():
        log.setLevel(levels[name])
    for name in [name for name in sys.modules if name.startswith("fuzz.targets.")]:
        sites = getattr(sys.modules[name], "_sites", None)
        while sites:
            sites.pop().close()


def target(name: str) -> Watched:
    for module in (*_NEEDS_ALL.get(name, ()), *([_NEEDS[name]] if name in _NEEDS else ())):
        pytest.importorskip(module)
    return Watched(load(name).run, PATIENCE)


@pytest.mark.parametrize("name", NAMES)
def test_what_broke_it_once_breaks_it_no_more(name: str) -> None:
    watched = target(name)
    for data in (*corpus_of(name), *load(name).SEEDS):
        watched(data)


@pytest.mark.parametrize("name", NAMES)
def test_any_bytes_are_taken(name: str) -> None:
    watched = target(name)
    seeds = load(name).SEEDS
    changed = st.tuples(st.sampled_from(seeds), st.integers(0, 300), st.binary(max_size=8), st.integers(0, 8)).map(
        lambda drawn: drawn[0][: drawn[1]] + drawn[2] + drawn[0][drawn[1] + drawn[3] :]
    )

    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.binary(max_size=300) | changed)
    def whatever(data: bytes) -> None:
        watched(data)

    whatever()


def test_every_input_that_is_kept_belongs_to_a_fuzzer() -> None:
    if CORPUS.is_dir():
        assert {folder.name for folder in CORPUS.iterdir()} <= set(NAMES)
