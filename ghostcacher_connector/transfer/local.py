"""Loads from a rank's own host slots: pulls whose peer is the rank itself, copied in the pulling thread.

Seal and generations are those of any pull: the host slot may be given to another block while it is read, since nobody
waits for a load. The table is this process's own, so that the seal is read from memory, after the rows.

Nothing lands after `pull` has returned: the copy is over by then.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ghostcacher_connector.core.errors import TransferError
from ghostcacher_connector.core.types import MissReason, RankEndpoint, SlotMemory
from ghostcacher_connector.slots import Slots, SlotTable, check_header, seal_words, valid_mask
from ghostcacher_connector.transfer.base import (
    Probe,
    PullRequest,
    PullResult,
    Transport,
    Validity,
    checked_result,
    failed_result,
)
from ghostcacher_connector.transfer.layout import Bytes, request_fault, rows_of, slots_fault
from ghostcacher_connector.transfer.row_copy import row_copy

CHUNK_BYTES = 64 << 20
"""Copied between two looks at the deadline: some 10 ms."""


class LocalTransport(Transport):
    """Loads from one rank's host slots into its engine slots."""

    name = "local"

    def __init__(
        self,
        memories: tuple[SlotMemory, SlotMemory],
        table: SlotTable,
        *,
        agent_name: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """memories: the engine's and the host's. table: of the slots of both.

        agent_name: by which the rank knows itself among endpoints. Raises ConfigError, TransferError.
        """
        self._engine, self._host = memories
        self._table = table
        self._agent_name = agent_name
        self._clock = clock
        self._rows = row_copy(self._host, self._engine)
        self._closed = False

    def __repr__(self) -> str:
        return f"LocalTransport({self._agent_name}, {self._host.slot_count} host slots)"

    def reaches(self, peer: RankEndpoint) -> bool:
        return peer.agent_name == self._agent_name and not self._closed

    def pull(self, request: PullRequest) -> PullResult:
        started = self._clock()
        count = len(request.local_slots)
        fault = self._fault_of(request)
        if fault is not None:
            return failed_result(count, self.name, *fault)
        slots = request.remote_slots - self._engine.slot_count
        step = max(1, CHUNK_BYTES // self._engine.bytes_per_slot)
        moved_bytes = 0
        for low in range(0, count, step):
            if self._clock() >= request.deadline:
                detail = f"deadline passed with {low} of {count} blocks copied"
                return failed_result(count, self.name, MissReason.TIMEOUT, detail, moved_bytes=moved_bytes)
            part = slice(low, low + step)
            try:
                self._rows.run(slots[part], request.local_slots[part])
            except TransferError as exc:
                return failed_result(count, self.name, MissReason.TRANSFER_FAILED, str(exc), moved_bytes=moved_bytes)
            moved_bytes += len(slots[part]) * self._engine.bytes_per_slot
        # Only now, with every byte in place, may the seal be read: earlier it would prove nothing.
        return checked_result(self._check_seal(request), self.name, moved_bytes, self._clock() - started)

    def probe(self, peer: RankEndpoint, slots: Slots, *, timeout_s: float) -> Probe:
        started = time.perf_counter()
        if not self.reaches(peer) or timeout_s <= 0:
            raise TransferError(f"probe of {peer.agent_name}: this is {self._agent_name}")
        fault = slots_fault(slots, self._table.slot_count)
        if fault or not self._are_host_slots(slots):
            raise TransferError(f"probe: {fault or 'an engine slot is no source of a load'}")
        rows = [self._host_rows(number, slots) for number in range(len(self._host.segments))]
        read = time.perf_counter()
        seal = self._table.seal(slots)
        current = check_header(seal[: seal_words(0)].tobytes(), peer.incarnation, peer.slot_count)
        data = b"".join(part.tobytes() for part in rows)
        return Probe(self.name, 0.0, current, seal[seal_words(0) :], data, read - started)

    def forget(self, peer: RankEndpoint) -> None:
        """Nothing is kept of a peer."""

    def close(self) -> None:
        self._closed = True

    def _check_seal(self, request: PullRequest) -> Validity:
        seal = self._table.seal(request.remote_slots)
        return valid_mask(seal, request.peer.incarnation, request.peer.slot_count, request.generations)

    def _fault_of(self, request: PullRequest) -> tuple[MissReason, str] | None:
        if not self.reaches(request.peer):
            return MissReason.PEER_UNREACHABLE, f"{request.peer.agent_name} is not {self._agent_name}"
        fault = request_fault(
            self._engine, request.peer, request.remote_slots, request.local_slots, len(request.generations)
        )
        if fault is None and not self._are_host_slots(request.remote_slots):
            fault = MissReason.MALFORMED_ENTRY, "an engine slot is no source of a load"
        return fault

    def _are_host_slots(self, slots: Slots) -> bool:
        first = self._engine.slot_count
        return bool(((slots >= first) & (slots < first + self._host.slot_count)).all())

    def _host_rows(self, number: int, slots: Slots) -> Bytes:
        rows = rows_of(self._host.segments[number], self._host.slot_count)
        return rows[slots - self._engine.slot_count]
