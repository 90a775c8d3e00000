"""Arenas: lent to one pull at a time, and to nobody while a READ that was given up may still land."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ghostcacher_connector.core.errors import TransferError
from ghostcacher_connector.transfer.nixl.bounce_buffers import Arena, ArenaPool

COUNT = 3


class LateRead:
    """A READ that is over when the test says so."""

    def __init__(self) -> None:
        self.over = False
        self.fails = False

    def done(self) -> bool:
        if self.over and self.fails:
            raise TransferError("failed")
        return self.over


class PoolMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.pool = ArenaPool(COUNT, 1000)
        self.busy: list[Arena] = []
        self.reads: list[tuple[Arena, Any]] = []
        self.ended = 0
        self.called = 0

    @rule()
    def take(self) -> None:
        waiting = {arena.number for arena, read in self.reads if not read.over}
        arena = self.pool.take()
        self.reads = [(a, r) for a, r in self.reads if not r.over]
        if arena is None:
            assert len(self.busy) + len(waiting) == COUNT
        else:
            assert arena.number not in waiting | {other.number for other in self.busy}
            self.busy.append(arena)

    @precondition(lambda self: self.busy)
    @rule()
    def give_back(self) -> None:
        self.pool.give_back(self.busy.pop())

    @precondition(lambda self: self.busy)
    @rule()
    def quarantine(self) -> None:
        arena, read = self.busy.pop(), LateRead()
        self.reads.append((arena, read))
        self.pool.quarantine(arena, read, self._over)  # type: ignore[arg-type]

    @precondition(lambda self: any(not read.over for _, read in self.reads))
    @rule(fails=st.booleans())
    def read_ends(self, fails: bool) -> None:
        read = next(read for _, read in self.reads if not read.over)
        read.over, read.fails = True, fails
        self.ended += 1
        self.pool.reap()

    @invariant()
    def no_arena_is_in_two_places(self) -> None:
        self.pool.check_invariants()
        assert self.called == self.ended

    def _over(self) -> None:
        self.called += 1


TestPool = PoolMachine.TestCase


def test_arenas_do_not_overlap() -> None:
    """Data and seals of different arenas share no byte, and seals are aligned."""
    pool = ArenaPool(3, 5000)
    arenas = [pool.take() for _ in range(3)]
    spans = sorted(
        span
        for arena in arenas
        if arena is not None
        for span in (
            (arena.data_address, arena.data_address + arena.data_bytes),
            (arena.seal_address, arena.seal_address + arena.seal.nbytes),
        )
    )
    assert all(left[1] <= right[0] for left, right in itertools.pairwise(spans))
    assert all(arena.seal_address % 8 == 0 for arena in arenas if arena is not None)
    assert pool.take() is None
