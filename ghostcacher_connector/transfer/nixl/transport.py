"""Pulls by NIXL: one-sided READs from a peer's memory, which ask nothing of the peer.

Owner: the engine's rank process. Memory picture:

    engine slots   (registered with the serving agent: peers READ them; with the reading one: pulled rows land in them)
    host slots     (registered with the serving agent: peers READ them)
    slot table     (registered with the serving agent: peers READ the seal)
    bounce buffers (private to the reading agent: seals and probes land there)

Life of a pull (`pull`):
1. `_read_rows` READs the rows, memory by memory and chunk by chunk, into the engine's slots and waits until the last
   READ is over;
2. only then `_check_seal` READs the seal of the same slots, and says which rows are valid.

Host slots of a peer are READ straight into the slots of an engine in host memory. Nothing carries them into a GPU in
one READ without a network card, so there they land in a bounce buffer, a few at a time, and are copied to the device.

A READ into the engine's slots is waited for past the deadline, for a grace, since the slots cannot be given back until
it is over; over shared memory it is over when it was posted. After that, or when it failed in a way that proves
nothing, the slots are quarantined and the reading agent is taken down (readers.py). The deadline is looked at between
chunks. A seal or a probe lands in a bounce buffer: its READ is given up at the deadline, and the buffer quarantined.

Threads: any number may call any method; a peer that hangs holds up only the pulls from it.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np

from ghostcacher_connector.core.errors import PeerUnreachable, TransferError
from ghostcacher_connector.core.types import MissReason, RankEndpoint, SlotMemory, Tier
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
from ghostcacher_connector.transfer.layout import (
    Part,
    Side,
    by_memory,
    descriptors,
    packed_segments,
    regions,
    request_fault,
)
from ghostcacher_connector.transfer.nixl.agent import NixlAgent, UnfinishedRead
from ghostcacher_connector.transfer.nixl.bounce_buffers import BounceBuffers
from ghostcacher_connector.transfer.nixl.host import host_id
from ghostcacher_connector.transfer.nixl.reader import DeadlinePassed, Loan, NixlReader, NoBounceBuffer, wait_until_over
from ghostcacher_connector.transfer.nixl.readers import OVERDUE_GRACE_S, SPARE_BUFFERS, Readers
from ghostcacher_connector.transfer.row_copy import row_copy
from ghostcacher_connector.transfer.shares import part_of_memory

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
        memories: tuple[SlotMemory, ...],
        table: SlotTable,
        *,
        name: str,
        ucx_tls: str | None = None,
        threads: int = 2,
        overdue_grace_s: float = OVERDUE_GRACE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Register `memories` and `table` and start the agents.

        memories: the engine's slots, which pulls fill, then those in host memory, if any.
        name: of the worker and rank; a random suffix makes it the agent's name, which no other incarnation has.
        threads: how many will pull at the same time. overdue_grace_s: how long a READ may be overdue before its
        connection is taken down.
        Raises ConfigError for settings that cannot work, TransferError when NIXL does not start.
        """
        assert table.slot_count == sum(memory.slot_count for memory in memories)
        self._memories = memories
        self._memory = memories[0]
        self._buffer_bytes = max(PROBE_BYTES_MIN, 2 * self._memory.bytes_per_slot)
        self._table = table
        self._clock = clock
        self._name = name
        self._ucx_tls = ucx_tls
        self._threads = threads
        self._overdue_grace_s = overdue_grace_s
        self._serving = NixlAgent(f"{name}-{secrets.token_hex(4)}", ucx_tls=ucx_tls, threads=threads)
        for memory in memories:
            self._serving.register(regions(memory), memory.memory, memory.device)
        self._serving.register([(table.address, table.nbytes)], "DRAM")
        self._readers = Readers(self._make_reader, clock)
        self.overdue_count = 0
        self._closed = False

    def __repr__(self) -> str:
        return f"NixlTransport({self._serving.name}, {self._table.slot_count} slots)"

    @property
    def quarantined_count(self) -> int:
        """How many READs were given up, or failed in part, and may still land."""
        return self._readers.quarantined_count

    def endpoint(self, *, rank: int, relay: str | None = None) -> RankEndpoint:
        """Return what peers need in order to read this rank."""
        return RankEndpoint(
            rank=rank,
            incarnation=self._table.incarnation,
            memories=self._memories,
            table=self._table.address,
            agent_name=self._serving.name,
            agent_metadata=self._serving.metadata(),
            relay=relay,
            host=host_id(),
        )

    def reaches(self, peer: RankEndpoint) -> bool:
        try:
            with self._readers.use() as lent:
                return not self._closed and lent.reader.reaches(peer)
        except PeerUnreachable:
            return False

    def probe(self, peer: RankEndpoint, slots: Slots, *, timeout_s: float) -> Probe:
        with self._readers.use() as lent:
            return lent.reader.probe(peer, slots, name=self.name, timeout_s=timeout_s)

    def forget(self, peer: RankEndpoint) -> None:
        self._readers.forget(peer)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._readers.close()
            self._serving.close()

    def pull(self, request: PullRequest) -> PullResult:
        started = self._clock()
        count = len(request.local_slots)
        ours = part_of_memory(self._memory, request.local_part)
        fault = request_fault(ours, request.peer, request.remote_slots, request.local_slots, len(request.generations))
        if fault is None and self._closed:
            fault = MissReason.DISABLED, "the transport is closed"
        if fault is not None:
            return failed_result(count, self.name, *fault)
        moved_bytes = 0
        over: threading.Event | None = None
        try:
            with self._readers.use() as lent:
                try:
                    with lent.reader.reading_from(request.peer) as loan:
                        for chunk_bytes in self._read_rows(request, lent.reader, loan):
                            moved_bytes += chunk_bytes
                        # Only now, with every byte in place, may the seal be read: earlier it would prove nothing.
                        valid = self._check_seal(request, lent.reader, loan)
                except UnfinishedRead as exc:
                    in_slots = loan.given_up is not exc.read
                    gone = self._readers.retire(lent, str(exc), unfinished=int(in_slots))
                    if in_slots:
                        over = gone
                        exc.read.abandon()
                    raise
        except TransferError as exc:
            result = failed_result(count, self.name, _reason_of(exc), str(exc), moved_bytes=moved_bytes)
            return result._replace(seconds=self._clock() - started, over=over)
        return checked_result(valid, self.name, moved_bytes, self._clock() - started)

    def _read_rows(self, request: PullRequest, reader: NixlReader, loan: Loan) -> Iterator[int]:
        """READ the rows into the local slots, chunk by chunk; yield the bytes of each chunk that is in place."""
        peer = request.peer
        ours = Side(part_of_memory(self._memory, request.local_part).segments, self._memory.device)
        for memory, places, theirs in self._chunks(request):
            if not self._reads_straight(memory):
                yield self._read_through_buffer(request, reader, loan, places)
                continue
            remote, local = descriptors(Side(memory.segments, memory.device), ours, theirs, request.local_slots[places])
            read = reader.agent.read(peer.agent_name, remote, memory.memory, local, self._memory.memory)
            if not wait_until_over(read, request.deadline, self._clock):
                self.overdue_count += 1
                logger.warning("READ from %s is overdue; its slots are held until it is over", peer.agent_name)
                until = max(request.deadline, self._clock()) + self._overdue_grace_s
                if not wait_until_over(read, until, self._clock):
                    detail = f"READ from {peer.agent_name} was not over {self._overdue_grace_s:g} s after its deadline"
                    raise UnfinishedRead(detail, read) from DeadlinePassed(detail)
            yield int(remote[:, 1].sum())

    def _reads_straight(self, memory: SlotMemory) -> bool:
        """Say whether slots of a peer's memory can be READ into this engine's slots."""
        return memory.memory == self._memory.memory

    def _read_through_buffer(self, request: PullRequest, reader: NixlReader, loan: Loan, places: Slots) -> int:
        """READ the rows of those of a request's slots into the bounce buffer, then copy them; return their bytes."""
        count = len(places)
        size = reader.read_rows(request.peer, loan, request.remote_slots[places], request.deadline)
        rows = packed_segments(loan.buffer.host_address, request.peer.slot_bytes, count)
        landed = SlotMemory(Tier.HOST, count, rows)
        copy = row_copy(landed, part_of_memory(self._memory, request.local_part), reader.buffers.cuda)
        copy.run(np.arange(count, dtype=np.int64), request.local_slots[places])
        return size

    def _check_seal(self, request: PullRequest, reader: NixlReader, loan: Loan) -> Validity:
        """Say which rows are valid. All bytes are there: microseconds more decide whether they count, so give them."""
        deadline = max(request.deadline, self._clock() + SEAL_GRACE_S)
        return reader.check_seal(request.peer, loan, request.remote_slots, request.generations, deadline)

    def _make_reader(self) -> NixlReader:
        """Return a reader with an agent and bounce buffers of its own. Raises ConfigError and TransferError."""
        memory, device = self._memory.memory, self._memory.device
        buffers = BounceBuffers(self._threads + SPARE_BUFFERS, self._buffer_bytes, memory=memory, device=device)
        name = f"{self._name}-reads-{secrets.token_hex(4)}"
        agent = NixlAgent(name, ucx_tls=self._ucx_tls, threads=self._threads, serves=False)
        agent.register(regions(self._memory), memory, device)
        return NixlReader(agent, buffers, own_name=self._serving.name, clock=self._clock)

    def _chunks(self, request: PullRequest) -> Iterator[Part]:
        """Cut a pull in chunks of one memory each; before each, raise DeadlinePassed when it is too late."""
        done = 0
        for memory, places, slots in by_memory(request.peer.memories, request.remote_slots):
            chunk_bytes = CHUNK_BYTES if self._reads_straight(memory) else self._buffer_bytes
            step = max(1, chunk_bytes // self._memory.bytes_per_slot)
            for low in range(0, len(slots), step):
                if self._clock() >= request.deadline:
                    raise DeadlinePassed(f"deadline passed with {done} of {len(request.remote_slots)} blocks read")
                part = slice(low, low + step)
                yield Part(memory, places[part], slots[part])
                done += len(slots[part])


def _reason_of(error: BaseException | None) -> MissReason:
    if isinstance(error, UnfinishedRead):
        return _reason_of(error.__cause__)
    if isinstance(error, (DeadlinePassed, NoBounceBuffer)):
        return MissReason.TIMEOUT
    return MissReason.PEER_UNREACHABLE if isinstance(error, PeerUnreachable) else MissReason.TRANSFER_FAILED
