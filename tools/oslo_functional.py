"""oslo.messaging's own functional tests over DSE: oslo_functional.py [redis|fake|rabbit|nats|URL]…

Run by `make oslo-functional`, in an environment that has what those tests need. They are the ones that oslo.messaging
is installed with, unchanged: they patch the process with eventlet, and go by the transport URL. Here a private broker
is started for them. Two tests skip themselves by the scheme of the URL, although the driver does what they test: those
are told that it begins with theirs.

The run fails when a test fails that docs/oslo.md does not list with the reason, and when a listed one passes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MODULES = (
    "oslo_messaging.tests.functional.test_functional",
    "oslo_messaging.tests.functional.notify.test_logger",
)
LISTED = Path(__file__).parent.parent / "docs" / "oslo.md"
BY_SCHEME = ("test_mandatory_call", "test_monitor_long_call")
LONGEST = 60.0  # seconds for a test
PATIENCE = 300.0  # seconds for all tests of a worker
WORDS = {"passed": ".", "failed": "F", "skipped": "s"}


class AnyScheme(str):
    """A URL that begins with whatever it is asked for."""

    __slots__ = ()

    def startswith(self, *_: Any) -> bool:  # type: ignore[override]
        return "kafka" not in str(_)


class Outcomes(unittest.TestResult):
    """Says a line of JSON for each test."""

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        self.began = time.monotonic()

    def say(self, test: unittest.TestCase, outcome: str, why: str = "") -> None:
        name = test.id().removeprefix("oslo_messaging.tests.functional.")
        line = [name, outcome, round(time.monotonic() - self.began, 2), why]
        print(json.dumps(line), file=sys.__stdout__, flush=True)

    def addSuccess(self, test: unittest.TestCase) -> None:
        self.say(test, "passed")

    def addError(self, test: Any, err: Any = None, details: Any = None) -> None:
        self.say(test, "failed", self._exc_info_to_string(err, test) if err else _text(details))

    addFailure = addError

    def addSkip(self, test: unittest.TestCase, reason: str = "", details: Any = None) -> None:
        self.say(test, "skipped", reason or _text(details))


def _text(details: Any) -> str:
    return "\n".join(content.as_text() for content in (details or {}).values())


def tests_of(suite: Any) -> Iterator[Any]:
    for each in suite:
        if isinstance(each, unittest.TestSuite):
            yield from tests_of(each)
        else:
            yield each


def work(part: int, of: int) -> None:
    """Run every of-th test, beginning with the part-th."""
    import eventlet
    from oslo_messaging.tests.functional import utils

    set_up = utils.SkipIfNoTransportURL.setUp

    def claim(self: Any, *arguments: Any, **keywords: Any) -> None:
        set_up(self, *arguments, **keywords)
        if self.id().rpartition(".")[2] in BY_SCHEME:
            self.rpc_url = AnyScheme(self.rpc_url)

    utils.SkipIfNoTransportURL.setUp = claim
    result = Outcomes()
    chosen = list(tests_of(unittest.defaultTestLoader.loadTestsFromNames(MODULES)))[part::of]
    only = os.environ.get("OSLO_FUNCTIONAL_ONLY", "")
    for test in chosen:
        if only in test.id():
            with eventlet.Timeout(LONGEST):
                test.run(result)
    sys.stdout.flush()
    os._exit(0)


@contextlib.contextmanager
def served(kind: str) -> Iterator[str]:
    """The URL of a broker for the tests, a private one unless it is named."""
    if kind == "fake":
        yield "dse+fake://functional"
    elif kind in ("redis", "rabbit"):
        from dse.testing.brokers import rabbit_broker, redis_broker

        with redis_broker() if kind == "redis" else rabbit_broker() as broker:
            yield f"dse+{broker.direct_url}"
    elif kind == "nats":
        yield f"dse+nats+local://functional-{os.getpid()}"
    elif "://" in kind:
        yield kind
    else:
        raise SystemExit(f"no broker {kind!r}: it is redis, fake, rabbit or nats, or a URL such as dse+redis://host/0")


def run(url: str, workers: int) -> tuple[dict[str, tuple[str, float, str]], list[str]]:
    """Run all tests; return what became of each, and what went wrong otherwise."""
    found: dict[str, tuple[str, float, str]] = {}
    broken: list[str] = []
    environment = {**os.environ, "RPC_TRANSPORT_URL": url, "NOTIFY_TRANSPORT_URL": url}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"  # one test starts python3
    with contextlib.ExitStack() as ends:
        processes = []
        for part in range(workers):
            said = ends.enter_context(tempfile.TemporaryFile("w+"))
            process = subprocess.Popen(
                [sys.executable, "-W", "ignore", __file__, "--worker", f"{part}/{workers}"],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                start_new_session=True,
            )
            ends.callback(_end, process)  # with what a test that failed has started and not ended
            processes.append((process, said))
        for process, said in processes:
            try:
                lines, _ = process.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                lines, _ = process.communicate()
                broken.append(f"a worker did not finish within {PATIENCE:g} s")
            if process.returncode:
                said.seek(0)
                broken.append(f"a worker ended with {process.returncode}: {said.read()[-2000:]}")
            for line in lines.splitlines():
                if line.startswith("["):
                    name, outcome, seconds, why = json.loads(line)
                    if name not in found or outcome == "failed":
                        found[name] = (outcome, seconds, why)
    return found, broken


def _end(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def listed() -> dict[str, str]:
    """Return the tests that docs/oslo.md lists, with the reason."""
    rows = re.findall(r"^\| `([\w.]+\.test_\w+(?:\(.*?\))?)` \| (.+) \|$", LISTED.read_text(), re.MULTILINE)
    return dict(rows)


def judge(kind: str, found: dict[str, tuple[str, float, str]], known: dict[str, str]) -> list[str]:
    """Say what became of the tests; return what is wrong with that."""
    wrong = []
    for name, (outcome, seconds, why) in sorted(found.items()):
        reason = known.get(name.partition(".")[2].removeprefix("test_logger."))
        print(f"  {outcome:8}{seconds:7.1f} s  {name}{f'  ({reason})' if reason and outcome != 'passed' else ''}")
        if outcome == "passed" and reason:
            wrong.append(f"{name} passes, and docs/oslo.md says that it cannot")
        elif outcome != "passed" and not reason:
            wrong.append(f"{name} is {outcome}, and docs/oslo.md does not list it:\n{why}")
    counts = Counter(outcome for outcome, _, _ in found.values())
    print(f"{kind}: " + ", ".join(f"{counts[word]} {word}" for word in WORDS) + f" of {len(found)}", flush=True)
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("brokers", nargs="*", default=["redis"])
    parser.add_argument("--workers", type=int, default=2, help="processes at once (2)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work(*map(int, given.worker.split("/")))
    wrong: list[str] = []
    for kind in given.brokers:
        began = time.monotonic()
        with served(kind) as url:
            print(f"oslo.messaging's functional tests over {re.sub('//.*@', '//', url)}", flush=True)
            found, broken = run(url, given.workers)
        wrong += broken + judge(kind, found, listed())
        print(f"{kind}: {time.monotonic() - began:.0f} s", flush=True)
    for each in wrong:
        print(f"\n{each}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
