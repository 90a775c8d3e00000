"""A fleet around one worker that shares nothing with it: a peer that holds other blocks, and a router that listens.

With them the worker does all that it does in a fleet, lookups for each prompt and reports for routers included.
Neither computes nor routes anything: they are entries in the stores, renewed like those of real ones.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

from msgspec.structs import replace

from benchmarks.harness.scenario import NotShared
from ghostcacher_connector.core.errors import IndexUnavailable
from ghostcacher_connector.core.open import open_coordination, open_index
from ghostcacher_connector.core.types import INCARNATION_BYTES, WorkerRecord
from ghostcacher_simulator.connector import Connector, ConnectorThread
from ghostcacher_simulator.pool import HeldBlock

LEASE_TTL_S = 30.0
HEARTBEAT_S = 1.0
HEARTBEAT_TTL_S = 10.0
TIMEOUT_S = 2.0
JOIN_DEADLINE_S = 60.0
POLL_S = 0.1
HASH_BYTES = 32
BLOCKS = 1_000
"""Blocks that the peer holds."""
ROUTER = "overhead-router"


class QuietFleet(AbstractContextManager["QuietFleet"]):
    """A peer and a router, from the time that the worker is in the index until the end."""

    def __init__(self, redis_url: str, worker: str) -> None:
        """Join the worker's namespace. Raises NotShared when the worker does not appear."""
        self._index = open_index(redis_url, timeout_s=TIMEOUT_S)
        self._store = open_coordination(redis_url, self._index, timeout_s=TIMEOUT_S)
        record = self._record_of(worker)
        # Without an endpoint: nothing of it is ever to be read.
        peer = replace(record, worker=f"{worker}-peer", incarnation=secrets.token_bytes(INCARNATION_BYTES), ranks=())
        connector = Connector(self._index, self._store, peer, lease_ttl_s=LEASE_TTL_S)
        connector.computed("", [HeldBlock(secrets.token_bytes(HASH_BYTES), slot, 1) for slot in range(BLOCKS)])
        self._peer = ConnectorThread(connector, LEASE_TTL_S)
        self._peer.start()
        self._ended = threading.Event()
        self._router = threading.Thread(target=self._listen, name="quiet-router", daemon=True)
        self._router.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._router.join(TIMEOUT_S)
        self._peer.leave()
        self._store.close()
        self._index.close()

    def _record_of(self, worker: str) -> WorkerRecord:
        deadline = time.monotonic() + JOIN_DEADLINE_S
        while time.monotonic() < deadline:
            for record in self._index.workers(None):
                if record.worker == worker:
                    return record
            time.sleep(POLL_S)
        raise NotShared(f"worker {worker}: expected it in the index within {JOIN_DEADLINE_S:.0f} s, it is not there")

    def _listen(self) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(IndexUnavailable):
                self._store.heartbeat(ROUTER, ttl_s=HEARTBEAT_TTL_S)
            self._ended.wait(HEARTBEAT_S)
