"""The slot table: one generation a slot, behind a header with the worker's incarnation.

Memory picture (little endian, 8-byte aligned, one registered region a rank):

    0        8         16               32       40            40 + 8 * slot_count
    | magic  | version | incarnation    | slots  | generation[0] | generation[1] | ...

Owner: the rank whose memory the slots are. Readers: any peer, by one-sided READ.
The owner's only duty is *bump happens-before overwrite*: `bump` must return before anything may write
into the slots. The reader's only duty is to read the data first and the seal after it: if incarnation and
generation then equal the entry's, no overwrite had begun when the data was read.

A pure state machine over a buffer: no I/O, no clock, no thread. Stores are 8-byte aligned, so that a reader sees the
old or the new generation and nothing in between.
"""

from __future__ import annotations

import secrets

import numpy as np
import numpy.typing as npt

from ghostcacher_connector.core.errors import ProtocolError
from ghostcacher_connector.core.types import INCARNATION_BYTES

MAGIC = int.from_bytes(b"GHOSTKV\0", "little")
VERSION = 1
HEADER_BYTES = 40
GENERATION_BYTES = 8

FIRST_GENERATION_BITS = 62
"""Leaves more room to count than any engine can use, in 64 bits, signed or not."""

Slots = npt.NDArray[np.int64]
Generations = npt.NDArray[np.uint64]


def table_bytes(slot_count: int) -> int:
    """Return the size of a table for `slot_count` slots, in bytes."""
    return HEADER_BYTES + GENERATION_BYTES * slot_count


def generation_offset(slot: int) -> int:
    """Return the offset of a slot's generation from the start of the table, in bytes."""
    return HEADER_BYTES + GENERATION_BYTES * slot


def first_generations(slot_count: int) -> Generations:
    """Return random generations to begin with, shape (slot_count,), the same for every rank of a worker.

    Random, so that an entry which names the wrong slot (it stands under another worker's or namespace's key, or is a
    fault of Redis) does not name that slot's generation by chance: all would be 0 on a fresh engine.
    """
    raw = np.frombuffer(secrets.token_bytes(GENERATION_BYTES * slot_count), dtype=np.uint64)
    return raw >> np.uint64(64 - FIRST_GENERATION_BITS)


class SlotTable:
    """The owner's side of the seal."""

    def __init__(self, slot_count: int) -> None:
        assert slot_count > 0
        self._words = np.zeros(table_bytes(slot_count) // 8, dtype=np.uint64)
        self._words[0] = MAGIC
        self._words[1] = VERSION
        self._words[4] = slot_count
        self._generations = self._words[5:]
        self.slot_count = slot_count
        self.renew_incarnation()

    def __repr__(self) -> str:
        return f"SlotTable(slots={self.slot_count}, incarnation={self.incarnation.hex()[:8]})"

    @property
    def address(self) -> int:
        return int(self._words.ctypes.data)

    @property
    def nbytes(self) -> int:
        return int(self._words.nbytes)

    @property
    def buffer(self) -> memoryview:
        """The table's bytes, read-only."""
        return self._words.view(np.uint8).data.toreadonly()

    @property
    def incarnation(self) -> bytes:
        return self._words[2:4].tobytes()

    def renew_incarnation(self) -> bytes:
        """Become a new incarnation: every entry published before is refused from now on."""
        fresh = secrets.token_bytes(INCARNATION_BYTES)
        self._words[2:4] = np.frombuffer(fresh, dtype=np.uint64)
        return fresh

    def generation(self, slot: int) -> int:
        return int(self._generations[slot])

    def seal(self, slots: Slots) -> Generations:
        """Return what a READ of the seal of `slots` would bring: header and generations, shape (5 + n,)."""
        return np.concatenate((self._words[: HEADER_BYTES // 8], self._generations[slots]))

    def bump(self, slots: Slots, generations: Generations) -> None:
        """Set the generation of each slot; to be called before anything overwrites them.

        slots, generations: shape (n,). Generations are given, not counted here, so that every rank of a
        worker holds the same ones. A generation never goes back.
        """
        if len(slots) == 0:
            return
        assert bool((self._generations[slots] <= generations).all()), "a generation went back"
        self._generations[slots] = generations


def check_header(header: bytes, incarnation: bytes, slot_count: int) -> bool:
    """Return whether a header that was read from a peer is the one of this incarnation.

    Raises ProtocolError when the bytes are no slot table at all.
    """
    words = np.frombuffer(header, dtype=np.uint64, count=HEADER_BYTES // 8)
    if int(words[0]) != MAGIC or int(words[1]) != VERSION:
        raise ProtocolError(
            f"slot table: expected magic {MAGIC:#x} version {VERSION}, found {int(words[0]):#x} version {int(words[1])}"
        )
    return words[2:4].tobytes() == incarnation and int(words[4]) == slot_count


def seal_words(slot_count: int) -> int:
    """Return how many 8-byte words the seal of `slot_count` slots takes: the header, then one generation a slot."""
    return HEADER_BYTES // 8 + slot_count


def valid_mask(seal: Generations, incarnation: bytes, slot_count: int, expected: Generations) -> npt.NDArray[np.bool_]:
    """Say for each block whether the seal that was read after its data still names it.

    seal: header and generations as read, shape (5 + n,). expected: generations as published, shape (n,).
    slot_count: of the owner's whole table. A header of another incarnation makes every block invalid.
    Raises ProtocolError when the header is no slot table at all.
    """
    assert len(seal) == seal_words(len(expected))
    if not check_header(seal[: HEADER_BYTES // 8].tobytes(), incarnation, slot_count):
        return np.zeros(len(expected), dtype=np.bool_)
    return np.equal(seal[HEADER_BYTES // 8 :], expected)
