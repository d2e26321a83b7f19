"""oslo.messaging over DSE in a program that eventlet has monkey-patched."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import eventlet
eventlet.monkey_patch()

import concurrent.futures
import json
import logging
import socket
import sys
import threading
import time

import eventlet.green.socket
import futurist
from eventlet import patcher

sys.path.insert(0, sys.argv[1])
import dse.core.connection
from oslo_programs import Audience, Endpoint, Programs, soon

native = patcher.original("threading")
names = ("dse", "dse.core.connection", "threading", "socket", "ssl", "select", "os")
modules = {name: sys.modules[name] for name in names}
futures = set(vars(concurrent.futures))

said = []
class Said(logging.Handler):
    def emit(self, record):
        said.append((native.get_ident(), record.getMessage()))
logging.getLogger().addHandler(Said())

made = Programs("dse+fake://a")
for name in "abc":
    made.server(Endpoint(name), name)
client = made.client()

# Coroutines call at once, and others go on meanwhile.
ticks = []
def tick():
    while len(ticks) < 1000:
        ticks.append(time.monotonic())
        eventlet.sleep(0.01)
eventlet.spawn(tick)
pool = eventlet.GreenPool()
began = time.monotonic()
assert list(pool.imap(lambda _: client.call({}, "last", seconds=0.4), range(30))) == ["done"] * 30
assert time.monotonic() - began < 5
assert len(ticks) > 10

# So does a real thread, which the program has nevertheless.
answers = []
thread = native.Thread(target=lambda: answers.append(client.call({}, "who")))
thread.start()
soon(lambda: answers)
thread.join()

try:
    client.call({}, "fail", error="value")
except ValueError:
    answers.append("failed")

made.listener(audience := Audience(), pool="p")
made.notifier().info({}, "event", 1)
soon(lambda: audience.heard)

# What DSE logs from its own threads is logged by the program's.
transport = client.transport._driver._connection.port._transport
private = next(each for each in type(transport).__mro__ if each.__name__ == "BrokerTransport")
private.__init__.__globals__["_log"].warning("from %s", "below")
soon(lambda: any(message == "from below" for _, message in said))
assert {ident for ident, _ in said} == {native.main_thread().ident}

made.close()
soon(lambda: not [thread for thread in native.enumerate() if thread.name.startswith("dse-")])

# The program's own modules are what they were.
assert all(sys.modules[name] is module for name, module in modules.items())
assert socket.socket is eventlet.green.socket.socket
assert dse.core.connection is modules["dse.core.connection"]
assert private is not dse.core.connection.BrokerTransport
assert set(vars(concurrent.futures)) == futures
with concurrent.futures.ThreadPoolExecutor(2) as threads:
    assert threads.submit(eventlet.getcurrent).result(timeout=5) is not eventlet.getcurrent()
print(json.dumps(answers))
"""


def test_coroutines_and_real_threads_call_serve_and_listen_and_the_program_stays_as_it_was() -> None:
    command = [sys.executable, "-c", PROGRAM, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout)
    assert first in {"a", "b", "c"}
    assert second == "failed"
