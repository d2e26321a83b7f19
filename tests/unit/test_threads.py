"""The pool of threads: as many as are needed, and no more for long."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator

import pytest

from dse.core import threads
from dse.core.threads import Pool
from dse.testing.contract.recorder import eventually


@pytest.fixture
def name() -> str:
    return f"pool-{uuid.uuid4().hex}"


@pytest.fixture
def pool(name: str) -> Iterator[Pool]:
    pool = Pool(name, 50)
    yield pool
    pool.close(5.0)


def running(name: str) -> int:
    return sum(thread.name.startswith(name) for thread in threading.enumerate())


def busy_moment(pool: Pool, count: int) -> None:
    """Let so many jobs run at the same time."""
    together = threading.Barrier(count + 1)
    for _ in range(count):
        assert pool.submit(together.wait)
    together.wait(10.0)


def test_jobs_that_wait_for_each_other_all_run(pool: Pool) -> None:
    for _ in range(20):
        busy_moment(pool, 50)


def test_threads_of_a_busy_moment_end_although_jobs_keep_coming(
    pool: Pool, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "_IDLE", 0.5)
    busy_moment(pool, 20)
    ran = threading.Semaphore(0)

    def few_are_left() -> bool:
        pool.submit(ran.release)  # a job every few milliseconds, as heartbeats and timers are
        assert ran.acquire(timeout=5.0)
        return running(name) <= 2

    eventually(few_are_left, f"the pool shrinks; it has {running(name)} threads", 10.0)


def test_all_threads_end_when_nothing_comes(pool: Pool, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_IDLE", 0.2)
    busy_moment(pool, 10)
    eventually(lambda: running(name) == 0, "the threads end", 5.0)


def test_no_job_is_lost_when_threads_end_while_jobs_come(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_IDLE", 0.001)
    ran = threading.Semaphore(0)
    for turn in range(2000):
        pool.submit(ran.release)
        if turn % 3 == 0:
            time.sleep(0.001)  # about as long as a thread is kept
        assert ran.acquire(timeout=5.0), f"job {turn} did not run"


def test_a_closed_pool_finishes_what_waits_and_takes_no_more(name: str) -> None:
    pool = Pool(name, 1)
    ran: list[int] = []
    gate = threading.Event()
    pool.submit(lambda: ran.append(int(gate.wait(5.0))))
    for number in range(2, 12):
        pool.submit(lambda number=number: ran.append(number))  # type: ignore[misc]
    gate.set()
    assert pool.close(5.0)
    assert ran == list(range(1, 12))
    assert not pool.submit(lambda: None)
    assert running(name) == 0
