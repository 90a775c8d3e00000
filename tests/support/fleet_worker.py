"""A worker without an engine: real memory, a real NIXL rank, a real record in a real index, a real health page."""

from __future__ import annotations

import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import numpy as np

from ghostcacher_connector.config import Settings
from ghostcacher_connector.core.index.redis import RedisIndex
from ghostcacher_connector.core.schema import SCHEMA_VERSION
from ghostcacher_connector.core.types import Role, WorkerRecord
from ghostcacher_connector.metrics import Recorder
from ghostcacher_connector.transfer.shares import Share
from ghostcacher_connector.worker.rank import RankRuntime
from tests.support.kv_memory import KvMemory

LEASE_S = 120.0


class HealthPage:
    """A real HTTP server whose every page has one status."""

    def __init__(self, status: int = 200) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status if self.path == "/health" else 404)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


class FleetWorker:
    """One worker of one rank in this process. Use as a context manager."""

    def __init__(
        self,
        redis_url: str,
        name: str,
        *,
        namespace: str = "a" * 32,
        http: str | None = None,
        start: bool = True,
        index_key: str | None = None,
        **fingerprint: str,
    ) -> None:
        settings = Settings(
            redis_url=redis_url, redis_timeout_s=5.0, lease_ttl_s=LEASE_S, transports=("nixl",), index_key=index_key
        )
        self._memory = KvMemory()
        self._runtime = RankRuntime(
            settings,
            self._memory.rank,
            self._memory.table,
            Recorder(),
            worker=name,
            share=Share.of(0, 1, 1),
            namespace=namespace,
            scratch_slot=self._memory.rank.slot_count - 1,
        )
        slots = np.arange(8, dtype=np.int64)
        self._memory.write(slots, np.ones(8, dtype=np.uint64))
        self.record = WorkerRecord(
            schema=SCHEMA_VERSION,
            worker=name,
            incarnation=self._memory.table.incarnation,
            namespace=namespace,
            fingerprint={"model": "org/model", "kv_dtype": "bfloat16", **fingerprint},
            role=Role.BOTH,
            http=http,
            block_tokens=16,
            started_at=time.time(),
            ranks=(self._runtime.endpoint,),
        )
        self._index = RedisIndex(redis_url, timeout_s=5.0, key=(index_key or "").encode())
        self._index.join(self.record, lease_ttl_s=LEASE_S)
        if start:
            self._runtime.start()

    def peers(self) -> set[str]:
        """Return the workers that this rank can pull from."""
        return set(self._runtime.puller.links())

    def __enter__(self) -> FleetWorker:
        return self

    def __exit__(self, *_: object) -> None:
        self._runtime.stop()
        self._index.close()
