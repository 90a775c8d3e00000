"""The slots of a router in several processes: which child accepts for each, and another one where there is none."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from ghostcacher_connector.core.backoff import Backoff
from ghostcacher_router.processes.child import Child


class Slot:
    """One socket, and whose turn it is to accept from it. child: the one that is ready; None while there is none."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.child: Child | None = None
        self.stand_in: Child | None = None
        """The child of another slot that accepts for it."""
        self.changing = asyncio.Lock()
        """Held while a child is started for it."""
        self.backoff = Backoff()
        self.failures = 0
        """Children in a row that were never ready."""

    def __repr__(self) -> str:
        return f"Slot({self.index}, {self.child!r}, stand_in={self.stand_in!r})"


class Slots:
    """All slots. On the event loop only."""

    def __init__(self, count: int) -> None:
        self._slots = [Slot(index) for index in range(count)]

    def __repr__(self) -> str:
        return f"Slots({self._slots!r})"

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._slots)

    @property
    def children(self) -> list[Child]:
        """Those that are ready."""
        return [slot.child for slot in self._slots if slot.child is not None]

    def put(self, slot: Slot, child: Child | None) -> None:
        """Have a child that is ready accept for its slot from now on; None: it has ended, and others are to."""
        slot.child = child
        self._settle()

    def _settle(self) -> None:
        """See to it that a child that is ready accepts for each slot."""
        ready = self.children
        for slot in self._slots:
            if slot.child is not None:
                if slot.stand_in is not None:
                    slot.stand_in.tell(f"return {slot.index}")
                slot.stand_in = None
            elif slot.stand_in not in ready:
                slot.stand_in = ready[slot.index % len(ready)] if ready else None
                if slot.stand_in is not None:
                    slot.stand_in.tell(f"adopt {slot.index}")
