"""The broker of the driver that a test makes of the skeleton: one process that passes frames between TCP connections.

Run as ``python broker.py PORT``. A message is a head (`HEAD`: how many bytes follow, its kind, a number, the length of
the name in bytes), a name and data. Names begin with the letter of their delivery; each bus has names of its own.

| kind | from a client | to a client |
| --- | --- | --- |
| HELLO | name: its bus | |
| LISTEN, UNLISTEN | name | |
| LEAVE | listens no more to anything | |
| FRAME | name, data | the same, number: whose it is |
| BACK | name, data, number: a frame that it does not want | name, data: of a frame that nobody wants |
| PING | number | the same: all that came before it is done |
| LOOK | name: a bus | data: JSON, what there is of that bus |
"""

from __future__ import annotations

import asyncio
import itertools
import json
import struct
import sys

__all__ = ["BACK", "FRAME", "HEAD", "HELLO", "LEAVE", "LISTEN", "LOOK", "PING", "UNLISTEN", "message", "take"]

HEAD = struct.Struct(">IBQI")
HELLO, LISTEN, UNLISTEN, LEAVE, FRAME, BACK, PING, LOOK = range(8)

_LONGEST = 16 * 2**20  # bytes of a message
_MOST_WAITING = 64 * 2**20  # bytes for a client that does not read them; then it is cut off

_numbers = itertools.count(1)

Message = tuple[int, int, str, bytes]  # kind, number, name, data


def message(kind: int, number: int = 0, name: str = "", data: bytes = b"") -> bytes:
    """Return a message as bytes."""
    text = name.encode("utf-8", "surrogatepass")
    return HEAD.pack(HEAD.size - 4 + len(text) + len(data), kind, number, len(text)) + text + data


def take(received: bytearray) -> Message | None:
    """Take the first message out of what was received, if it is there as a whole."""
    if len(received) < HEAD.size:
        return None
    size, kind, number, length = HEAD.unpack_from(received)
    if not HEAD.size - 4 + length <= size <= _LONGEST:
        raise ConnectionError("the other side does not speak this protocol")
    if len(received) < size + 4:
        return None
    name, data = received[HEAD.size : HEAD.size + length], received[HEAD.size + length : size + 4]
    del received[: size + 4]
    return kind, number, name.decode("utf-8", "surrogatepass"), bytes(data)


class Client(asyncio.Protocol):
    """One connection. clients: all of them, by number. places: who listens, by bus and name."""

    def __init__(self, clients: dict[int, Client], places: dict[tuple[str, str], list[Client]]) -> None:
        self._clients, self._places = clients, places
        self._received = bytearray()
        self._names: set[str] = set()
        self.number = next(_numbers)
        self.bus = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._clients[self.number] = self

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        del self._clients[self.number]

    def data_received(self, data: bytes) -> None:
        self._received += data
        try:
            while (received := take(self._received)) is not None:
                self._obey(*received)
        except ConnectionError:
            self._transport.abort()

    def tell(self, kind: int, number: int, name: str, data: bytes) -> None:
        if self._transport.get_write_buffer_size() > _MOST_WAITING:
            self._transport.abort()
        self._transport.write(message(kind, number, name, data))

    def _obey(self, kind: int, number: int, name: str, data: bytes) -> None:
        if kind == HELLO:
            self.bus = name
        elif kind == LISTEN and name not in self._names:
            self._names.add(name)
            self._places.setdefault((self.bus, name), []).append(self)
        elif kind == UNLISTEN and name in self._names:
            self._forget(name)
        elif kind == LEAVE:
            self._leave()
        elif kind == FRAME:
            self._pass_on(self.number, name, data)
        elif kind == BACK:
            self._pass_on(number, name, data)
        elif kind == PING:
            self.tell(PING, number, "", b"")
        elif kind == LOOK:
            found = [f"connection {each.number}" for each in self._clients.values() if each.bus == name]
            found += [f"listener of {place!r}" for bus, place in self._places if bus == name]
            self.tell(LOOK, 0, "", json.dumps(found).encode())

    def _pass_on(self, sender: int, name: str, data: bytes) -> None:
        listeners = self._places.get((self.bus, name), [])
        if name.startswith("f"):
            for each in list(listeners):
                each.tell(FRAME, sender, name, data)
        elif listeners:
            listeners.append(listeners.pop(0))  # the next one in turn
            listeners[-1].tell(FRAME, sender, name, data)
        elif sender in self._clients:
            self._clients[sender].tell(BACK, 0, name, data)

    def _forget(self, name: str) -> None:
        self._names.discard(name)
        listeners = self._places[self.bus, name]
        listeners.remove(self)
        if not listeners:
            del self._places[self.bus, name]

    def _leave(self) -> None:
        for name in list(self._names):
            self._forget(name)


async def serve(port: int) -> None:
    clients: dict[int, Client] = {}
    places: dict[tuple[str, str], list[Client]] = {}
    server = await asyncio.get_running_loop().create_server(lambda: Client(clients, places), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
