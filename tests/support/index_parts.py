"""Records, chains and clocks for tests of the index."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from ghostcacher_connector.core.index.base import Entry
from ghostcacher_connector.core.schema import SCHEMA_VERSION
from ghostcacher_connector.core.types import (
    Location,
    OwnerProcess,
    RankEndpoint,
    Role,
    Segment,
    SlotMemory,
    Tier,
    WorkerRecord,
)

NAMESPACE = "a1b2c3"
T = TypeVar("T")


class FakeClock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0, what: str = "condition") -> None:
    """Poll until a condition holds; fail when it does not within the deadline."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        time.sleep(0.01)


def in_time(attempt: Callable[[float], T | None]) -> T:
    """Return what an attempt brings before a short time of its own runs out.

    attempt: is given that time in seconds, and returns None when it was too slow; then it gets longer.
    """
    for ttl_s in (0.2, 1.0, 5.0, 25.0):
        if (found := attempt(ttl_s)) is not None:
            return found
    raise AssertionError("not within the longest time")


def endpoint(incarnation: bytes) -> RankEndpoint:
    return RankEndpoint(
        rank=0,
        incarnation=incarnation,
        memories=(SlotMemory(Tier.DEVICE, 64, (Segment(base=1 << 47, stride_bytes=4096, slot_bytes=4096),)),),
        table=(1 << 63) + 8,
        agent_name="agent",
        agent_metadata=b"\x00\xff metadata",
        relay=None,
        host="boot-id",
    )


def owner(token: str, *, host: str = "boot-id", pid: int = 1) -> OwnerProcess:
    """Return a process of a machine that is not this one."""
    return OwnerProcess(token=token, host=host, machine=f"m-{token}", pid=pid, pid_namespace="pid:[1]", started=1)


def make_record(
    worker: str = "w1",
    *,
    namespace: str = NAMESPACE,
    incarnation: bytes | None = None,
    token: str | None = None,
) -> WorkerRecord:
    """token: of the process that speaks for the worker; None for a record that names none."""
    incarnation = incarnation or os.urandom(16)
    return WorkerRecord(
        schema=SCHEMA_VERSION,
        worker=worker,
        incarnation=incarnation,
        namespace=namespace,
        fingerprint={"model": "m", "kv_dtype": "bfloat16"},
        role=Role.BOTH,
        http="http://127.0.0.1:8000",
        block_tokens=16,
        started_at=1.5,
        ranks=(endpoint(incarnation),),
        owner=None if token is None else owner(token),
    )


def rank_record(worker: str, endpoint: RankEndpoint, namespace: str) -> WorkerRecord:
    """Return the record of a worker of one rank, whose endpoint this is."""
    return WorkerRecord(
        schema=SCHEMA_VERSION,
        worker=worker,
        incarnation=endpoint.incarnation,
        namespace=namespace,
        fingerprint={},
        role=Role.BOTH,
        http=None,
        block_tokens=16,
        started_at=0.0,
        ranks=(endpoint,),
    )


def chain(length: int, seed: int = 0, width: int = 32) -> list[bytes]:
    """Return the hashes of a chain of blocks: each is the digest of its parent."""
    blocks, parent = [], str(seed).encode()
    for _ in range(length):
        parent = hashlib.blake2b(parent, digest_size=width).digest()
        blocks.append(parent)
    return blocks


def entries(blocks: Sequence[bytes], held: Sequence[int] | None = None, generation: int = 7) -> list[Entry]:
    """Return entries for the blocks of a chain, or for those with the given numbers; slot = 100 + number."""
    numbers = range(len(blocks)) if held is None else held
    return [Entry(blocks[n], blocks[0], Location(Tier.DEVICE, 100 + n, generation)) for n in numbers]
