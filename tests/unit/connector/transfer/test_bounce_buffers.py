"""Bounce buffers: lent to one pull at a time, and to nobody while a READ that was given up may still land."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ghostcacher_connector.core.errors import TransferError
from ghostcacher_connector.transfer.nixl.bounce_buffers import BounceBuffer, BounceBuffers

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


class BuffersMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.buffers = BounceBuffers(COUNT, 1000)
        self.busy: list[BounceBuffer] = []
        self.reads: list[tuple[BounceBuffer, Any]] = []
        self.ended = 0
        self.called = 0

    @rule()
    def take(self) -> None:
        waiting = {buffer.number for buffer, read in self.reads if not read.over}
        buffer = self.buffers.take()
        self.reads = [(a, r) for a, r in self.reads if not r.over]
        if buffer is None:
            assert len(self.busy) + len(waiting) == COUNT
        else:
            assert buffer.number not in waiting | {other.number for other in self.busy}
            self.busy.append(buffer)

    @precondition(lambda self: self.busy)
    @rule()
    def give_back(self) -> None:
        self.buffers.give_back(self.busy.pop())

    @precondition(lambda self: self.busy)
    @rule()
    def quarantine(self) -> None:
        buffer, read = self.busy.pop(), LateRead()
        self.reads.append((buffer, read))
        self.buffers.quarantine(buffer, read, self._over)  # type: ignore[arg-type]

    @precondition(lambda self: any(not read.over for _, read in self.reads))
    @rule(fails=st.booleans())
    def read_ends(self, fails: bool) -> None:
        read = next(read for _, read in self.reads if not read.over)
        read.over, read.fails = True, fails
        self.ended += 1
        self.buffers.reap()

    @invariant()
    def no_buffer_is_in_two_places(self) -> None:
        self.buffers.check_invariants()
        assert self.called == self.ended

    def _over(self) -> None:
        self.called += 1


TestBuffers = BuffersMachine.TestCase


def test_buffers_do_not_overlap() -> None:
    """Data and seals of different buffers share no byte, and seals are aligned."""
    buffers = BounceBuffers(3, 5000)
    lent = [buffers.take() for _ in range(3)]
    spans = sorted(
        span
        for buffer in lent
        if buffer is not None
        for span in (
            (buffer.data_address, buffer.data_address + buffer.data_bytes),
            (buffer.seal_address, buffer.seal_address + buffer.seal.nbytes),
        )
    )
    assert all(left[1] <= right[0] for left, right in itertools.pairwise(spans))
    assert all(buffer.seal_address % 8 == 0 for buffer in lent if buffer is not None)
    assert buffers.take() is None
