"""A transport in a process of its own, driven over pipes: `Peer` is this side, ``main`` the other one.

A request is one line of JSON on the child's stdin, its answer one line on the child's stdout. The child's stderr is the
test's own.
"""

from __future__ import annotations

import base64
import importlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

from dse.core.transport import Address, Delivery, Transport
from dse.testing.contract.recorder import DEADLINE, Client

__all__ = ["Peer", "load_class", "run_module"]


def run_module(module: str, driver: type[Transport], *arguments: str) -> subprocess.Popen[str]:
    """Start ``python -m module driver arguments…`` with this process's import path, and pipes."""
    return subprocess.Popen(
        [sys.executable, "-m", module, f"{driver.__module__}:{driver.__qualname__}", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )


def load_class(name: str) -> type[Transport]:
    """Return the class that ``module:qualname`` names."""
    module, _, qualname = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in qualname.split("."):
        found = getattr(found, part)
    driver: type[Transport] = found
    return driver


class Peer:
    """Another process with an open transport; its methods fail the test when the process does not answer."""

    def __init__(self, driver: type[Transport], url: str, bus: str) -> None:
        self._process = run_module("dse.testing.contract.peer", driver, url, bus)
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="contract-peer", daemon=True).start()
        self._answer()

    @property
    def pid(self) -> int:
        return self._process.pid

    def listen(self, *addresses: Address) -> None:
        self._ask("listen", addresses)

    def unlisten(self, *addresses: Address) -> None:
        self._ask("unlisten", addresses)

    def send(self, address: Address, *frames: bytes, ttl: float | None = None) -> None:
        self._ask("send", [address], frames=[base64.b64encode(frame).decode() for frame in frames], ttl=ttl)

    def echo(self, address: Address, to: Address) -> None:
        """Listen to an address, and send what comes on to another."""
        self._ask("echo", [address, to])

    def block(self) -> None:
        """Let the handler of the next frame never return."""
        self._ask("block", [])

    def wait_count(self, count: int, *addresses: Address) -> None:
        self._ask("wait", addresses, count=count)

    def frames(self, address: Address) -> list[bytes]:
        return [base64.b64decode(frame) for frame in self._ask("frames", [address])]

    def returned(self, address: Address) -> list[bytes]:
        return [base64.b64decode(frame) for frame in self._ask("returned", [address])]

    def close(self) -> None:
        """Close the transport; the process goes on until `kill`."""
        self._ask("close", [])

    def kill(self) -> None:
        """Kill the process (SIGKILL), if it still runs, and wait until it is gone."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None and pipe is not self._process.stdout:
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as pipe:
            for line in pipe:
                self._answers.put(line)
        self._answers.put("")

    def _ask(self, do: str, addresses: Sequence[Address], **more: object) -> Any:
        assert self._process.stdin is not None
        where = [[a.delivery.value, a.name] for a in addresses]
        print(json.dumps({"do": do, "addresses": where, **more}), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        try:
            line = self._answers.get(timeout=DEADLINE + 5)
        except queue.Empty:
            raise AssertionError("the peer process does not answer") from None
        if not line:
            raise AssertionError(f"the peer process ended (status {self._process.wait()})")
        answer = json.loads(line)
        if "failed" in answer:
            raise AssertionError(f"in the peer process: {answer['failed']}")
        return answer["result"]


def main(driver: str, url: str, bus: str) -> None:
    client = Client(load_class(driver), url, bus)
    client.open()
    print(json.dumps({"result": None}), flush=True)
    for line in sys.stdin:
        try:
            answer = {"result": _carry_out(client, json.loads(line))}
        except Exception as error:
            answer = {"failed": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


def _carry_out(client: Client, request: dict[str, Any]) -> Any:
    addresses = [Address(Delivery(delivery), name) for delivery, name in request["addresses"]]
    match request["do"]:
        case "listen":
            client.listen(*addresses)
        case "unlisten":
            client.unlisten(*addresses)
        case "send":
            for frame in request["frames"]:
                client.send(addresses[0], base64.b64decode(frame), request["ttl"])
        case "echo":
            source, target = addresses
            client.on_frame = lambda where, frame: client.send(target, frame) if where == source else None
            client.listen(source)
        case "block":
            never = threading.Event()
            client.on_frame = lambda where, frame: void(never.wait())
        case "wait":
            client.wait_count(request["count"], *addresses)
        case "frames":
            return [base64.b64encode(frame).decode() for frame in client.frames(addresses[0])]
        case "returned":
            return [base64.b64encode(frame).decode() for frame in client.returned(addresses[0])]
        case "close":
            client.close()
        case unknown:
            raise ValueError(f"nobody knows how to {unknown}")
    return None


def void(_: object) -> None:
    """Make nothing of a value."""


if __name__ == "__main__":
    main(*sys.argv[1:])
