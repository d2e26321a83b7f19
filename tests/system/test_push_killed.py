"""A `push` source that is killed at any moment: what was answered is there, and what is there was pushed whole."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from dse import DataService, Node, ReplicaState
from dse.services.sources.push import Push

COLUMNS = {"batch": "int", "part": "int"}
PARTS = 50

# Pushes batch after batch and prints each that was answered.
PUSHER = """
import sys
from pathlib import Path
from dse import Node
from dse.services.sources.push import Push
tables = {"batches": {"columns": {"batch": "int", "part": "int"}}}
with Node("fake://killed", services=[Push("push", tables=tables, persist=Path(sys.argv[1]))]) as node:
    node.wait_for("push", 10.0)
    batch = int(sys.argv[2])
    while True:
        rows = [[batch, part] for part in range(int(sys.argv[3]))]
        node.call("push", "insert", {"table": "batches", "rows": rows})
        print(batch, flush=True)
        batch += 1
"""


def read_back(path: Path) -> dict[int, int]:
    """Return how many parts of each batch are there after a restart."""
    push = Push("push", tables={"batches": {"columns": COLUMNS}}, persist=path)
    reader = DataService("reader")
    found: dict[int, int] = {}
    with Node(f"fake://{uuid.uuid4().hex}", services=[push, reader]):
        replica = reader.subscribe("push", "batches")
        replica.wait(ReplicaState.LIVE, 10.0)
        for batch, _ in replica.rows:
            found[batch] = found.get(batch, 0) + 1
    return found


@pytest.mark.timeout(120)
def test_what_was_answered_outlives_kill_9_and_batches_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "rows.db"
    answered: set[int] = set()
    for turn in range(8):
        child = subprocess.Popen(
            [sys.executable, "-c", PUSHER, str(path), str(turn * 1_000_000), str(PARTS)], stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        try:
            heard = b""
            while heard.count(b"\n") < 3 + 5 * turn:
                assert select.select([child.stdout], [], [], 20.0)[0], "the pusher says nothing"
                more = os.read(child.stdout.fileno(), 4096)
                assert more, "the pusher ended by itself"
                heard += more
        finally:
            child.send_signal(signal.SIGKILL)
            heard += child.stdout.read()
            child.stdout.close()
            child.wait(20.0)
        answered.update(int(line) for line in heard.split(b"\n")[:-1])
        found = read_back(path)
        assert answered <= found.keys()
        assert set(found.values()) == {PARTS}
        assert len(found) - len(answered) <= turn + 1, "one at most a turn was stored and not answered"
