"""A running publisher over a real Redis that is killed, flushed and restarted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.harness.redis_server import RedisServer
from ghostcacher_connector.core.errors import IndexUnavailable
from ghostcacher_connector.core.index.base import ref_of
from ghostcacher_connector.core.index.redis import RedisIndex
from ghostcacher_connector.publish.publisher import Publisher
from ghostcacher_connector.pull.lookups import LookupAnswer, LookupService
from ghostcacher_connector.worker.live_workers import LiveWorkers
from tests.support.index_parts import NAMESPACE, chain, make_record, wait_until
from tests.support.redis_proxy import make_cluster

BLOCKS = chain(3000)
LEASE_S = 4.5
"""Renewed every 1.5 s, when what was lost is noticed; a machine that stands still for less than 3 s loses no lease."""

TIMEOUT_S = 5.0
"""Of a call to Redis: one that is gone refuses at once."""


class Bench:
    """A publisher on its thread with 3,000 blocks to publish, and a reader of its own."""

    def __init__(self, server: RedisServer, url: str) -> None:
        self.server = server
        self.writer, self.reader = RedisIndex(url, timeout_s=TIMEOUT_S), RedisIndex(url, timeout_s=TIMEOUT_S)
        self.record = make_record()
        self.publisher = Publisher(self.writer, self.record, lease_ttl_s=LEASE_S)
        for slot, block in enumerate(BLOCKS):
            self.publisher.publish(slot, block, BLOCKS[0], slot + 1)
        self.publisher.start()
        self.wait_for(len(BLOCKS))

    def held(self) -> int:
        try:
            hits = self.reader.lookup([ref_of(self.record)], BLOCKS)
            live = self.reader.workers(NAMESPACE)
        except IndexUnavailable:
            return -1
        return hits[0].length if hits and live == [self.record] else 0

    def wait_for(self, length: int) -> None:
        wait_until(lambda: self.held() == length, timeout_s=60, what=f"{length} blocks in the index")

    def close(self) -> None:
        self.publisher.stop()
        self.writer.close()
        self.reader.close()


@pytest.fixture(params=["single", "cluster"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    clustered = request.param == "cluster"
    with RedisServer(*(["--cluster-enabled", "yes"] if clustered else []), tcp=True) as server:
        if clustered:
            make_cluster(server)
        bench = Bench(server, server.url.replace("redis:", "redis+cluster:") if clustered else server.url)
        yield bench
        bench.close()


def test_flushed_index_is_filled_again(bench: Bench) -> None:
    """After FLUSHALL worker and blocks come back by themselves."""
    with bench.server.client() as raw:
        raw.flushall()
    bench.wait_for(len(BLOCKS))
    assert bench.publisher.stats().resyncs == 1


def test_killed_and_restarted_server_is_filled_again_with_what_changed_meanwhile(bench: Bench) -> None:
    """Redis dies and returns empty: everything comes back, less what was withdrawn while it was away."""
    bench.server.kill()
    wait_until(lambda: not bench.publisher.available)
    for slot in range(2500, 3000):
        bench.publisher.withdraw(slot)
    bench.server.start()
    bench.wait_for(2500)
    assert bench.publisher.available
    wait_until(lambda: not bench.publisher.held_blocks.pending)
    bench.publisher.held_blocks.check_invariants()


def test_lost_blocks_key_is_filled_again(bench: Bench) -> None:
    """An eviction, or somebody's DEL, is noticed by the count."""
    with bench.server.client() as raw:
        assert raw.delete(*raw.keys("gc2:*:blocks:*")) == 1
    bench.wait_for(len(BLOCKS))


def test_killed_worker_is_gone_with_its_lease() -> None:
    """When the publisher stops without leaving, record and entries vanish within a lease, without any sweep."""
    with RedisServer(tcp=True) as server:
        index, record = RedisIndex(server.url, timeout_s=TIMEOUT_S), make_record()
        publisher = Publisher(index, record, lease_ttl_s=0.3)
        publisher.publish(0, BLOCKS[0], BLOCKS[0], 1)
        while publisher.held_blocks.pending or not publisher.available:
            publisher.step()
        with server.client() as raw:
            wait_until(lambda: not raw.keys("gc2:*:blocks:*") and not raw.keys("gc2:*:worker:*"))
        assert index.workers() == []
        index.close()


def test_reader_sees_what_the_publisher_published(bench: Bench) -> None:
    """LiveWorkers and lookups, as an engine uses them, find the peer's blocks."""
    live = LiveWorkers(bench.reader, NAMESPACE, interval_s=0.05)
    live.start()
    service = LookupService(bench.reader, lambda: live.candidates("somebody else"))
    wait_until(lambda: bool(live.records()))
    service.start("r", BLOCKS)
    answers: list[LookupAnswer] = []

    def answered() -> bool:
        answer = service.poll("r")
        if isinstance(answer, LookupAnswer):
            answers.append(answer)
        return bool(answers)

    wait_until(answered)
    assert answers[0].hits[0].length == len(BLOCKS)
    assert answers[0].hits[0].locations[17] == (0, 17, 18)
    service.stop()
    live.stop()
