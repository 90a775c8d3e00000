"""Which worker a prefix belongs to by its hash."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_router.placement import hash_ring as ring


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
