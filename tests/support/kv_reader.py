"""A process that pulls without end, to be stopped or killed in the middle of it. Prints "pulling" once it does.

Run as ``python -m tests.support.kv_reader KIND ENDPOINT``: "nixl" or "relay", and the endpoint as base64 of msgpack.
"""

from __future__ import annotations

import base64
import sys
import time

import msgspec
import numpy as np

from ghostcacher_connector.transfer.base import PullOutcome, PullRequest, Transport
from ghostcacher_connector.transfer.nixl import NixlTransport
from ghostcacher_connector.transfer.relay.client import RelayTransport
from ghostcacher_connector.types import RankEndpoint
from tests.support.kv_memory import KvMemory


def main() -> None:
    peer = msgspec.msgpack.decode(base64.b64decode(sys.argv[2]), type=RankEndpoint)
    memory = KvMemory(peer.slot_count, len(peer.segments), peer.segments[0].slot_bytes)
    transport: Transport
    if sys.argv[1] == "relay":
        transport = RelayTransport(memory.rank, token="secret")
    else:
        transport = NixlTransport(memory.rank, memory.table, name="doomed")
    slots = np.arange(peer.slot_count, dtype=np.int64)
    generations = np.zeros(peer.slot_count, dtype=np.uint64)
    said = False
    while True:
        result = transport.pull(PullRequest(peer, slots, slots, generations, time.monotonic() + 10.0))
        assert result.outcome is PullOutcome.DONE, result
        if not said:
            print("pulling", flush=True)
            said = True


if __name__ == "__main__":
    main()
