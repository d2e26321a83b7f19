"""A frame of every message, as nodes send them: what mutation begins with.

`FRAMES` are made of what the messages declare. `python -m fuzz.frames` records more from nodes at work.
"""

from __future__ import annotations

from msgspec import Raw, msgpack

from dse.core.info import DataServiceInfo, MethodInfo
from dse.core.messages import (
    Accepted,
    Catalogue,
    CatalogueRequest,
    CatchUp,
    ChangeMessage,
    Changes,
    Clash,
    Failure,
    Heartbeat,
    Leave,
    NoTable,
    Probe,
    Renew,
    Reply,
    Request,
    SnapshotBegin,
    SnapshotChunk,
    SnapshotCredit,
    SyncRequest,
    Tip,
    UnknownCall,
    Unsubscribe,
    encode,
    encode_body,
)

__all__ = ["FRAMES"]

_info = DataServiceInfo("s", "n", {"t": ("a", "b")}, (("u", "v"),), {"m": MethodInfo("(a: int)", "Does.", True)})
_rows = frozenset({(1, "a"), (2, None), (2.5, True)})
_change = ChangeMessage("epoch", 1, _rows, frozenset({(b"b", -1)}), 7, 9)
FRAMES = [
    encode(message)
    for message in (
        Heartbeat("n", "n/1", 1.5, 1.0, 3, True),
        Leave("n", "n/1"),
        Clash("n", "n/1", "n/2", False),
        CatalogueRequest("n/1", True),
        Catalogue("n", "n/1", 1.0, 1.0, 2, [_info.to_dict()], ["ping"]),
        Request(5, "n/1", "n", "s", "m", Raw(msgpack.encode({"a": 1})), 5.0, True, {"trace": "id"}),
        Reply(5, Raw(msgpack.encode([1, "x", {"k": 2.5}]))),
        Failure(5, "RemoteError", "text", "module.Type", "traceback", msgpack.encode(["a", 1])),
        Accepted(5, "n/1", "n"),
        Probe(5, "n/1"),
        UnknownCall(5, "n/1"),
        SyncRequest("s", "t", "n/1", 1 << 32, "epoch", 4),
        _change,
        CatchUp(1 << 32, "epoch", ("a", "b"), [Raw(encode_body(_change))], 1, 5),
        SnapshotBegin(1 << 32, "epoch", ("a", "b"), 3, 3, 5),
        SnapshotChunk(1 << 32, 0, _rows),
        SnapshotCredit("s", "t", "n/1", 1 << 32, 1),
        Tip("epoch", 1, 2**64 - 1, "s", "t"),
        NoTable(1 << 32),
        Unsubscribe("s", "t", "n/1"),
        Renew("n/1", [("s", "t", "epoch", 5)]),
        Changes([_change, ChangeMessage("epoch", 2, frozenset(), _rows)]),
    )
]
