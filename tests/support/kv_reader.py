"""Readers that pull without end, to be stopped or killed in the middle of it.

Run as ``python -m tests.support.kv_reader KIND ENDPOINT``: "nixl" or "relay", and the endpoint as base64 of msgpack.
Each line of input forks a reader (much cheaper than a new interpreter), which prints "pulling PID" once it has
pulled. The end of input ends the parent; its readers are the caller's to kill.
"""

from __future__ import annotations

import base64
import importlib
import os
import signal
import sys
import time

import msgspec
import numpy as np

from ghostcacher_connector.core.types import RankEndpoint
from ghostcacher_connector.transfer.base import PullOutcome, PullRequest, Transport
from ghostcacher_connector.transfer.nixl.transport import NixlTransport
from ghostcacher_connector.transfer.relay.relay_transport import RelayTransport
from tests.support.kv_memory import KvMemory


def pull_forever(kind: str, peer: RankEndpoint) -> None:
    """Connect, say so, and pull all slots again and again."""
    memory = KvMemory(peer.slot_count, len(peer.slot_bytes), peer.slot_bytes[0])
    transport: Transport
    if kind == "relay":
        transport = RelayTransport(memory.rank, token="secret")
    else:
        transport = NixlTransport(memory.memories, memory.table, name="doomed")
    slots = np.arange(peer.slot_count, dtype=np.int64)
    generations = np.zeros(peer.slot_count, dtype=np.uint64)
    said = False
    while True:
        result = transport.pull(PullRequest(peer, slots, slots, generations, time.monotonic() + 10.0))
        # On a crowded machine connecting may take longer than its bound: it is tried again.
        if result.outcome is PullOutcome.DONE and not said:
            print(f"pulling {os.getpid()}", flush=True)
            said = True


def main() -> None:
    peer = msgspec.msgpack.decode(base64.b64decode(sys.argv[2]), type=RankEndpoint)
    importlib.import_module("nixl._api")  # no agent yet: forking would not carry its threads along
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for _ in sys.stdin:
        if os.fork() == 0:
            pull_forever(sys.argv[1], peer)


if __name__ == "__main__":
    main()
