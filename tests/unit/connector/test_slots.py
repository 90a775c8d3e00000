"""The slot table: the owner's bumps, and what a reader makes of the seal."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ghostcacher_connector.core.errors import ProtocolError
from ghostcacher_connector.slots import HEADER_BYTES, SlotTable, check_header, generation_offset, valid_mask

SLOTS = 8


def seal_of(table: SlotTable, slots: np.ndarray) -> np.ndarray:
    """What a reader gets: header and the generations of `slots`, out of the raw bytes."""
    words = np.frombuffer(table.buffer, dtype=np.uint64)
    return np.concatenate((words[:5], words[5:][slots]))


class TableMachine(RuleBasedStateMachine):
    """An owner that reuses slots and restarts; entries published on the way; a reader that checks them all."""

    def __init__(self) -> None:
        super().__init__()
        self.table = SlotTable(SLOTS)
        self.model = [0] * SLOTS
        self.entries: set[tuple[bytes, int, int]] = set()

    @rule(slots=st.sets(st.integers(0, SLOTS - 1)), step=st.integers(0, 3))
    def bump(self, slots: set[int], step: int) -> None:
        chosen = np.array(sorted(slots), dtype=np.int64)
        for slot in slots:
            self.model[slot] += step
        self.table.bump(chosen, np.array([self.model[slot] for slot in sorted(slots)], dtype=np.uint64))

    @rule(slot=st.integers(0, SLOTS - 1))
    def publish(self, slot: int) -> None:
        self.entries.add((self.table.incarnation, slot, self.table.generation(slot)))

    @rule()
    def restart(self) -> None:
        self.table.renew_incarnation()

    @rule(slot=st.integers(0, SLOTS - 1))
    def generation_cannot_go_back(self, slot: int) -> None:
        if self.model[slot]:
            with pytest.raises(AssertionError, match="went back"):
                self.table.bump(np.array([slot]), np.array([self.model[slot] - 1], dtype=np.uint64))

    @invariant()
    def reader_accepts_exactly_the_current_entries(self) -> None:
        for incarnation, slot, generation in self.entries:
            seal = seal_of(self.table, np.array([slot]))
            valid = valid_mask(seal, incarnation, SLOTS, np.array([generation], dtype=np.uint64))
            current = incarnation == self.table.incarnation and generation == self.model[slot]
            assert valid.tolist() == [current]


TestTable = TableMachine.TestCase


@given(st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES))
def test_random_header_is_refused(header: bytes) -> None:
    """Bytes that are no slot table are never taken for one."""
    with pytest.raises(ProtocolError, match="slot table"):
        check_header(header, bytes(16), SLOTS)


def test_header_of_another_table_size_is_refused() -> None:
    """A header that speaks of another number of slots does not match the endpoint."""
    table = SlotTable(SLOTS)
    header = bytes(table.buffer[:HEADER_BYTES])
    assert check_header(header, table.incarnation, SLOTS)
    assert not check_header(header, table.incarnation, SLOTS + 1)


def test_generations_are_aligned_words_at_their_offset() -> None:
    """A reader that READs eight bytes at `generation_offset` gets one whole generation."""
    table = SlotTable(SLOTS)
    table.bump(np.array([3]), np.array([0x1122334455667788], dtype=np.uint64))
    offset = generation_offset(3)
    assert (table.address + offset) % 8 == 0
    assert int.from_bytes(table.buffer[offset : offset + 8], "little") == 0x1122334455667788
