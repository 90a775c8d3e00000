"""How fast the index is, beside what Redis itself can do in the same minute.

    python benchmarks/index_rates.py [--short] [--url redis://...]

Measures the cost of noting a change, blocks published a second, the cost of verifying entries, lookup latency over
blocks and workers, and Redis memory per block. Each number comes with a limit from the same run: a bare PING, or
redis-py's own pipelined HSET of as many bytes. Trust the ratios: the machine is never idle. Without ``--url`` an
embedded Redis is started and ended.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import redis

from benchmarks.harness.report import percentile
from ghostcacher_connector.core.index.base import Entry, WorkerRef, ref_of
from ghostcacher_connector.core.index.redis import RedisIndex
from ghostcacher_connector.core.redis.embedded import EmbeddedRedis
from ghostcacher_connector.core.schema import ENTRY_BYTES, SCHEMA_VERSION, Binding
from ghostcacher_connector.core.types import Location, RankEndpoint, Role, Segment, SlotMemory, Tier, WorkerRecord
from ghostcacher_connector.publish.held_blocks import HeldBlocks
from ghostcacher_connector.publish.publisher import Publisher

BATCH = 512
LEASE_S = 600.0
NAMESPACE = "benchmark"
MEMORY_LIMIT_BYTES = 150


class Plan(NamedTuple):
    """How much to do. lookups: per combination of blocks and workers."""

    publish_blocks: int
    memory_blocks: int
    lookups: int
    pings: int


FULL = Plan(publish_blocks=200_000, memory_blocks=200_000, lookups=200, pings=3_000)
SHORT = Plan(publish_blocks=20_000, memory_blocks=200_000, lookups=20, pings=500)


def new_ref(name: str) -> WorkerRef:
    return WorkerRef(NAMESPACE, name, os.urandom(16))


def new_blocks(count: int) -> list[bytes]:
    return [os.urandom(32) for _ in range(count)]


def entries_of(blocks: Sequence[bytes]) -> list[Entry]:
    return [Entry(block, blocks[0], Location(Tier.DEVICE, slot, slot + 1)) for slot, block in enumerate(blocks)]


def batches(count: int) -> Iterator[slice]:
    return (slice(start, start + BATCH) for start in range(0, count, BATCH))


def seconds_of(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def cpu_seconds_of(work: Callable[[], object]) -> float:
    """Return the time that this thread computed: a busy machine does not add to it."""
    began = time.thread_time()
    work()
    return time.thread_time() - began


def quantiles_ms(seconds: Sequence[float]) -> tuple[float, float]:
    """Return p50 and p99 in milliseconds."""
    return 1e3 * percentile(seconds, 50), 1e3 * percentile(seconds, 99)


def row(name: str, value: str, limit: str, ratio: float) -> None:
    print(f"{name:<44} {value:>24} {limit:>34} {ratio:>7.2f}", flush=True)


def measure_held_blocks(plan: Plan) -> None:
    """What the engine's scheduler thread pays for one block's whole life, over a bare dict insert and delete."""
    blocks = new_blocks(plan.publish_blocks)
    held = HeldBlocks(
        partitions=1, partition_of=lambda _: 0, engine_slots=plan.publish_blocks, dirty_max=plan.publish_blocks
    )

    def live() -> None:
        for slot, block in enumerate(blocks):
            held.publish(slot, block, block, 1)
        for slot in range(len(blocks)):
            held.withdraw(slot)

    def bare() -> None:
        slots = dict(enumerate(blocks))
        for slot in range(len(blocks)):
            del slots[slot]

    cost, limit = (1e6 * seconds_of(work) / len(blocks) for work in (live, bare))
    row("held blocks: publish + withdraw", f"{cost:.2f} us", f"bare dict {limit:.2f} us", cost / limit)


def measure_publish(plan: Plan, index: RedisIndex, client: redis.Redis) -> None:
    """Blocks a second: one batch after another, and through a running Publisher; over redis-py's pipelined HSET."""
    blocks = new_blocks(plan.publish_blocks)
    entries, ref = entries_of(blocks), new_ref("publisher")
    values = {block: os.urandom(ENTRY_BYTES) for block in blocks}

    def raw() -> None:
        for part in batches(len(blocks)):
            pipeline = client.pipeline(transaction=False)
            for block in blocks[part]:
                pipeline.hset("benchmark:raw", block, values[block])
            pipeline.execute()

    def applied() -> None:
        for part in batches(len(blocks)):
            index.apply(ref, entries[part], [], lease_ttl_s=LEASE_S)

    raw_rate, applied_rate = (len(blocks) / seconds_of(work) for work in (raw, applied))
    client.delete("benchmark:raw")
    index.leave(ref)
    limit = f"pipelined HSET {raw_rate:,.0f}/s"
    row("publish, batches of 512", f"{applied_rate:,.0f} blocks/s", limit, applied_rate / raw_rate)
    threaded_rate = publisher_rate(index, blocks)
    row("publish, Publisher thread at 5 ms", f"{threaded_rate:,.0f} blocks/s", limit, threaded_rate / raw_rate)


def rank_of(slots: int) -> RankEndpoint:
    """Return a rank that has an engine's slots and is never read."""
    return RankEndpoint(
        rank=0,
        incarnation=os.urandom(16),
        memories=(SlotMemory(Tier.DEVICE, slots, (Segment(4096, 4096, 4096),)),),
        table=4096,
        agent_name="thread",
        agent_metadata=b"",
        relay=None,
        host="",
    )


def publisher_rate(index: RedisIndex, blocks: Sequence[bytes]) -> float:
    record = WorkerRecord(
        schema=SCHEMA_VERSION,
        worker="thread",
        incarnation=os.urandom(16),
        namespace=NAMESPACE,
        fingerprint={},
        role=Role.BOTH,
        http=None,
        block_tokens=16,
        started_at=0.0,
        ranks=(rank_of(len(blocks)),),
    )
    publisher = Publisher(index, record, lease_ttl_s=LEASE_S, queue_max=len(blocks), batch=BATCH)
    publisher.start()
    began = time.perf_counter()
    for slot, block in enumerate(blocks):
        publisher.publish(slot, block, blocks[0], 1)
    deadline = began + 120
    while publisher.stats().published < len(blocks) and time.perf_counter() < deadline:
        time.sleep(0.001)
    rate = publisher.stats().published / (time.perf_counter() - began)
    publisher.stop()
    index.leave(ref_of(record))
    return rate


def measure_verification() -> None:
    """What binding an entry to its block costs, in this process's own time: packing it, and verifying it."""
    blocks = new_blocks(2000)
    entries, binding = entries_of(blocks), Binding(NAMESPACE, os.urandom(16), b"secret")
    packed = b"".join(binding.pack(block, location) for block, _, location in entries)

    def pack() -> None:
        for block, _, location in entries:
            binding.pack(block, location)

    def unpack() -> None:
        assert len(binding.unpack(blocks, packed)) == len(blocks)

    for name, work in (("pack", pack), ("verify and unpack", unpack)):
        cost_us = min(1e6 * cpu_seconds_of(work) for _ in range(20)) / len(blocks)
        row(f"{name} 2000 entries, CPU", f"{cost_us:.2f} us/entry", "target 1 us", cost_us)


def measure_lookups(plan: Plan, index: RedisIndex) -> None:
    """Latency when every worker holds the whole prefix: the most that a lookup can have to read."""
    ping_ms, _ = quantiles_ms([index.ping() for _ in range(plan.pings)])
    refs = [new_ref(f"w{number}") for number in range(64)]
    chain = new_blocks(2000)
    for ref in refs:
        index.apply(ref, entries_of(chain), [], lease_ttl_s=LEASE_S)
    for count in (16, 256, 2000):
        for workers in (1, 8, 64):
            candidates, blocks = refs[:workers], chain[:count]
            hits = index.lookup(candidates, blocks)
            assert [hit.length for hit in hits] == [count] * workers, "the benchmark looks up what is there"
            times = [seconds_of(partial(index.lookup, candidates, blocks)) for _ in range(plan.lookups)]
            p50, p99 = quantiles_ms(times)
            name = f"lookup {count} blocks, {workers} workers, p50 / p99"
            row(name, f"{p50:.2f} / {p99:.2f} ms", f"PING p50 {ping_ms:.3f} ms", p50 / ping_ms)
    for ref in refs:
        index.leave(ref)


def measure_memory(plan: Plan, index: RedisIndex, client: redis.Redis) -> None:
    """Redis memory per block of one worker."""
    blocks, ref = new_blocks(plan.memory_blocks), new_ref("memory")
    entries = entries_of(blocks)
    before = client.info("memory")["used_memory"]
    for part in batches(len(blocks)):
        index.apply(ref, entries[part], [], lease_ttl_s=LEASE_S)
    per_block = (client.info("memory")["used_memory"] - before) / len(blocks)
    index.leave(ref)
    limit = f"target {MEMORY_LIMIT_BYTES} bytes (payload {32 + ENTRY_BYTES})"
    row(f"Redis memory, {len(blocks):,} blocks", f"{per_block:.0f} bytes/block", limit, per_block / MEMORY_LIMIT_BYTES)


@contextmanager
def opened(url: str | None) -> Iterator[str]:
    if url is not None:
        yield url
        return
    with tempfile.TemporaryDirectory(prefix="gc-bench-") as folder:
        server = EmbeddedRedis(Path(folder, "redis"))
        try:
            yield server.ensure()
        finally:
            server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--short", action="store_true", help="fewer repetitions, for CI")
    parser.add_argument("--url", help="redis:// or unix:// of a single server that may be written to")
    options = parser.parse_args()
    plan = SHORT if options.short else FULL
    with opened(options.url) as url:
        index, client = RedisIndex(url, timeout_s=10.0), redis.Redis.from_url(url)
        print(f"{'what':<44} {'measured':>24} {'limit in the same run':>34} {'ratio':>7}")
        measure_held_blocks(plan)
        measure_publish(plan, index, client)
        measure_lookups(plan, index)
        measure_verification()
        measure_memory(plan, index, client)
        index.close()
        client.close()


if __name__ == "__main__":
    main()
