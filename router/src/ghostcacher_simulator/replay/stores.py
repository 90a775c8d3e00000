"""What the workers and routers of a simulated fleet share: the index, the coordination store, the object tier."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from ghostcacher_connector.core.coordination.base import Flush, LoadReport, PrefixMapUpdate, PromptChain
from ghostcacher_connector.core.coordination.memory import MemoryCoordinationStore
from ghostcacher_connector.core.index.base import WorkerRef
from ghostcacher_connector.core.index.memory import MemoryIndex
from ghostcacher_connector.core.types import BlockHash, Location
from ghostcacher_simulator.replay.objects import Objects


class Peer(Protocol):
    """A worker as another one reads it."""

    name: str
    dead: bool
    link_share: float

    @property
    def incarnation(self) -> bytes | None: ...

    def generation(self, location: Location) -> int:
        """Return the generation of a slot now: the seal."""

    def content(self, location: Location) -> BlockHash | None:
        """Return the block that lies in a slot, whatever anybody believes."""


class TellingStore(MemoryCoordinationStore):
    """A store that says when something was appended to what routers read: in virtual time nobody may wait in it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock=clock)
        self._readers: list[asyncio.Event] = []

    def reader(self) -> asyncio.Event:
        """Return an event of one reader's own, set when there may be something to read: now, and from now on."""
        event = asyncio.Event()
        event.set()
        self._readers.append(event)
        return event

    def tell(self) -> None:
        """Have all readers look."""
        for event in self._readers:
            event.set()

    def publish(
        self,
        ref: WorkerRef,
        load: LoadReport | None,
        chains: Sequence[PromptChain],
        computed: Sequence[str],
        *,
        ttl_s: float,
    ) -> bool:
        listening = super().publish(ref, load, chains, computed, ttl_s=ttl_s)
        if chains or computed:
            self.tell()
        return listening

    def append_updates(self, items: Sequence[PrefixMapUpdate | Flush]) -> None:
        super().append_updates(items)
        self.tell()


class Stores:
    """What workers and routers share."""

    def __init__(self, *, pulls: bool, objects: Objects | None = None) -> None:
        """pulls: whether workers pull from each other. objects: what they keep together; None: nothing."""
        clock = asyncio.get_running_loop().time
        self.pulls, self.objects = pulls, objects
        self.index = MemoryIndex(clock=clock)
        self.coordination = TellingStore(clock)
        self._clients: list[MemoryCoordinationStore] = []
        self.workers: dict[str, Peer] = {}
        """Those that are there, by name."""

    def client(self) -> MemoryCoordinationStore:
        """Return a client of the store, as another process has one."""
        self._clients.append(self.coordination.client())
        return self._clients[-1]

    def reach(self, *, reachable: bool) -> None:
        """Let Redis go away, or come back, for all."""
        self.index.reachable = self.coordination.reachable = reachable
        for client in self._clients:
            client.reachable = reachable
        # A read that waits ends with its connection.
        self.coordination.tell()
