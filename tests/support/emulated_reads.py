"""For tests of READs that hang: short ways to pull, and to wait."""

from __future__ import annotations

import threading
import time

import numpy as np

from ghostcacher_connector.core.types import RankEndpoint
from ghostcacher_connector.transfer.base import PullRequest, PullResult, Transport
from ghostcacher_connector.transfer.nixl.transport import NixlTransport
from tests.support.kv_memory import KvMemory

BIG = {"slot_count": 64, "segment_count": 4, "slot_bytes": 64 << 10}


def pull(transport: Transport, peer: RankEndpoint, slots: np.ndarray, seconds: float = 60.0) -> PullResult:
    """Pull slots of generation 0 into the same places."""
    request = PullRequest(peer, slots, slots, np.zeros(len(slots), dtype=np.uint64), time.monotonic() + seconds)
    return transport.pull(request)


def nixl(memory: KvMemory, **options: object) -> NixlTransport:
    return NixlTransport(memory.memories, memory.table, name="reader", **options)  # type: ignore[arg-type]


def wait_until(condition: object, seconds: float = 60.0) -> None:
    """Poll a condition until it holds."""
    assert callable(condition)
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "the condition did not come true"
        threading.Event().wait(0.05)
