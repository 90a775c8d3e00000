"""Object tiers for tests: one rank's blocks, and what a test asks of a tier again and again."""

from __future__ import annotations

import hashlib
import queue
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import numpy as np

from ghostcacher_connector.metrics.recorder import Recorder
from ghostcacher_connector.objects.directory import ObjectDirectory
from ghostcacher_connector.objects.object_flushes import FlushWanted, ObjectsFlushed
from ghostcacher_connector.objects.object_notes import RunFacts
from ghostcacher_connector.objects.stores.base import ObjectStore
from ghostcacher_connector.objects.tier import ObjectTier
from ghostcacher_connector.objects.tier_options import TierOptions

NAMESPACE = b"model, weights and layout"
BLOCK_BYTES = 1 << 20
DEADLINE_S = 60.0
"""Nothing here takes so long: what does never ends."""

SMALL_QUEUE = TierOptions(queue_bytes=64 << 20, compress="never")
"""Whether compression pays depends on the machine, and no test may."""


def chain(count: int, seed: str = "prompt") -> list[bytes]:
    """Return the chain hashes of a prompt of `count` blocks."""
    hashes = [hashlib.sha256(seed.encode()).digest()]
    for _ in range(count - 1):
        hashes.append(hashlib.sha256(hashes[-1]).digest())
    return hashes


@lru_cache(64)
def row_of(block_hash: bytes, block_bytes: int = BLOCK_BYTES) -> memoryview:
    """Return the bytes of a block: noise that follows from its hash, like KV in 16 bits half of which is smooth."""
    random = np.random.default_rng(int.from_bytes(block_hash[:8], "little"))
    row = np.empty(block_bytes, np.uint8)
    row[0::2] = random.integers(0, 256, len(row[0::2]), np.uint8)
    row[1::2] = random.integers(60, 68, len(row[1::2]), np.uint8)
    return row.data.toreadonly()


def rows_of(hashes: Sequence[bytes], block_bytes: int = BLOCK_BYTES) -> list[memoryview]:
    return [row_of(one, block_bytes) for one in hashes]


def buffers(count: int, block_bytes: int = BLOCK_BYTES) -> list[memoryview]:
    """Return writable memory for blocks, none of which looks right."""
    return [np.full(block_bytes, 0xEE, np.uint8).data for _ in range(count)]


@contextmanager
def opened(
    store: ObjectStore,
    *,
    namespace: bytes = NAMESPACE,
    rank: int = 0,
    block_bytes: int = BLOCK_BYTES,
    kv_dtype: str = "bfloat16",
    options: TierOptions = SMALL_QUEUE,
    recorder: Recorder | None = None,
    listed: bool = True,
) -> Iterator[ObjectTier]:
    """A tier that knows what is in its store, for the time of a `with` block; then what it has queued is written."""
    tier = ObjectTier(
        store,
        namespace=namespace,
        rank=rank,
        block_bytes=block_bytes,
        kv_dtype=kv_dtype,
        options=options,
        recorder=recorder or Recorder(),
    )
    try:
        assert not listed or tier.wait_listed(DEADLINE_S)
        yield tier
    finally:
        tier.close(DEADLINE_S)


def write_all(
    store: ObjectStore,
    hashes: Sequence[bytes],
    *,
    rank: int = 0,
    block_bytes: int = BLOCK_BYTES,
    options: TierOptions = SMALL_QUEUE,
) -> None:
    """Write a prompt by a tier of its own, which is closed behind it."""
    with opened(store, rank=rank, block_bytes=block_bytes, options=options) as tier:
        assert tier.write(hashes, rows_of(hashes, block_bytes), RunFacts(0, 1))


def flush(
    directory: ObjectDirectory,
    blocks: Sequence[bytes] | None = None,
    *,
    order: bytes | None = None,
    under_way: Sequence[bytes] = (),
) -> ObjectsFlushed:
    """Have the objects of some blocks flushed, None: all; return how that ended, once it has, or has failed."""
    ended: queue.Queue[ObjectsFlushed] = queue.Queue()
    doomed = None if blocks is None else lambda _objects: set(blocks)
    directory.flush(FlushWanted(order or secrets.token_bytes(16), doomed, frozenset(under_way), ended.put))
    return ended.get(timeout=DEADLINE_S)


def right(tier: ObjectTier, hashes: Sequence[bytes], block_bytes: int = BLOCK_BYTES) -> int:
    """Read a prompt; return how many blocks the tier says are right, all of which have to be."""
    into = buffers(len(hashes), block_bytes)
    count = tier.read(hashes, into, time.monotonic() + DEADLINE_S)
    for got, block_hash in zip(into[:count], hashes, strict=False):
        assert np.array_equal(np.frombuffer(got, np.uint8), np.frombuffer(row_of(block_hash, block_bytes), np.uint8))
    return count
