"""`dse demo` in several processes over the server that starts by itself, as ``make demo PROCESSES=1`` runs it."""

from __future__ import annotations

import re
import subprocess
import sys
import uuid

import psutil

from dse.testing.contract.recorder import eventually
from dse_nats.local import file_name


def test_the_demo_needs_no_broker_for_its_processes_and_leaves_none() -> None:
    name = f"demo-{uuid.uuid4().hex[:10]}"
    command = [sys.executable, "-m", "dse.cli.main", "demo", "--transport", f"nats+local://{name}", "--seconds", "6"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"four nodes in four processes, bus demo-{done.stdout.split(', bus demo-')[1][:4]}" in done.stdout
    assert re.search(r"call .* ms  door\.open\(declared=\w+\) -> \d+", done.stdout)
    assert re.search(r"table +host\.processes LIVE, \d+ rows", done.stdout)

    def gone() -> bool:
        lines = (" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"]))
        return not any(file_name(name) in line for line in lines)

    eventually(gone, "server and keeper have ended", 10)
