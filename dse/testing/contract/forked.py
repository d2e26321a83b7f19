"""A process that forks while it has an open transport, and prints what its child and it itself could still do.

Run as ``python -m dse.testing.contract.forked DRIVER URL BUS``; prints one line of JSON. A process of its own, because
the test's process has other threads that must not be forked.
"""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import Callable

from dse.core.transport import Address, ConnectionState, Delivery
from dse.errors import TransportUnavailable
from dse.testing.contract.peer import load_class
from dse.testing.contract.recorder import Client

__all__ = ["main"]


def main(driver: str, url: str, bus: str) -> None:
    load = load_class(driver)
    listener, sender = Client(load, url, bus), Client(load, url, bus)
    addresses = [Address(delivery, uuid.uuid4().hex) for delivery in Delivery]
    for client in (listener, sender):
        client.open()
    listener.listen(*addresses)
    for where in addresses:
        sender.mark(where, listener)
    events = listener.events, sender.events
    report, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(report)
        answer = _in_child(listener, addresses[0])
        # Anything the interpreter does to an inherited transport at a normal exit happens here: finalizers, atexit.
        os.write(tell, json.dumps(answer).encode())
        os.close(tell)
        del listener, sender, client
        sys.exit(0)
    os.close(tell)
    with os.fdopen(report) as pipe:
        answer = json.loads(pipe.read() or "{}")
    _, status = os.waitpid(child, 0)
    result = {"child": answer, "status": os.waitstatus_to_exitcode(status)}
    try:
        for _ in range(3):
            for where in addresses:
                sender.mark(where, listener)
        new = Address(Delivery.DIRECT, uuid.uuid4().hex)
        listener.listen(new)
        sender.mark(new, listener)
        result["parent"] = "goes on"
    except (AssertionError, TransportUnavailable) as error:
        result["parent"] = repr(error)
    result["lost"] = [client.states.count(ConnectionState.DISCONNECTED) for client in (listener, sender)]
    result["events"] = [*events]
    listener.close()
    sender.close()
    print(json.dumps(result), flush=True)


def _in_child(client: Client, where: Address) -> dict[str, str]:
    """Try to use the inherited transport; return what came of it."""
    before = client.events
    attempts: dict[str, Callable[[], object]] = {
        "send": lambda: client.send(where, b"from the child"),
        "listen": lambda: client.listen(Address(Delivery.DIRECT, "of the child")),
        "unlisten": lambda: client.unlisten(where),
        "open": client.open,
    }
    answer = {}
    for name, attempt in attempts.items():
        try:
            attempt()
        except Exception as error:
            answer[name] = type(error).__name__
        else:
            answer[name] = "works"
    try:
        client.close()  # what a `finally` of the parent's code would do; must not touch the parent's connection
    except TransportUnavailable:
        pass
    answer["events"] = str(client.events - before)
    return answer


if __name__ == "__main__":
    main(*sys.argv[1:])
