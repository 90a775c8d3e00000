"""The publisher, driven step by step over an index in memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

import pytest

from ghostcacher_connector.core.errors import ConfigError, IndexUnavailable
from ghostcacher_connector.core.index.base import Drop, Entry, WorkerRef, ref_of
from ghostcacher_connector.core.index.memory import MemoryIndex
from ghostcacher_connector.publish.held_blocks import Batch
from ghostcacher_connector.publish.publisher import BACKOFF_MAX_S, Publisher
from tests.support.index_parts import FakeClock, chain, make_record, wait_until

LEASE_S = 9.0


class LosesAnswers(MemoryIndex):
    """An index that fails before it applied a batch, or after, as a connection that breaks does."""

    lose_next = 0
    refuse_next = 0
    on_apply: Callable[[], None] | None = None

    def apply(self, ref: WorkerRef, entries: Sequence[Entry], drops: Sequence[Drop], *, lease_ttl_s: float) -> None:
        if self.on_apply is not None:
            self.on_apply()
        if self.refuse_next:
            self.refuse_next -= 1
            raise IndexUnavailable("the batch was lost")
        super().apply(ref, entries, drops, lease_ttl_s=lease_ttl_s)
        if self.lose_next:
            self.lose_next -= 1
            raise IndexUnavailable("the answer was lost")


class Bench:
    """A publisher, its index and their clock."""

    def __init__(self, **options: int) -> None:
        self.clock = FakeClock()
        self.index = LosesAnswers(partitions=4, clock=self.clock)
        self.record = make_record()
        self.publisher = Publisher(
            self.index,
            self.record,
            lease_ttl_s=LEASE_S,
            clock=self.clock,
            **options,
        )

    def publish(self, blocks: Sequence[bytes]) -> None:
        for slot, block in enumerate(blocks):
            self.publisher.publish(slot, block, blocks[0], 1)

    def held(self, blocks: Sequence[bytes]) -> int:
        hits = self.index.lookup([ref_of(self.record)], blocks)
        return hits[0].length if hits else 0

    def run(self, seconds: float) -> None:
        """Step for as long as the clock says, waiting as the publisher asks."""
        until = self.clock.now + seconds
        while self.clock.now < until:
            self.clock.advance(max(0.001, self.publisher.step()))


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench(batch=10)
    yield bench
    bench.publisher.held_blocks.check_invariants()


def test_first_step_joins(bench: Bench) -> None:
    """The worker is in the directory after one step."""
    bench.publisher.step()
    assert bench.index.workers() == [bench.record]
    assert bench.publisher.available


def test_published_blocks_are_found_and_withdrawn_ones_are_not(bench: Bench) -> None:
    """Blocks appear batch by batch and disappear when withdrawn; the counters say how many."""
    blocks = chain(25)
    bench.publish(blocks)
    bench.clock.advance(0.5)
    bench.publisher.step()
    assert bench.held(blocks) == 10
    assert bench.publisher.stats().publish_lag_s == 0.5
    bench.run(1.0)
    assert bench.held(blocks) == 25
    bench.publisher.withdraw(24)
    bench.run(1.0)
    stats = bench.publisher.stats()
    assert (bench.held(blocks), stats.published, stats.withdrawn, stats.blocks_held) == (24, 25, 1, 24)


def test_lease_is_renewed_for_as_long_as_it_steps(bench: Bench) -> None:
    """Many leases later the worker and its blocks are still there; once it stops stepping, they are gone."""
    blocks = chain(5)
    bench.publish(blocks)
    bench.run(5 * LEASE_S)
    assert bench.held(blocks) == 5
    bench.clock.advance(LEASE_S)
    assert bench.held(blocks) == 0
    assert bench.index.workers() == []


def test_index_is_flushed_everything_comes_back_within_a_third_of_a_lease(bench: Bench) -> None:
    """Lost entries are noticed at the next renewal and entered again, with the record."""
    blocks = chain(25)
    bench.publish(blocks)
    bench.run(1.0)
    bench.index.flush()
    bench.run(LEASE_S / 3 + 0.5)
    assert bench.held(blocks) == 25
    assert bench.index.workers() == [bench.record]
    assert bench.publisher.stats().resyncs == 1


def test_index_is_away_changes_gather_and_arrive_later(bench: Bench) -> None:
    """While the index is away nothing raises; what changed meanwhile arrives when it is back."""
    blocks = chain(25)
    bench.publish(blocks[:12])
    bench.run(1.0)
    bench.index.reachable = False
    bench.publish(blocks)
    bench.publisher.withdraw(24)
    bench.run(60.0)
    assert not bench.publisher.available
    bench.index.reachable = True
    bench.run(BACKOFF_MAX_S + 0.5)
    assert bench.publisher.available
    assert bench.held(blocks) == 24


def test_redis_away_is_one_warning_and_its_return_one_line(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """At start and later alike: a line for each outage and each return, not for each attempt."""
    caplog.set_level(logging.INFO)
    for _ in range(2):
        bench.index.reachable = False
        bench.run(30.0)
        bench.index.reachable = True
        bench.run(30.0)
    away, back = "worker w1: no Redis, serving alone and retrying: ", "worker w1: Redis answers, sharing with the fleet"
    lines = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in lines] == ["WARNING", "INFO"] * 2
    assert all(text.startswith(away) for _, text in lines[::2])
    assert [text for _, text in lines[1::2]] == [back] * 2


def test_index_is_back_empty_everything_returns_without_waiting_for_the_renewal(bench: Bench) -> None:
    """After a failure the counts are compared as soon as the index answers."""
    blocks = chain(25)
    bench.publish(blocks)
    bench.run(1.0)
    bench.index.flush()
    bench.index.refuse_next = 1
    bench.publisher.withdraw(24)
    bench.run(0.5)
    assert bench.held(blocks) == 24


def test_pauses_grow_to_a_bound_and_start_anew(bench: Bench) -> None:
    """Tries are spaced 0.1 s, 0.2 s ... 2 s apart, and again from 0.1 s after a success."""
    bench.index.reachable = False
    assert [round(bench.publisher.step(), 3) for _ in range(7)] == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    bench.index.reachable = True
    bench.publisher.step()
    bench.index.reachable = False
    bench.clock.advance(LEASE_S)
    assert bench.publisher.step() == 0.1


@pytest.mark.parametrize("failure", ["lose_next", "refuse_next"])
def test_batch_or_answer_is_lost_batch_is_sent_again_without_resync(bench: Bench, failure: str) -> None:
    """A batch of unknown fate is sent again; the counts then agree, and nothing is cleared."""
    blocks = chain(25)
    setattr(bench.index, failure, 2)
    bench.publish(blocks)
    bench.run(LEASE_S)
    assert bench.held(blocks) == 25
    stats = bench.publisher.stats()
    assert (stats.errors, stats.resyncs) == (2, 0)


def test_queue_overflows_everything_is_entered_anew() -> None:
    """More changes than the queue holds cost a resync, not a block."""
    bench = Bench(batch=100, queue_max=50)
    blocks = chain(200)
    bench.index.reachable = False
    bench.publish(blocks)
    bench.publisher.step()
    bench.index.reachable = True
    bench.run(LEASE_S)
    stats = bench.publisher.stats()
    assert (bench.held(blocks), stats.resyncs) == (200, 1)
    assert stats.dropped >= 50


def test_stray_entries_are_cleared(bench: Bench) -> None:
    """Entries that this worker does not know of are noticed, too."""
    bench.run(1.0)
    stray = chain(3, seed=9)
    bench.index.apply(ref_of(bench.record), [Entry(stray[0], stray[0], (0, 1, 2))], [], lease_ttl_s=LEASE_S)
    bench.run(LEASE_S / 3 + 0.5)
    assert bench.held(stray) == 0


def test_index_that_keeps_losing_is_repaired_ever_less_often(bench: Bench) -> None:
    """An index that evicts at once is not flooded: repairs are at last 17 renewals apart."""
    bench.publish(chain(25))
    for _ in range(120):
        bench.run(LEASE_S / 3)
        bench.index.flush()
    assert 5 <= bench.publisher.stats().resyncs <= 15


def test_applied_says_when_the_index_holds_what_was_published(bench: Bench) -> None:
    """Not before the batch has arrived, however late that is; later changes do not matter."""
    assert bench.publisher.applied(bench.clock.now)
    bench.publish(chain(5))
    published_at = bench.clock.now
    assert not bench.publisher.applied(published_at)
    bench.index.lose_next = 1
    bench.publisher.step()
    assert not bench.publisher.applied(published_at)
    bench.clock.advance(1.0)
    bench.publisher.step()
    bench.publish(chain(5, seed=1))
    assert bench.publisher.applied(published_at)
    assert not bench.publisher.applied(bench.clock.now)


def test_batch_on_its_way_is_not_applied_yet(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was taken is in no queue any more, and not in the index either, until that has answered."""
    seen, take = [], bench.publisher.held_blocks.take

    def taken(limit: int) -> Batch:
        batch = take(limit)
        seen.append(bench.publisher.applied(bench.clock.now))
        return batch

    monkeypatch.setattr(bench.publisher.held_blocks, "take", taken)
    bench.index.on_apply = lambda: seen.append(bench.publisher.applied(bench.clock.now))
    bench.publish(chain(5))
    bench.publisher.step()
    assert seen == [False, False]
    assert bench.publisher.applied(bench.clock.now)


def test_index_that_lost_all_has_not_applied(bench: Bench) -> None:
    """While everything is being entered again, nothing counts as held."""
    bench.publish(chain(25))
    bench.run(1.0)
    bench.index.flush()
    bench.clock.advance(LEASE_S / 3)
    bench.publisher.step()
    assert not bench.publisher.applied(bench.clock.now)
    bench.run(1.0)
    assert bench.publisher.applied(bench.clock.now)


def test_unexpected_error_leaves_the_publisher_unavailable(bench: Bench) -> None:
    """A bug ends neither the thread nor the truth of `available`; the next step that goes well makes it good."""
    bench.publisher.step()
    bench.index.on_apply = lambda: 1 // 0
    bench.publish(chain(3))
    with pytest.raises(ZeroDivisionError):
        bench.publisher.step()
    assert not bench.publisher.available
    bench.index.on_apply = None
    bench.publisher.step()
    assert bench.publisher.available
    assert bench.held(chain(3)) == 3


def test_changes_wake_the_thread_only_while_the_index_is_there(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the index is away, nothing cuts the pauses between two tries short."""
    woken: list[int] = []
    monkeypatch.setattr(bench.publisher._thread, "wake", lambda: woken.append(1))
    bench.publisher.step()
    bench.publish(chain(2))
    bench.publisher.withdraw(0)
    assert len(woken) == 3
    bench.index.reachable = False
    bench.publisher.step()
    bench.publish(chain(2))
    bench.publisher.withdraw(0)
    assert len(woken) == 3


def test_pause_between_two_batches_counts_from_the_first_ones_begin(bench: Bench) -> None:
    """A batch that takes time to apply does not slow publishing down by as much."""
    bench.index.on_apply = lambda: bench.clock.advance(0.004)
    bench.publish(chain(25))
    assert bench.publisher.step() == pytest.approx(0.001)


def test_name_that_makes_no_key_is_refused_at_once() -> None:
    """A mistake in the worker's name shows where it was made, not in a thread."""
    with pytest.raises(ConfigError, match="worker name"):
        Publisher(MemoryIndex(), make_record("a b"))


def test_thread_publishes_and_leaves_when_stopped() -> None:
    """The thread does by itself what the steps do, and takes the worker out at its end."""
    index, record, blocks = MemoryIndex(), make_record(), chain(30)
    publisher = Publisher(index, record, batch=10)
    publisher.start()
    for slot, block in enumerate(blocks):
        publisher.publish(slot, block, blocks[0], 1)
    wait_until(lambda: [hit.length for hit in index.lookup([ref_of(record)], blocks)] == [30])
    publisher.stop()
    assert index.workers() == []
    assert index.lookup([ref_of(record)], blocks) == []
    assert not publisher.available


def test_stop_with_index_away_ends_in_time() -> None:
    """Stopping does not wait for an index that is gone."""
    index = MemoryIndex()
    publisher = Publisher(index, make_record())
    publisher.start()
    wait_until(lambda: publisher.available)
    index.reachable = False
    publisher.stop(timeout_s=2.0)
    assert not publisher.available
