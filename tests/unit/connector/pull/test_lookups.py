"""Lookups that nobody waits for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from ghostcacher_connector.core.breaker import BREAKER_S
from ghostcacher_connector.core.errors import IndexUnavailable
from ghostcacher_connector.core.index.base import WorkerRef, ref_of
from ghostcacher_connector.core.index.memory import MemoryIndex
from ghostcacher_connector.core.types import MissReason
from ghostcacher_connector.metrics import Recorder
from ghostcacher_connector.pull.lookups import (
    ANSWERS_PER_QUEUE,
    PENDING,
    LookupAnswer,
    LookupService,
    take_answer,
)
from tests.support.index_parts import FakeClock, chain, entries, make_record, wait_until

BLOCKS = chain(4)


class Bench:
    """A service over an index in memory that holds three of four blocks. `gate` holds lookups up while it is clear."""

    def __init__(self, **options: int) -> None:
        self.clock = FakeClock()
        self.index = MemoryIndex(clock=self.clock)
        self.ref = ref_of(make_record())
        self.index.apply(self.ref, entries(BLOCKS[:3]), [], lease_ttl_s=1000.0)
        self.gate = threading.Event()
        self.gate.set()
        self.entered = 0
        self.recorder = Recorder()
        self.service = LookupService(self.index, self.candidates, clock=self.clock, **options)

    def candidates(self) -> Sequence[WorkerRef]:
        self.entered += 1
        assert self.gate.wait(60)
        return [self.ref]

    def take(self, **times: Any) -> Any:
        return take_answer(self.service, self.recorder, "r", **times)

    def answer(self, request_id: str) -> LookupAnswer:
        wait_until(lambda: self.service.poll(request_id) is not PENDING)
        found = self.service.poll(request_id)
        assert isinstance(found, LookupAnswer)
        return found


@pytest.fixture
def new_bench() -> Iterator[Callable[..., Bench]]:
    benches = []

    def new(**options: int) -> Bench:
        benches.append(Bench(**options))
        return benches[-1]

    yield new
    for bench in benches:
        bench.gate.set()
        bench.service.stop()


def test_held_prefix_is_a_hit(new_bench: Callable[..., Bench]) -> None:
    """The answer has the hits and no reason, and stays until it is forgotten."""
    bench = new_bench()
    bench.service.start("r", BLOCKS)
    for _ in range(2):
        answer = bench.answer("r")
        assert ([hit.length for hit in answer.hits], answer.reason) == ([3], None)
    bench.service.forget("r")
    assert bench.answer("r").reason is MissReason.INDEX_UNAVAILABLE


def test_unknown_prefix_is_not_indexed(new_bench: Callable[..., Bench]) -> None:
    """A miss says that the index does not know the blocks."""
    bench = new_bench()
    bench.service.start("r", chain(4, seed=1))
    answer = bench.answer("r")
    assert (answer.hits, answer.reason) == ([], MissReason.NOT_INDEXED)


def test_slow_lookup_is_pending_then_timed(new_bench: Callable[..., Bench]) -> None:
    """While the index has not answered, `poll` says so at once; the answer says how long it took."""
    bench = new_bench()
    bench.gate.clear()
    bench.service.start("r", BLOCKS)
    bench.service.start("r", BLOCKS)
    assert bench.service.poll("r") is PENDING
    bench.clock.advance(0.25)
    bench.gate.set()
    assert bench.answer("r").seconds == 0.25
    assert bench.entered == 1


def test_full_queue_answers_at_once(new_bench: Callable[..., Bench]) -> None:
    """A request that finds the queue full is answered, not queued."""
    bench = new_bench(threads=1, queue_max=2)
    bench.gate.clear()
    bench.service.start("busy", BLOCKS)
    wait_until(lambda: bench.entered == 1)
    for request_id in ("r1", "r2", "r3"):
        bench.service.start(request_id, BLOCKS)
    assert bench.service.poll("r2") is PENDING
    answer = bench.answer("r3")
    assert (answer.reason, answer.detail) == (MissReason.INDEX_UNAVAILABLE, "queue full at 2")


def test_forgotten_lookup_is_never_asked(new_bench: Callable[..., Bench]) -> None:
    """A request that was aborted while queued costs the index nothing."""
    bench = new_bench(threads=1)
    bench.gate.clear()
    for request_id in ("busy", "aborted", "last"):
        bench.service.start(request_id, BLOCKS)
    bench.service.forget("aborted")
    bench.gate.set()
    assert bench.answer("last").hits
    assert bench.entered == 2


def test_unavailable_index_is_not_asked_again_for_a_while(new_bench: Callable[..., Bench]) -> None:
    """After a failure lookups are answered without asking; after the pause the index is asked again."""
    bench = new_bench()
    bench.index.reachable = False
    bench.service.start("r1", BLOCKS)
    assert bench.answer("r1").reason is MissReason.INDEX_UNAVAILABLE
    bench.index.reachable = True
    bench.service.start("r2", BLOCKS)
    assert bench.service.poll("r2") is not PENDING
    assert bench.answer("r2").reason is MissReason.INDEX_UNAVAILABLE
    assert bench.entered == 1
    bench.clock.advance(BREAKER_S)
    bench.service.start("r3", BLOCKS)
    assert bench.answer("r3").hits


def test_answers_nobody_forgets_are_bounded(new_bench: Callable[..., Bench]) -> None:
    """A caller that never forgets does not fill the memory: the oldest answers go."""
    bench = new_bench(queue_max=4)
    for number in range(4 * ANSWERS_PER_QUEUE + 10):
        bench.service.start(f"r{number}", BLOCKS)
        bench.answer(f"r{number}")
    assert repr(bench.service) == f"LookupService(queued=0, answers={4 * ANSWERS_PER_QUEUE})"


def test_poll_that_may_wait_returns_with_the_answer() -> None:
    """A caller with nothing else to do gets the answer as soon as it is there, without asking again."""
    index = MemoryIndex()
    service = LookupService(index, list)
    try:
        service.start("r", [b"block-hash"])
        answer = service.poll("r", wait_s=30.0)
        assert answer is not PENDING
        assert answer.reason is MissReason.NOT_INDEXED
    finally:
        service.stop()


def test_answer_that_is_there_is_taken(new_bench: Callable[..., Bench]) -> None:
    """Hits come as they are, and the time that the lookup took is recorded."""
    bench = new_bench()
    bench.service.start("r", BLOCKS)
    assert [hit.worker for hit in bench.take(left_s=5.0, wait_s=5.0).hits] == [bench.ref.worker]
    assert "gc_lookup_seconds" in bench.recorder.drain()


def test_answer_that_may_still_come_is_none(new_bench: Callable[..., Bench]) -> None:
    """With time left beyond the wait, the caller shall ask again."""
    bench = new_bench()
    bench.gate.clear()
    bench.service.start("r", BLOCKS)
    assert bench.take(left_s=5.0, wait_s=0.0) is None


@pytest.mark.parametrize("left_s", [0.01, 0.0, -1.0])
def test_answer_that_is_late_is_a_miss(new_bench: Callable[..., Bench], left_s: float) -> None:
    """At the deadline the lookup is forgotten; a wait never goes beyond it."""
    bench = new_bench()
    bench.gate.clear()
    bench.service.start("r", BLOCKS)
    assert bench.take(left_s=left_s, wait_s=5.0) is MissReason.LOOKUP_DEADLINE
    bench.gate.set()
    assert bench.take(left_s=1.0, wait_s=1.0) is MissReason.INDEX_UNAVAILABLE


@pytest.mark.parametrize(("held", "lined_up"), [(None, []), (0, [BLOCKS[2]]), (2, [BLOCKS[2]]), (3, []), (4, [])])
def test_worker_lines_up_for_what_somebody_has_and_it_has_not(held: int | None, lined_up: list[bytes]) -> None:
    """Under the last block that there is to be had; the answer says who is before it."""
    asked: list[bytes] = []

    def line_up(block: bytes) -> list[str]:
        asked.append(block)
        return ["first", "second"]

    index, ref = MemoryIndex(), ref_of(make_record())
    index.apply(ref, entries(BLOCKS[:3]), [], lease_ttl_s=1000.0)
    service = LookupService(index, lambda: [ref], line_up=line_up)
    service.start("r", BLOCKS, held=held)
    wait_until(lambda: service.poll("r") is not PENDING)
    answer = service.poll("r")
    assert isinstance(answer, LookupAnswer)
    assert (asked, answer.ahead) == (lined_up, ("first", "second") if lined_up else ())
    service.stop()


def test_hits_stand_though_nobody_can_line_up_for_them() -> None:
    """Redis may refuse the one and allow the other."""

    def line_up(_: bytes) -> list[str]:
        raise IndexUnavailable("no line")

    index, ref = MemoryIndex(), ref_of(make_record())
    index.apply(ref, entries(BLOCKS[:3]), [], lease_ttl_s=1000.0)
    service = LookupService(index, lambda: [ref], line_up=line_up)
    service.start("r", BLOCKS, held=0)
    wait_until(lambda: service.poll("r") is not PENDING)
    answer = service.poll("r")
    assert isinstance(answer, LookupAnswer)
    assert ([hit.length for hit in answer.hits], answer.ahead) == ([3], ())
    service.stop()
