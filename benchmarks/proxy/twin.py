"""Plays the connectors of the mock engines: leases, load, prompt chains and published blocks, in a real Redis.

    python -m benchmarks.proxy.twin REDIS_URL REPORT PORT...

REPORT is the FIFO in which mock_engine tells of each request (struct Seen). Text is taken as 4 bytes a token, blocks as
16 tokens; the first seven eighths of a prompt belong to its project, and so to all its other prompts: their blocks have
the same hashes everywhere. The rest is nobody else's. What does not fit through the FIFO, or into one turn, is left
out: engines may be believed to be as many machines, this is one process on the load's core.
"""

from __future__ import annotations

import hashlib
import os
import struct
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from ghostcacher_connector.core.coordination.base import LoadReport, PromptChain
from ghostcacher_connector.core.coordination.redis import RedisCoordinationStore
from ghostcacher_connector.core.index.base import Entry, WorkerRef, ref_of
from ghostcacher_connector.core.index.redis import RedisIndex
from ghostcacher_connector.core.schema import SCHEMA_VERSION
from ghostcacher_connector.core.types import Location, Role, Tier, WorkerRecord

SEEN = struct.Struct("=IIII48s")
NAMESPACE = "mock"
TURN_S = 0.1
LEASE_S = 10.0
BLOCK_TOKENS = 16
TOKEN_BYTES = 4
SAMPLED_BLOCKS = 8
"""One hash for so many blocks is told."""

HASHES_MAX = 4096
"""Told in one turn: five million prompt tokens a second, thirty times what so many engines could compute."""

CHAINS_MAX = 256
"""Told in one turn."""


class Seen(NamedTuple):
    """A request that an engine has received: struct Seen of mock_engine.c."""

    worker: int
    project: int
    body_bytes: int
    streamed: int
    request_id: str


def parse_seen(data: bytes) -> list[Seen]:
    """Return the whole records in what was read."""
    whole = len(data) - len(data) % SEEN.size
    return [
        Seen(worker, project, body_bytes, streamed, text.rstrip(b"\0").decode("ascii", "replace"))
        for worker, project, body_bytes, streamed, text in SEEN.iter_unpack(data[:whole])
    ]


def hash_count(seen: Seen) -> int:
    """Return how many hashes the chain of one prompt has."""
    return seen.body_bytes // (TOKEN_BYTES * BLOCK_TOKENS * SAMPLED_BLOCKS)


def affordable(seen: Sequence[Seen]) -> list[Seen]:
    """Return those that can be told in one turn: of requests with an id, the first ones."""
    told: list[Seen] = []
    hashes = 0
    for each in seen:
        hashes += hash_count(each) if each.request_id else 0
        if hashes > HASHES_MAX or len(told) == CHAINS_MAX:
            break
        if each.request_id:
            told.append(each)
    return told


def shared_hash(project: int, blocks: int) -> bytes:
    """Return the chain hash of the first `blocks` blocks of a project's prompts."""
    return hashlib.sha256(f"{project}/{blocks}".encode()).digest()


class Chains:
    """Makes the chains of prompts. Hashes of projects are kept: there are few."""

    def __init__(self) -> None:
        self._shared: dict[int, list[bytes]] = {}

    def shared(self, project: int, count: int) -> list[bytes]:
        """Return the first `count` sampled hashes of a project."""
        known = self._shared.setdefault(project, [])
        known += [shared_hash(project, SAMPLED_BLOCKS * (at + 1)) for at in range(len(known), count)]
        return known[:count]

    def of(self, seen: Seen) -> tuple[PromptChain, int]:
        """Return the chain of one prompt, and how many of its hashes belong to its project."""
        count = hash_count(seen)
        common = count * 7 // 8
        hashes = self.shared(seen.project, common) + [os.urandom(32) for _ in range(count - common)]
        counts = tuple(SAMPLED_BLOCKS * (at + 1) for at in range(count))
        return PromptChain(seen.request_id, seen.body_bytes // TOKEN_BYTES, counts, tuple(hashes)), common


def record_of(number: int, port: int) -> WorkerRecord:
    """Return what a worker says of itself."""
    return WorkerRecord(
        schema=SCHEMA_VERSION,
        worker=f"mock-{number:02d}",
        incarnation=os.urandom(16),
        namespace=NAMESPACE,
        fingerprint={"model": "mock"},
        role=Role.BOTH,
        http=f"http://127.0.0.1:{port}",
        block_tokens=BLOCK_TOKENS,
        started_at=time.time(),
        ranks=(),
    )


def load_of(running: int) -> LoadReport:
    """Return the load of an engine of some size that keeps up."""
    return LoadReport(
        running=running,
        waiting=0,
        waiting_tokens=0,
        kv_blocks_used=1_000,
        kv_blocks_total=100_000,
        block_tokens=BLOCK_TOKENS,
        block_bytes=2 << 20,
        prefill_tokens_per_s=20_000.0,
        pull_bytes_per_s=10e9,
        pull_fixed_s=0.001,
    )


def entries_of(blocks: Sequence[bytes]) -> list[Entry]:
    """Return the index entries of one chain's blocks."""
    return [Entry(block, blocks[0], Location(Tier.DEVICE, at, 1)) for at, block in enumerate(blocks)]


class Twin:
    """The connectors of all mock engines."""

    def __init__(self, url: str, ports: Sequence[int]) -> None:
        self._index = RedisIndex(url, timeout_s=5.0)
        self._store = RedisCoordinationStore(url, timeout_s=5.0)
        self._records = [record_of(number, port) for number, port in enumerate(ports)]
        self._refs = [ref_of(record) for record in self._records]
        self._published: dict[tuple[int, int], int] = {}
        self._chains = Chains()
        self._renewed_at = 0.0
        for record in self._records:
            self._index.join(record, lease_ttl_s=LEASE_S)

    def turn(self, seen: Sequence[Seen]) -> None:
        """Renew what runs out, and tell what each engine has received."""
        if time.monotonic() - self._renewed_at > LEASE_S / 4:
            self._renewed_at = time.monotonic()
            for record in self._records:
                self._index.renew(record, lease_ttl_s=LEASE_S)
        told = affordable(seen)
        for number, ref in enumerate(self._refs):
            self._tell(number, ref, [each for each in told if each.worker == number])

    def _tell(self, number: int, ref: WorkerRef, seen: Sequence[Seen]) -> None:
        chains = []
        for each in seen:
            chain, common = self._chains.of(each)
            chains.append(chain)
            self._publish(number, ref, each.project, common)
        computed = [chain.request for chain in chains]
        self._store.publish(ref, load_of(running=min(len(seen), 8)), chains, computed, ttl_s=10 * TURN_S)

    def _publish(self, number: int, ref: WorkerRef, project: int, count: int) -> None:
        """Enter those blocks of a project's prefix that this engine has not entered yet."""
        had = self._published.get((number, project), 0)
        if count <= had:
            return
        blocks = self._chains.shared(project, count)
        self._index.apply(ref, entries_of(blocks)[had:], [], lease_ttl_s=LEASE_S)
        self._published[number, project] = count


def main() -> int:
    url, report, *ports = sys.argv[1:]
    pipe = os.open(report, os.O_RDWR | os.O_NONBLOCK)
    twin = Twin(url, [int(port) for port in ports])
    print("ready", flush=True)
    while True:
        began = time.monotonic()
        try:
            data = os.read(pipe, 1024 * SEEN.size)
        except BlockingIOError:
            data = b""
        twin.turn(parse_seen(data))
        time.sleep(max(0.0, TURN_S - (time.monotonic() - began)))


if __name__ == "__main__":
    sys.exit(main())
