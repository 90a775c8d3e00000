"""Fleets for the dashboard to show: simulated engines that serve traffic, and many workers that are records alone."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Self

import msgspec
import numpy as np
from msgspec.structs import replace

from ghostcacher_connector.core.coordination.base import LoadReport
from ghostcacher_connector.core.coordination.redis import RedisCoordinationStore
from ghostcacher_connector.core.coordination.tier_load import TierLoad
from ghostcacher_connector.core.index.base import ref_of
from ghostcacher_connector.core.index.link_report import links_report
from ghostcacher_connector.core.index.redis import RedisIndex
from ghostcacher_connector.core.types import Tier, WorkerRecord
from ghostcacher_connector.transfer.base import Probe
from ghostcacher_connector.worker.link_probe import link_report
from ghostcacher_simulator.api import EngineApi
from ghostcacher_simulator.connector import Connector, ConnectorThread
from ghostcacher_simulator.engine import Engine, Profile
from ghostcacher_simulator.http_server import EngineServer, Peer, Received, content
from ghostcacher_simulator.text import BLOCK_TOKENS
from tests.support.index_parts import make_record

LEASE_S = 60.0
REDIS_TIMEOUT_S = 5.0
PROFILE = Profile(kv_blocks=2000, prefill_tokens_per_s=40_000.0, decode_s=0.01)
PATIENCE_S = 60.0
STEADY_S = 600.0
"""For so long what `ManyWorkers` said counts."""


class _Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_S)
        self._loop.close()


class ShownEngine:
    """One simulated engine with its connector. host_blocks: of a host tier that it claims to have; 0: it has none."""

    def __init__(
        self, loop: _Loop, redis_url: str, name: str, *, model: str, profile: Profile, host_blocks: int
    ) -> None:
        self.api, self._loop = EngineApi(models=[model]), loop
        self.server = EngineServer(self.api)
        loop.run(self.server.start())
        self._index = RedisIndex(redis_url, timeout_s=REDIS_TIMEOUT_S)
        self._store = RedisCoordinationStore(redis_url, timeout_s=REDIS_TIMEOUT_S)
        self.record: WorkerRecord = msgspec.structs.replace(
            make_record(name, namespace="shown"),
            http=f"http://127.0.0.1:{self.server.port}",
            block_tokens=BLOCK_TOKENS,
            ranks=(),
            stamped=True,
        )
        connector = Connector(self._index, self._store, self.record, lease_ttl_s=LEASE_S)
        self.api.engine = self._engine = Engine(profile, connector)
        self._host_blocks = host_blocks
        connector.load = self._load
        self._connector = ConnectorThread(connector, LEASE_S)
        self._connector.start()

    def close(self) -> None:
        self._connector.leave()
        self._store.close()
        self._index.close()
        self._loop.run(self.server.stop())

    def time_links(self, peers: Sequence[str], bytes_per_s: Sequence[float]) -> None:
        """Report a timed read of each peer, as a real rank's probe does."""
        fields = {}
        for peer, rate in zip(peers, bytes_per_s, strict=True):
            data = b"x" * 100_000
            probe = Probe("nixl", 14e-6, True, np.zeros(1, dtype=np.uint64), data, len(data) / rate)
            report = link_report(lambda probe=probe: probe, at=time.time())  # type: ignore[misc]
            fields[f"0:{peer}"] = msgspec.msgpack.encode(report)
        self._index.put_report(ref_of(self.record), links_report(0), fields, ttl_s=STEADY_S)

    def _load(self) -> LoadReport:
        load = self._engine.load()
        held = min(self._host_blocks, len(self._engine.computed_blocks))
        tools, system = held // 8, held // 4
        types = (tools, system, held - tools - system, 0, 0)
        tier = TierLoad(Tier.HOST, held, self._host_blocks, types, load.hit_blocks // 3, 0, 0, 0)
        return replace(load, tiers=(tier,)) if self._host_blocks else load


class ShownFleet:
    """Simulated engines, as a context manager. engines: by name."""

    def __init__(
        self,
        redis_url: str,
        names: Sequence[str],
        *,
        model: str = "m",
        profile: Profile = PROFILE,
        host_blocks: int = 4000,
    ) -> None:
        self._stack = ExitStack()
        loop = _Loop()
        self._stack.callback(loop.close)
        self.engines: dict[str, ShownEngine] = {}
        for name in names:
            engine = ShownEngine(loop, redis_url, name, model=model, profile=profile, host_blocks=host_blocks)
            self._stack.callback(engine.close)
            self.engines[name] = engine
        for number, (name, engine) in enumerate(self.engines.items()):
            peers = [other for other in names if other != name]
            engine.time_links(peers, [1e9 * (2 + 9 * ((number + at) % 5)) for at in range(len(peers))])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class ManyWorkers:
    """Workers that have records and loads in Redis, and whose health one server answers; no engine is behind them."""

    def __init__(self, redis_url: str, names: Sequence[str], *, models: Sequence[str] = ("m",)) -> None:
        self._loop = _Loop()
        self._models = json.dumps({"data": [{"id": name, "object": "model"} for name in models]}).encode()
        self._server = EngineServer(self._answer)
        self._loop.run(self._server.start())
        index = RedisIndex(redis_url, timeout_s=REDIS_TIMEOUT_S)
        store = RedisCoordinationStore(redis_url, timeout_s=REDIS_TIMEOUT_S)
        try:
            for number, name in enumerate(names):
                record = msgspec.structs.replace(
                    make_record(name, namespace="many"),
                    http=f"http://127.0.0.1:{self._server.port}/w{number}",
                    ranks=(),
                )
                index.join(record, lease_ttl_s=STEADY_S)
                store.publish(ref_of(record), _load(number), (), (), ttl_s=STEADY_S)
        finally:
            store.close()
            index.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.run(self._server.stop())
        self._loop.close()

    def _answer(self, peer: Peer, request: Received) -> None:
        peer.send(content(self._models if request.path.endswith("/v1/models") else b""))


def _load(number: int) -> LoadReport:
    used = number * 37 % 1000
    return LoadReport(
        running=number % 9,
        waiting=number % 3,
        waiting_tokens=number * 10,
        kv_blocks_used=used,
        kv_blocks_total=1000,
        block_tokens=16,
        block_bytes=65_536,
        prefill_tokens_per_s=9000.0,
        pull_bytes_per_s=4e9,
        pull_fixed_s=0.004,
        tiers=(
            TierLoad(Tier.HOST, 2 * used, 4000, (1, 2, 3, 4, 0), 5, 6, 7, 0),
            TierLoad(Tier.OBJECT, used, 100_000, (0, 0, used, 0, 0), 1, 0, 0, 0),
        ),
        hit_blocks=10 * number,
        missed_blocks=(number, 0, 0, 2),
    )


def ask(url: str, prompt: str, *, system: str, documents: Sequence[str], model: str = "m") -> None:
    """Have a router answer one stream, and read it to its end. Documents are messages: simulated engines read those."""
    texts = [("system", system), *(("user", text) for text in documents), ("user", prompt)]
    sections = ",".join(str(1 + number) for number in range(len(documents)))
    body = {
        "model": model,
        "messages": [{"role": role, "content": text} for role, text in texts],
        "metadata": {"gc_sections": f"doc={sections}"},
        "stream": True,
    }
    headers = {"x-request-id": os.urandom(8).hex()}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)  # noqa: S310
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:  # noqa: S310
        assert b"[DONE]" in answer.read()
