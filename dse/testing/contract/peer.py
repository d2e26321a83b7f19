"""A transport in a process of its own, driven over pipes: `Peer` is this side, ``main`` the other one.

A request is one line of JSON on the child's stdin, its answer one line on the child's stdout. The child's stderr is the
test's own.
"""

from __future__ import annotations

import base64
import importlib
import json
import sys
import threading
from collections.abc import Sequence
from typing import Any

from dse.core.transport import Address, Delivery, Transport
from dse.testing.contract.recorder import DEADLINE, Client
from dse.testing.piped import PipedProcess

__all__ = ["Peer", "class_name", "load_class"]

_PATIENCE = DEADLINE + 5


def class_name(driver: type[Transport]) -> str:
    """Return the ``module:qualname`` by which another process finds a driver."""
    return f"{driver.__module__}:{driver.__qualname__}"


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
        self._process = PipedProcess("dse.testing.contract.peer", class_name(driver), url, bus)
        _result(self._process.answer(_PATIENCE))

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

    def _ask(self, do: str, addresses: Sequence[Address], **more: object) -> Any:
        where = [[a.delivery.value, a.name] for a in addresses]
        return _result(self._process.ask(json.dumps({"do": do, "addresses": where, **more}), _PATIENCE))


def _result(line: str) -> Any:
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
