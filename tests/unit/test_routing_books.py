"""What routing remembers by itself: what was sent where, and which text belongs where by its hash."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_router.routing import ring
from ghostcacher_router.routing.memory import PER_PROMPT_MAX, TTL_S, Memory
from tests.support.routing_sim import prompt_of, text_of

T = TypeVar("T")
SHARED = text_of("shared", 1000)


async def soon(call: Callable[[], T], /) -> T:
    """A thread pool of no threads."""
    await asyncio.sleep(0.001)
    return call()


# Memory


def test_memory_finds_the_deepest_boundary() -> None:
    """A prompt finds where its longest sent part went, and whether that is computed."""
    memory = Memory()
    memory.record(prompt_of(SHARED), "w1", 0.0)
    found = memory.find(prompt_of(SHARED + b"more" * 200), 1.0)
    assert found is not None
    assert (found.sent.worker, found.boundary) == ("w1", 2)
    assert found.sent.done_at == float("inf")
    assert memory.find(prompt_of(text_of("other", 1000)), 1.0) is None


def test_memory_keeps_who_has_computed() -> None:
    """Sending a text elsewhere does not hide that a worker has it, until the other one has computed it, too."""
    memory, prompt = Memory(), prompt_of(SHARED)
    memory.record(prompt, "w1", 0.0, done_at=0.5)
    memory.record(prompt, "w2", 1.0)
    assert memory.find(prompt, 1.0).sent.worker == "w1"  # type: ignore[union-attr]
    memory.record(prompt, "w2", 2.0, done_at=2.0)
    assert memory.find(prompt, 2.0).sent.worker == "w2"  # type: ignore[union-attr]


def test_memory_knows_where_a_text_overflowed_to() -> None:
    """A text that went to several workers is remembered at the latest few of them."""
    memory, prompt = Memory(), prompt_of(SHARED)
    for number in range(6):
        memory.record(prompt, f"w{number}", float(number))
    found = memory.find(prompt, 6.0)
    assert found is not None
    assert (found.sent.worker, found.sent.others) == ("w5", ("w4", "w3", "w2"))


def test_memory_withdraws_what_was_not_computed() -> None:
    """A failed request leaves nothing, however far it seemed to have come."""
    memory, prompt = Memory(), prompt_of(SHARED)
    memory.record(prompt, "w1", 0.0, by=1)
    memory.withdraw(prompt, by=1)
    assert memory.find(prompt, 0.0) is None
    memory.record(prompt, "w1", 0.0, by=2)
    memory.record(prompt, "w1", 0.0, done_at=0.1, by=2)
    memory.withdraw(prompt, by=2)
    assert memory.find(prompt, 0.0) is None


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("failed_first", [True, False])
def test_memory_keeps_what_another_request_has_shown(failed_first: bool, ended: bool) -> None:
    """Whichever of two began to be answered first, and whether the good one has ended: only the bad one is undone."""
    memory, prompt = Memory(), prompt_of(SHARED)
    bad, good = (1, 2) if failed_first else (2, 1)
    for by in (1, 2):
        memory.record(prompt, "w1", 0.0, by=by)
    for by in (1, 2):
        memory.record(prompt, "w1", 0.0, done_at=float(by), by=by)
    if ended:
        memory.record(prompt, "w1", 3.0, done_at=3.0)
    memory.withdraw(prompt, by=bad)
    found = memory.find(prompt, 3.0)
    assert (found is not None) is (ended or good == 2)


def test_memory_forgets_by_age_and_by_worker() -> None:
    """What was sent long ago, or to a worker whose cache is gone, is not believed."""
    memory, prompt = Memory(), prompt_of(SHARED)
    memory.record(prompt, "w1", 0.0)
    assert memory.find(prompt, TTL_S + 1) is None
    memory.forget_worker("w1", 5.0)
    assert memory.find(prompt, 6.0) is None
    memory.record(prompt, "w1", 7.0)
    assert memory.find(prompt, 8.0) is not None


def test_memory_is_bounded() -> None:
    """Neither many prompts nor a long one fill it, and a long one is found by its shared part."""
    memory = Memory(entries_max=200)
    for number in range(100):
        memory.record(prompt_of(text_of(f"text {number}", 1000)), "w", 0.0)
    assert len(memory._sent) == 200
    long = text_of("long", 100_000)
    memory.record(prompt_of(long), "w1", 0.0)
    assert sum(sent.worker == "w1" for sent in memory._sent.values()) <= PER_PROMPT_MAX
    found = memory.find(prompt_of(long[:-2000] + b"x" * 500), 0.0)
    assert found is not None
    assert found.boundary > 370


# Ring


@given(st.binary(min_size=8, max_size=32), st.integers(2, 40), st.integers(0, 39))
def test_ring_moves_only_what_was_on_the_worker_that_left(key: bytes, count: int, leaving: int) -> None:
    """A worker that leaves changes nothing for texts of others."""
    workers = [f"w{number}" for number in range(count)]
    before = ring.pick(key, workers, lambda _: 0)
    rest = [worker for worker in workers if worker != f"w{leaving % count}"]
    after = ring.pick(key, rest, lambda _: 0)
    assert after == before or before not in rest


@given(st.lists(st.integers(0, 200), min_size=1, max_size=40), st.binary(min_size=1, max_size=8))
def test_ring_never_overloads(loads: list[int], key: bytes) -> None:
    """No worker gets a request beyond its bound, and some worker always can take it."""
    workers = {f"w{number}": load for number, load in enumerate(loads)}
    picked = ring.pick(key, list(workers), workers.__getitem__)
    assert workers[picked] + 1 <= ring.bound_of(loads)


def test_ring_spreads() -> None:
    """A thousand texts spread over ten workers."""
    workers = [f"w{number}" for number in range(10)]
    counts = Counter(ring.pick(str(number).encode(), workers, lambda _: 0) for number in range(1000))
    assert all(60 < counts[worker] < 140 for worker in workers)
