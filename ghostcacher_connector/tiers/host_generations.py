"""The generations of a worker's host slots, and which of them the ranks have yet to learn."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ghostcacher_connector.slots import Generations, Slots, first_generations


class HostGenerations:
    """Of the slots ``[first_slot, first_slot + slot_count)``. They rise when slots are given up."""

    def __init__(self, first_slot: int, slot_count: int) -> None:
        """Begin at random. Ranks begin at 0, and get these with the first step."""
        self._first_slot = first_slot
        self._generations = first_generations(slot_count)
        self._bumped: set[int] = set()
        self.send_all()

    def __len__(self) -> int:
        return len(self._generations)

    def of(self, slot: int) -> int:
        """Return the present generation of a slot."""
        return int(self._generations[slot - self._first_slot])

    def bump(self, slot: int) -> None:
        """Note that what a slot held must not be used any more."""
        self._generations[slot - self._first_slot] += np.uint64(1)
        self._bumped.add(slot)

    def bump_all(self, slots: Iterable[int], count: int) -> None:
        """Do the same as `bump` for many slots, `count` of them, at some 0.1 us each."""
        many = np.fromiter(slots, dtype=np.int64, count=count)
        self._generations[many - self._first_slot] += np.uint64(1)
        self._bumped.update(many.tolist())

    @property
    def waiting(self) -> bool:
        """Whether there is anything to take: most steps give up nothing."""
        return bool(self._bumped)

    def take(self) -> tuple[Slots, Generations]:
        """Return the slots that were given up since the last call, with their new generations, shape (n,) each."""
        bumped, self._bumped = self._bumped, set()
        slots = np.fromiter(bumped, dtype=np.int64, count=len(bumped))
        return slots, self._generations[slots - self._first_slot]

    def send_all(self) -> None:
        """Send every generation with the next step: a rank may have missed some."""
        self._bumped = set(range(self._first_slot, self._first_slot + len(self)))
