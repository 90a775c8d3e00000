"""Plays the connectors of the mock engines: leases, load, prompt chains and published blocks, in a real Redis.

    python -m benchmarks.proxy.connectors REDIS_URL REPORT PORT...

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
from functools import partial
from typing import NamedTuple

from ghostcacher_connector.core.coordination.base import LoadReport, PromptChain
from ghostcacher_connector.core.coordination.redis import RedisCoordinationStore
from ghostcacher_connector.core.index.redis import RedisIndex
from ghostcacher_connector.core.schema import SCHEMA_VERSION
from ghostcacher_connector.core.types import Role, WorkerRecord
from ghostcacher_simulator.connector import Connector
from ghostcacher_simulator.pool import HeldBlock

SEEN = struct.Struct("=IIII48s")
NAMESPACE = "mock"
TURN_S = 0.1
LEASE_S = 10.0
BLOCK_TOKENS = 16
TOKEN_BYTES = 4
SAMPLED_BLOCKS = 8
"""One hash for so many blocks is reported."""

HASHES_MAX = 4096
"""Reported in one turn: five million prompt tokens a second, thirty times what so many engines could compute."""

CHAINS_MAX = 256
"""Reported in one turn."""


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
    """Return those that can be reported in one turn: of requests with an id, the first ones."""
    reported: list[Seen] = []
    hashes = 0
    for each in seen:
        hashes += hash_count(each) if each.request_id else 0
        if hashes > HASHES_MAX or len(reported) == CHAINS_MAX:
            break
        if each.request_id:
            reported.append(each)
    return reported


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


def held_blocks(hashes: Sequence[bytes]) -> list[HeldBlock]:
    """Return where an engine that never evicts has the blocks of one chain."""
    return [HeldBlock(block, slot, 1) for slot, block in enumerate(hashes)]


class Connectors:
    """The connectors of all mock engines."""

    def __init__(self, url: str, ports: Sequence[int]) -> None:
        index = RedisIndex(url, timeout_s=5.0)
        store = RedisCoordinationStore(url, timeout_s=5.0)
        self._all = [
            Connector(index, store, record_of(number, port), lease_ttl_s=LEASE_S) for number, port in enumerate(ports)
        ]
        self._chains = Chains()
        self._renewed_at = 0.0
        for connector in self._all:
            connector.join()

    def turn(self, seen: Sequence[Seen]) -> None:
        """Renew what runs out, and report what each engine has received."""
        if time.monotonic() - self._renewed_at > LEASE_S / 4:
            self._renewed_at = time.monotonic()
            for connector in self._all:
                connector.renew()
        reported = affordable(seen)
        for number, connector in enumerate(self._all):
            self._report(connector, [each for each in reported if each.worker == number])

    def _report(self, connector: Connector, seen: Sequence[Seen]) -> None:
        for each in seen:
            chain, common = self._chains.of(each)
            connector.received(chain)
            connector.computed(chain.request, held_blocks(self._chains.shared(each.project, common)))
        connector.load = partial(load_of, running=min(len(seen), 8))
        connector.flush()


def main() -> int:
    url, report, *ports = sys.argv[1:]
    pipe = os.open(report, os.O_RDWR | os.O_NONBLOCK)
    connectors = Connectors(url, [int(port) for port in ports])
    print("ready", flush=True)
    while True:
        began = time.monotonic()
        try:
            data = os.read(pipe, 1024 * SEEN.size)
        except BlockingIOError:
            data = b""
        connectors.turn(parse_seen(data))
        time.sleep(max(0.0, TURN_S - (time.monotonic() - began)))


if __name__ == "__main__":
    sys.exit(main())
