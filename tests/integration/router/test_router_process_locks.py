"""Two processes of one router, and requests for one cold document that come to both of them at once."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

from benchmarks.harness import RedisServer
from benchmarks.harness.router import RouterProcess
from ghostcacher_connector.core.coordination.base import LoadReport
from ghostcacher_connector.core.coordination.redis import RedisCoordinationStore
from ghostcacher_connector.core.index.redis import RedisIndex
from ghostcacher_connector.core.schema import SCHEMA_VERSION
from ghostcacher_connector.core.types import Role, WorkerRecord
from ghostcacher_simulator.connector import Connector, ConnectorThread
from ghostcacher_simulator.http_server import Peer, Received, content
from tests.support.mock_engine import MiniEngine, until
from tests.support.proxy_rig import on_loop

PATIENCE_S, LEASE_S = 60.0, 120.0
ENGINES, REQUESTS = 3, 24
DOCUMENT = "The same long document for all of them. " * 3_000
RESULT = re.compile(r'gc_ghost_locks_total{process=".+",result="(.+)"} (.+)')
COUNTED = re.compile(r'gc_router_requests_total{process="(\d)\..+",path="/v1/chat/completions",status="200"} (.+)')


LOAD = LoadReport(
    running=0,
    waiting=0,
    waiting_tokens=0,
    kv_blocks_used=0,
    kv_blocks_total=100_000,
    block_tokens=16,
    block_bytes=1 << 20,
    prefill_tokens_per_s=1_000.0,
    pull_bytes_per_s=1.0,
    pull_fixed_s=1.0,
)


class PatientEngine(MiniEngine):
    """Answers prompts when it is told to."""

    def __init__(self, may_answer: asyncio.Event) -> None:
        super().__init__()
        self.prompts = 0
        self._may_answer = may_answer
        self.handler = self._answer

    async def _answer(self, peer: Peer, request: Received) -> None:
        if request.method != "POST":
            await self.api(peer, request)
            return
        self.prompts += 1
        await self._may_answer.wait()
        peer.send(content(b"{}"))


@contextmanager
def joined(redis_url: str, number: int, port: int) -> Iterator[None]:
    """Have an engine in the fleet that computes a thousand tokens in a second, and pulls hardly anything."""
    index, store = RedisIndex(redis_url, timeout_s=10.0), RedisCoordinationStore(redis_url, timeout_s=10.0)
    record = WorkerRecord(
        schema=SCHEMA_VERSION,
        worker=f"w{number}",
        incarnation=bytes([number]) * 16,
        namespace="n" * 32,
        fingerprint={"model": "m"},
        role=Role.BOTH,
        http=f"http://127.0.0.1:{port}",
        block_tokens=16,
        started_at=time.time(),
        ranks=(),
    )
    connector = Connector(index, store, record, lease_ttl_s=LEASE_S)
    connector.load = lambda: LOAD
    thread = ConnectorThread(connector, LEASE_S)
    thread.start()
    try:
        yield
    finally:
        thread.leave()
        for each in (index, store):
            each.close()


async def ask(port: int, number: int) -> int:
    """Ask about the document on a connection of its own; return the status."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    messages = [{"role": "system", "content": DOCUMENT}, {"role": "user", "content": f"Question {number}?"}]
    body = json.dumps({"model": "m", "messages": messages}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(
        body
    )
    writer.write(head + body)
    answer = await reader.read()
    writer.close()
    return int(answer.split()[1])


async def get(port: int, path: str, *lines: str) -> str:
    """Return what some process answers, on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write("\r\n".join((f"GET {path} HTTP/1.1", "Host: localhost", "Connection: close", *lines, "", "")).encode())
    head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    assert " 200 " in head.partition("\r\n")[0], head
    writer.close()
    return body


async def loads_known(port: int) -> bool:
    """Say whether two processes answer, and each that is asked knows the load of each worker."""
    if json.loads(await get(port, "/gc/status"))["processes"] < 2:
        return False
    found = [json.loads(await get(port, "/gc/workers", "x-gc-process: own"))["workers"] for _ in range(16)]
    return all(len(workers) == ENGINES and all(worker["load"] for worker in workers) for workers in found)


@on_loop
async def test_burst_that_comes_to_both_processes_is_computed_once(tmp_path: Path) -> None:
    """Whichever process has a request: one takes the ghost lock, and all others follow to its worker."""
    may_answer = asyncio.Event()
    async with AsyncExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        engines = [await stack.enter_async_context(PatientEngine(may_answer)) for _ in range(ENGINES)]
        for number, engine in enumerate(engines):
            stack.enter_context(joined(redis.url, number, engine.port))
        router = await asyncio.to_thread(
            RouterProcess,
            redis_url=redis.url,
            arguments=("--processes", "2", "--health-interval-s", "600"),
            log_dir=tmp_path,
            env={"TMPDIR": str(tmp_path)},
        )
        stack.callback(router.process.kill)

        async with asyncio.timeout(PATIENCE_S):
            while not await loads_known(router.port):
                await asyncio.sleep(0.05)
        asking = [asyncio.create_task(ask(router.port, number)) for number in range(REQUESTS)]
        await until(lambda: sum(engine.prompts for engine in engines) == REQUESTS, "all requests", PATIENCE_S)
        may_answer.set()
        assert await asyncio.gather(*asking) == [200] * REQUESTS
        page = await get(router.port, "/metrics")
    results: Counter[str] = Counter()
    for result, count in RESULT.findall(page):
        results[result] += int(float(count))
    assert {process for process, _ in COUNTED.findall(page)} == {"0", "1"}, "expected that each gets about half"
    assert sorted(engine.prompts for engine in engines) == [0, 0, REQUESTS]
    assert +results == {"granted": 1, "followed": REQUESTS - 1}
