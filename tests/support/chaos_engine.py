"""An engine server as a program that can be killed: no model, answers that name their request, a real connector's part.

    python -m tests.support.chaos_engine REDIS_URL NAME INCARNATION LEASE_S

Listens on a free port of loopback and enters itself in Redis, as a connector does. SIGTERM ends it at once, whatever it
is doing: whoever restarts it has to have drained it before.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections import deque
from hashlib import sha256
from typing import NamedTuple

from ghostcacher_connector.core.coordination.base import LoadReport, PromptChain
from ghostcacher_connector.core.coordination.redis import RedisCoordinationStore
from ghostcacher_connector.core.errors import IndexUnavailable
from ghostcacher_connector.core.index.base import Entry, ref_of
from ghostcacher_connector.core.index.redis import RedisIndex
from ghostcacher_connector.core.schema import SCHEMA_VERSION
from ghostcacher_connector.core.types import Location, Role, Tier, WorkerRecord
from tests.support.mock_engine import CHUNKED, chunks, content

BLOCK_TOKENS = 16
SAMPLE_BYTES = 8 * BLOCK_TOKENS * 4
"""Of text, taken as 4 bytes a token, for each hash that is told: one in 8 blocks."""

EVENTS = 6
EVENT_S = 0.006
PREFILL_S = 0.02
TURN_S = 0.1
CHAINS_MAX = 64
"""Told in one turn; bounds what a slow Redis leaves to be told."""

MODELS = b'{"object":"list","data":[{"id":"m","object":"model","max_model_len":32768}]}'


def events_of(body: bytes) -> list[bytes]:
    """Return the one right answer to a request, event by event: none of it fits another request or place."""
    request = sha256(body).hexdigest()
    places = [sha256(f"{request}/{at}".encode()).hexdigest() for at in range(EVENTS)]
    return [b"data: %b\n\n" % (place * (1 + 9 * at)).encode() for at, place in enumerate(places)] + [
        b"data: [DONE]\n\n"
    ]


class Told(NamedTuple):
    """A request that was received. text: of its prompt."""

    request_id: str
    text: bytes


class Connector(threading.Thread):
    """Keeps a worker's lease, tells its load and its prompts, and enters their blocks. Redis may come and go."""

    def __init__(self, url: str, record: WorkerRecord, lease_s: float) -> None:
        super().__init__(daemon=True)
        self._index = RedisIndex(url, timeout_s=1.0)
        self._store = RedisCoordinationStore(url, timeout_s=1.0)
        self._record, self._ref, self._lease_s = record, ref_of(record), lease_s
        self._held: set[bytes] = set()
        self._renewed_at = float("-inf")
        self._joined = False
        self._ended = threading.Event()
        self.untold: deque[Told] = deque(maxlen=CHAINS_MAX)
        self.running = 0

    def run(self) -> None:
        pause_s = TURN_S
        while not self._ended.wait(pause_s):
            try:
                self._turn()
                pause_s = TURN_S
            except IndexUnavailable:
                # As a connector that has been without Redis for some time.
                pause_s = self._lease_s / 3

    def leave(self) -> None:
        """Say goodbye."""
        self._ended.set()
        self.join(5)
        with contextlib.suppress(IndexUnavailable):
            self._index.leave(self._ref)

    def _turn(self) -> None:
        now = time.monotonic()
        if not self._joined:
            self._index.join(self._record, lease_ttl_s=self._lease_s)
            self._joined = True
        elif now - self._renewed_at > self._lease_s / 3:
            held = sum(self._index.renew(self._record, lease_ttl_s=self._lease_s))
            if held < len(self._held):
                self._held.clear()  # A flush: all of it is entered again when it is asked for.
        else:
            self._tell()
            return
        self._renewed_at = now
        self._tell()

    def _tell(self) -> None:
        chains = [chain_of(self.untold.popleft()) for _ in range(len(self.untold))]
        for chain in chains:
            new = [hash_ for hash_ in chain.hashes if hash_ not in self._held]
            entries = [Entry(hash_, chain.hashes[0], Location(Tier.DEVICE, at, 1)) for at, hash_ in enumerate(new)]
            if entries:
                self._index.apply(self._ref, entries, [], lease_ttl_s=self._lease_s)
                self._held.update(new)
        computed = [chain.request for chain in chains]
        self._store.publish(self._ref, load_of(self.running), chains, computed, ttl_s=10 * TURN_S)


def chain_of(told: Told) -> PromptChain:
    """Return some hashes of a prompt's blocks: equal texts have equal ones, on every worker."""
    ends = range(SAMPLE_BYTES, len(told.text) + 1, SAMPLE_BYTES)
    hashes = tuple(sha256(told.text[:end]).digest() for end in ends)
    counts = tuple(8 * (at + 1) for at in range(len(hashes)))
    return PromptChain(told.request_id, len(told.text) // 4, counts, hashes)


def load_of(running: int) -> LoadReport:
    """Return the load of an engine that keeps up: 4,000 tokens/s, so that a cold prefix is worth a lock."""
    return LoadReport(
        running=running,
        waiting=0,
        waiting_tokens=0,
        kv_blocks_used=100,
        kv_blocks_total=10_000,
        block_tokens=BLOCK_TOKENS,
        block_bytes=1 << 16,
        prefill_tokens_per_s=4_000.0,
        pull_bytes_per_s=1e9,
        pull_fixed_s=0.001,
    )


class Server:
    """Answers over HTTP. life: in each answer's header x-life."""

    def __init__(self, life: str) -> None:
        self._life = f"x-life: {life}".encode()
        self.connector: Connector | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until it ends."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                pairs = [line.partition(b": ") for line in head.split(b"\r\n")[1:-2]]
                headers = {name.lower(): value for name, _, value in pairs}
                body = await reader.readexactly(int(headers.get(b"content-length", b"0")))
                if head.startswith(b"GET "):
                    writer.write(content(MODELS))
                else:
                    await self._answer(writer, headers.get(b"x-request-id", b"").decode(), body)
                await writer.drain()
        writer.transport.abort()

    async def _answer(self, writer: asyncio.StreamWriter, request_id: str, body: bytes) -> None:
        request = json.loads(body)
        text = "".join(message["content"] for message in request["messages"]).encode()
        connector = self.connector
        assert connector is not None
        connector.untold.append(Told(request_id, text))
        connector.running += 1
        try:
            await self._write(writer, body, stream=request["stream"])
        finally:
            connector.running -= 1

    async def _write(self, writer: asyncio.StreamWriter, body: bytes, *, stream: bool) -> None:
        events = events_of(body)
        if not stream:
            await asyncio.sleep(PREFILL_S + EVENTS * EVENT_S)
            writer.write(content(b"".join(events), self._life))
            return
        head = CHUNKED.replace(b"\r\n\r\n", b"\r\n%b\r\n\r\n" % self._life)
        if len(body) % 2:
            # Engines differ: some send the head at once, some with the first token.
            writer.write(head)
            head = b""
        await asyncio.sleep(PREFILL_S)
        for event in events[:-1]:
            writer.write(head + b"%x\r\n%b\r\n" % (len(event), event))
            head = b""
            await asyncio.sleep(EVENT_S)
        writer.write(chunks(events[-1]))


async def main(url: str, name: str, incarnation: str, lease_s: str) -> None:
    server = Server(incarnation)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, limit=1 << 22)
    record = WorkerRecord(
        schema=SCHEMA_VERSION,
        worker=name,
        incarnation=bytes.fromhex(incarnation),
        namespace="chaos",
        fingerprint={"model": "m"},
        role=Role.BOTH,
        http=f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}",
        block_tokens=BLOCK_TOKENS,
        started_at=time.time(),
        ranks=(),
    )
    connector = server.connector = Connector(url, record, float(lease_s))
    connector.start()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()
    await asyncio.to_thread(connector.leave)
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:5]))
