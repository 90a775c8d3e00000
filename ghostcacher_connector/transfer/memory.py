"""The in-memory fake of the real transports: ranks of one process read each other's memory by address.

A `Fabric` is what a host is to NIXL: it knows which ranks live. Faults are injected per rank, so that each way in
which a pull can end is one line in a test. The rows are really moved and the seal is really read, after the rows.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from enum import Enum, auto

import numpy as np

from ghostcacher_connector.core.errors import PeerUnreachable, ProtocolError, TransferError
from ghostcacher_connector.core.types import MissReason, RankEndpoint, SlotMemory
from ghostcacher_connector.slots import Slots, SlotTable, check_header, seal_words, valid_mask
from ghostcacher_connector.transfer.base import Probe, PullRequest, PullResult, Transport, checked_result, failed_result
from ghostcacher_connector.transfer.layout import Bytes, by_memory, endpoint_fault, request_fault, rows_of, slots_fault
from ghostcacher_connector.transfer.shares import part_of_memory


class Fault(Enum):
    """What a rank does to those who pull from it."""

    UNREACHABLE = auto()
    """Nothing answers: a dead process."""
    STALLED = auto()
    """READs end only after the deadline: a stopped owner whose READs UCX emulates."""
    REUSED_AFTER_READ = auto()
    """Every slot is bumped between the READ of the rows and that of the seal."""


class Fabric:
    """The ranks that live, by agent name. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._tables: dict[str, SlotTable] = {}
        self._faults: dict[str, Fault] = {}

    def join(self, name: str, table: SlotTable) -> str:
        """Enter a rank; return its agent name, which no other incarnation shares."""
        with self._lock:
            agent = f"{name}-{next(self._numbers)}"
            self._tables[agent] = table
            return agent

    def leave(self, agent: str) -> None:
        """Remove a rank, as if its process had died."""
        with self._lock:
            self._tables.pop(agent, None)

    def inject(self, agent: str, fault: Fault | None) -> None:
        """Make a rank misbehave from now on, or behave again."""
        with self._lock:
            if fault is None:
                self._faults.pop(agent, None)
            else:
                self._faults[agent] = fault

    def find(self, peer: RankEndpoint) -> tuple[SlotTable, Fault | None]:
        """Return a live rank's table and its fault. Raises PeerUnreachable."""
        with self._lock:
            table = self._tables.get(peer.agent_name)
            fault = self._faults.get(peer.agent_name)
        if table is None or fault is Fault.UNREACHABLE or table.address != peer.table:
            raise PeerUnreachable(f"{peer.agent_name} is not on this fabric")
        return table, fault


class MemoryTransport(Transport):
    """Pulls between ranks of one process."""

    name = "memory"

    def __init__(
        self,
        fabric: Fabric,
        memories: tuple[SlotMemory, ...],
        table: SlotTable,
        *,
        name: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fabric = fabric
        self._memories = memories
        self._table = table
        self._clock = clock
        self.agent_name = fabric.join(name, table)

    def endpoint(self, *, rank: int, relay: str | None = None) -> RankEndpoint:
        """Return what peers on the same fabric need in order to read this rank."""
        return RankEndpoint(
            rank=rank,
            incarnation=self._table.incarnation,
            memories=self._memories,
            table=self._table.address,
            agent_name=self.agent_name,
            agent_metadata=b"",
            relay=relay,
            host="fabric",
        )

    def reaches(self, peer: RankEndpoint) -> bool:
        try:
            self._fabric.find(peer)
        except PeerUnreachable:
            return False
        return not endpoint_fault(peer)

    def pull(self, request: PullRequest) -> PullResult:
        started = self._clock()
        count = len(request.local_slots)
        peer, ours = request.peer, part_of_memory(self._memories[0], request.local_part)
        fault = request_fault(ours, peer, request.remote_slots, request.local_slots, len(request.generations))
        if fault is not None:
            return failed_result(count, self.name, *fault)
        try:
            table, misbehaviour = self._fabric.find(peer)
        except PeerUnreachable as exc:
            return failed_result(count, self.name, MissReason.PEER_UNREACHABLE, str(exc))
        if misbehaviour is Fault.STALLED or self._clock() >= request.deadline:
            return failed_result(count, self.name, MissReason.TIMEOUT, "deadline passed")
        for number, segment in enumerate(ours.segments):
            rows_of(segment, ours.slot_count)[request.local_slots] = _rows(peer, number, request.remote_slots)
        if misbehaviour is Fault.REUSED_AFTER_READ:
            _bump_all(table, request.remote_slots)
        seal = table.seal(request.remote_slots)
        try:
            valid = valid_mask(seal, peer.incarnation, peer.slot_count, request.generations)
        except ProtocolError as exc:
            return failed_result(count, self.name, MissReason.PEER_UNREACHABLE, str(exc))
        moved = ours.bytes_per_slot * len(request.remote_slots)
        return checked_result(valid, self.name, moved, self._clock() - started)

    def probe(self, peer: RankEndpoint, slots: Slots, *, timeout_s: float) -> Probe:
        table, misbehaviour = self._fabric.find(peer)
        fault = endpoint_fault(peer) or slots_fault(slots, peer.slot_count)
        if fault or misbehaviour is Fault.STALLED or timeout_s <= 0:
            raise TransferError(f"probe of {peer.agent_name}: {fault or 'deadline passed'}")
        data = b"".join(_rows(peer, number, slots).tobytes() for number in range(len(peer.slot_bytes)))
        seal = table.seal(slots)
        current = check_header(seal[: seal_words(0)].tobytes(), peer.incarnation, peer.slot_count)
        return Probe(self.name, 0.0, current, seal[seal_words(0) :], data, 0.0)

    def forget(self, peer: RankEndpoint) -> None:
        """Nothing is kept of a peer."""

    def close(self) -> None:
        self._fabric.leave(self.agent_name)


def _rows(peer: RankEndpoint, number: int, slots: Slots) -> Bytes:
    """Return the rows of slots in the segment of a number, shape (n, slot_bytes)."""
    rows = np.empty((len(slots), peer.slot_bytes[number]), dtype=np.uint8)
    for memory, places, within in by_memory(peer.memories, slots):
        rows[places] = rows_of(memory.segments[number], memory.slot_count)[within]
    return rows


def _bump_all(table: SlotTable, slots: Slots) -> None:
    fresh = np.array([table.generation(int(slot)) + 1 for slot in slots], dtype=np.uint64)
    table.bump(slots, fresh)
