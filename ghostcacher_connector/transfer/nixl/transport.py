"""Pulls by NIXL: one-sided READs from a peer's memory, which ask nothing of the peer.

Owner: the engine's rank process. Memory picture:

    engine slots   (registered: peers READ them, pulled rows land in them)
    slot table     (registered: peers READ the seal)
    bounce buffers (private: seals and probes land there)

Life of a pull (`pull`):
1. `_read_rows` READs the rows, chunk by chunk, into the engine's slots and waits until the last READ is over;
2. only then `_check_seal` READs the seal of the same slots, and says which rows are valid.

A READ into the engine's slots is waited for even past the deadline, since the slots cannot be given back until it is
over; over shared memory it is over when it was posted. The deadline is looked at between chunks. A seal or a probe
lands in a bounce buffer: its READ is given up at the deadline, and the buffer stays quarantined until it is over.

Threads: any number may call any method; a peer that hangs holds up only the pulls from it.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterator

from ghostcacher_connector.core.errors import PeerUnreachable, TransferError
from ghostcacher_connector.core.types import MissReason, RankEndpoint
from ghostcacher_connector.slots import Slots, SlotTable
from ghostcacher_connector.transfer.base import (
    Probe,
    PullRequest,
    PullResult,
    Transport,
    Validity,
    checked_result,
    failed_result,
)
from ghostcacher_connector.transfer.layout import RankMemory, Side, descriptors, regions, request_fault
from ghostcacher_connector.transfer.nixl.agent import NixlAgent
from ghostcacher_connector.transfer.nixl.bounce_buffers import BounceBuffers
from ghostcacher_connector.transfer.nixl.host import host_id
from ghostcacher_connector.transfer.nixl.reader import DeadlinePassed, Loan, NixlReader, NoBounceBuffer, wait_until_over

logger = logging.getLogger(__name__)

CHUNK_BYTES = 64 << 20
"""Rows that one READ brings: about 25 ms at the speed of shared memory, which is how late a deadline may be noticed."""

SEAL_GRACE_S = 0.05
"""How long the seal READ may take after the deadline, once all rows are there."""

PROBE_BYTES_MIN = 256 << 10
"""Least size of a bounce buffer's data part: a smaller probe measures latency, not rate."""


class NixlTransport(Transport):
    """Pulls over one NIXL agent; see the module's docstring."""

    name = "nixl"

    def __init__(
        self,
        memory: RankMemory,
        table: SlotTable,
        *,
        name: str,
        ucx_tls: str | None = None,
        threads: int = 2,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Register `memory` and `table` and start the agent.

        name: of the worker and rank; a random suffix makes it the agent's name, which no other incarnation has.
        threads: how many will pull at the same time.
        Raises ConfigError for settings that cannot work, TransferError when NIXL does not start.
        """
        assert table.slot_count == memory.slot_count
        self._memory = memory
        self._table = table
        self._clock = clock
        buffer_bytes = max(PROBE_BYTES_MIN, 2 * memory.bytes_per_slot)
        buffers = BounceBuffers(threads + 2, buffer_bytes, memory=memory.memory, device=memory.device)
        agent = NixlAgent(f"{name}-{secrets.token_hex(4)}", ucx_tls=ucx_tls, threads=threads)
        agent.register(regions(memory), memory.memory, memory.device)
        agent.register([(table.address, table.nbytes)], "DRAM")
        self._reader = NixlReader(agent, buffers, clock=clock)
        self.overdue_count = 0
        self._closed = False

    def __repr__(self) -> str:
        return f"NixlTransport({self._reader.agent.name}, {self._memory.slot_count} slots)"

    @property
    def quarantined_count(self) -> int:
        """How many bounce buffers wait for a READ that was given up."""
        return self._reader.buffers.reap()

    def endpoint(self, *, rank: int, relay: str | None = None) -> RankEndpoint:
        """Return what peers need in order to read this rank."""
        return RankEndpoint(
            rank=rank,
            incarnation=self._table.incarnation,
            slot_count=self._memory.slot_count,
            segments=self._memory.segments,
            table=self._table.address,
            memory=self._memory.memory,
            device=self._memory.device,
            agent_name=self._reader.agent.name,
            agent_metadata=self._reader.agent.metadata(),
            relay=relay,
            host=host_id(),
        )

    def reaches(self, peer: RankEndpoint) -> bool:
        return not self._closed and self._reader.reaches(peer)

    def probe(self, peer: RankEndpoint, slots: Slots, *, timeout_s: float) -> Probe:
        return self._reader.probe(peer, slots, name=self.name, timeout_s=timeout_s)

    def forget(self, peer: RankEndpoint) -> None:
        self._reader.links.forget(peer)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._reader.close()

    def pull(self, request: PullRequest) -> PullResult:
        started = self._clock()
        count = len(request.local_slots)
        fault = request_fault(
            self._memory, request.peer, request.remote_slots, request.local_slots, len(request.generations)
        )
        if fault is None and self._closed:
            fault = MissReason.DISABLED, "the transport is closed"
        if fault is not None:
            return failed_result(count, self.name, *fault)
        moved_bytes = 0
        try:
            with self._reader.reading_from(request.peer) as loan:
                for chunk_bytes in self._read_rows(request):
                    moved_bytes += chunk_bytes
                # Only now, with every byte in place, may the seal be read: earlier it would prove nothing.
                valid = self._check_seal(request, loan)
        except TransferError as exc:
            seconds = self._clock() - started
            return failed_result(count, self.name, _reason_of(exc), str(exc), moved_bytes=moved_bytes, seconds=seconds)
        return checked_result(valid, self.name, moved_bytes, self._clock() - started)

    def _read_rows(self, request: PullRequest) -> Iterator[int]:
        """READ the rows into the local slots, chunk by chunk; yield the bytes of each chunk that is in place."""
        peer = request.peer
        theirs, ours = Side(peer.segments, peer.device), Side(self._memory.segments, self._memory.device)
        for part in self._chunks(request):
            remote, local = descriptors(theirs, ours, request.remote_slots[part], request.local_slots[part])
            read = self._reader.agent.read(peer.agent_name, remote, peer.memory, local, self._memory.memory)
            if not wait_until_over(read, request.deadline, self._clock):
                self.overdue_count += 1
                logger.warning("READ from %s is overdue; its slots are held until it is over", peer.agent_name)
                wait_until_over(read, None, self._clock)
            yield int(remote[:, 1].sum())

    def _check_seal(self, request: PullRequest, loan: Loan) -> Validity:
        """Say which rows are valid. All bytes are there: microseconds more decide whether they count, so give them."""
        deadline = max(request.deadline, self._clock() + SEAL_GRACE_S)
        return self._reader.check_seal(request.peer, loan, request.remote_slots, request.generations, deadline)

    def _chunks(self, request: PullRequest) -> Iterator[slice]:
        """Cut a pull in chunks; before each, raise DeadlinePassed when it is too late."""
        step = max(1, CHUNK_BYTES // self._memory.bytes_per_slot)
        for low in range(0, len(request.remote_slots), step):
            if self._clock() >= request.deadline:
                raise DeadlinePassed(f"deadline passed with {low} of {len(request.remote_slots)} blocks read")
            yield slice(low, low + step)


def _reason_of(error: TransferError) -> MissReason:
    if isinstance(error, (DeadlinePassed, NoBounceBuffer)):
        return MissReason.TIMEOUT
    return MissReason.PEER_UNREACHABLE if isinstance(error, PeerUnreachable) else MissReason.TRANSFER_FAILED
