"""Pulls by NIXL: one-sided READs from a peer's memory, which ask nothing of the peer.

Owner: the engine's rank process. Memory picture:

    engine slots (registered: peers READ them, direct pulls land in them)
    slot table   (registered: peers READ the seal)
    arenas       (private: seals, probes, and in a staged transport the data, too)

*Direct* (the default): data READs land in the engine's slots. Such a READ is waited for even past the deadline, since
until it is over the slots cannot be given back; over shared memory it is over when it was posted. The deadline is
looked at between chunks. *Staged* (`staged`, implied by `allow_ucx_tcp`): data READs land in an arena, are validated
there, and valid rows are copied. A pull is then given up at its deadline, and the arena stays quarantined. DRAM only.

Threads: any number may call any method; a peer that hangs holds up only the pulls from it.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterator

import numpy as np

from ghostcacher_connector.core.errors import ConfigError, PeerUnreachable, TransferError
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
from ghostcacher_connector.transfer.host import host_id
from ghostcacher_connector.transfer.layout import RankMemory, Side, descriptors, regions, request_fault, rows_of
from ghostcacher_connector.transfer.nixl.agent import NixlAgent
from ghostcacher_connector.transfer.nixl.bounce_buffers import ArenaPool
from ghostcacher_connector.transfer.nixl.reader import DeadlinePassed, Lease, NixlReader, NoArena, wait_until_over

logger = logging.getLogger(__name__)

CHUNK_MIB = 64
"""Bytes per direct READ: about 25 ms at shared-memory speed, which is how late a deadline may be noticed."""

SEAL_GRACE_S = 0.05
STAGING_ARENAS = 4
PROBE_BYTES_MIN = 256 << 10
MIB = 1 << 20


class Moved:
    """Counts a pull's bytes, so that a failed one can still say how far it came."""

    def __init__(self) -> None:
        self.bytes = 0


class NixlTransport(Transport):
    """Direct or staged pulls over one NIXL agent; see the module's docstring."""

    name = "nixl"

    def __init__(
        self,
        memory: RankMemory,
        table: SlotTable,
        *,
        name: str,
        allow_ucx_tcp: bool = False,
        ucx_tls: str | None = None,
        staged: bool | None = None,
        staging_mib: int = 64,
        chunk_mib: int = CHUNK_MIB,
        threads: int = 2,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Register `memory` and `table` and start the agent.

        name: of the worker and rank; the agent's name is this with a random suffix, so that no two lives share one.
        staged: None means staged exactly when TCP is allowed. threads: how many will pull at the same time.
        Raises ConfigError for settings that cannot work, TransferError when NIXL does not start.
        """
        assert table.slot_count == memory.slot_count
        self._memory = memory
        self._table = table
        self._clock = clock
        self.staged = allow_ucx_tcp if staged is None else staged
        self._chunk_bytes = chunk_mib * MIB
        pool = ArenaPool(*self._arena_shape(staging_mib, threads), memory=memory.memory, device=memory.device)
        agent = NixlAgent(
            f"{name}-{secrets.token_hex(4)}", allow_ucx_tcp=allow_ucx_tcp, ucx_tls=ucx_tls, threads=threads
        )
        agent.register(regions(memory), memory.memory, memory.device)
        agent.register([(table.address, table.nbytes)], "DRAM")
        self._reader = NixlReader(agent, pool, any_host=allow_ucx_tcp, clock=clock)
        self.overdue_count = 0
        self._closed = False

    def __repr__(self) -> str:
        way = "staged" if self.staged else "direct"
        return f"NixlTransport({self._reader.agent.name}, {way}, {self._memory.slot_count} slots)"

    @property
    def quarantined_count(self) -> int:
        """How many arenas wait for a READ that was given up."""
        return self._reader.pool.reap()

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
        moved = Moved()
        try:
            valid = self._connected_pull(request, moved)
        except TransferError as exc:
            seconds = self._clock() - started
            return failed_result(count, self.name, _reason_of(exc), str(exc), moved_bytes=moved.bytes, seconds=seconds)
        return checked_result(valid, self.name, moved.bytes, self._clock() - started)

    def _connected_pull(self, request: PullRequest, moved: Moved) -> Validity:
        reader = self._reader
        with reader.links_to(request.peer) as link, reader.lease(link) as lease:
            try:
                return self._staged(request, lease, moved) if self.staged else self._direct(request, lease, moved)
            except TransferError as exc:
                if not isinstance(exc, DeadlinePassed) or lease.given_up is not None:
                    reader.links.failed(link, str(exc))
                raise

    def _direct(self, request: PullRequest, lease: Lease, moved: Moved) -> Validity:
        peer = request.peer
        theirs, ours = Side(peer.segments, peer.device), Side(self._memory.segments, self._memory.device)
        for part in self._chunks(request, self._chunk_bytes):
            remote, local = descriptors(theirs, ours, request.remote_slots[part], request.local_slots[part])
            read = self._reader.agent.read(peer.agent_name, remote, peer.memory, local, self._memory.memory)
            if not wait_until_over(read, request.deadline, self._clock):
                self.overdue_count += 1
                logger.warning("READ from %s is overdue; its slots are held until it is over", peer.agent_name)
                wait_until_over(read, None, self._clock)
            moved.bytes += int(remote[:, 1].sum())
        # Only now, with every byte in place, may the seal be read: earlier it would prove nothing.
        return self._reader.validate(
            peer, lease, request.remote_slots, request.generations, self._seal_deadline(request)
        )

    def _staged(self, request: PullRequest, lease: Lease, moved: Moved) -> Validity:
        peer, reader = request.peer, self._reader
        valid = np.zeros(len(request.remote_slots), dtype=np.bool_)
        for part in self._chunks(request, lease.arena.data_bytes):
            slots = request.remote_slots[part]
            moved.bytes += reader.read_packed(peer, lease, slots, request.deadline)
            valid[part] = reader.validate(peer, lease, slots, request.generations[part], request.deadline)
            self._unpack(lease, request.local_slots[part], valid[part])
        return valid

    def _unpack(self, lease: Lease, local_slots: Slots, valid: Validity) -> None:
        """Copy the valid rows of an arena, packed as `read_packed` leaves them, to the engine's slots."""
        at = 0
        for segment in self._memory.segments:
            size = segment.slot_bytes * len(local_slots)
            rows = lease.arena.data[at : at + size].reshape(len(local_slots), segment.slot_bytes)
            rows_of(segment, self._memory.slot_count)[local_slots[valid]] = rows[valid]
            at += size

    def _chunks(self, request: PullRequest, chunk_bytes: int) -> Iterator[slice]:
        """Cut a pull in parts of at most `chunk_bytes`; before each, raise DeadlinePassed when it is too late."""
        step = max(1, chunk_bytes // self._memory.bytes_per_slot)
        for low in range(0, len(request.remote_slots), step):
            if self._clock() >= request.deadline:
                raise DeadlinePassed(f"deadline passed with {low} of {len(request.remote_slots)} blocks read")
            yield slice(low, low + step)

    def _seal_deadline(self, request: PullRequest) -> float:
        """A direct pull has all its bytes: microseconds more decide whether they count, so give them."""
        return max(request.deadline, self._clock() + SEAL_GRACE_S)

    def _arena_shape(self, staging_mib: int, threads: int) -> tuple[int, int]:
        """Return how many arenas of how many bytes to have. Raises ConfigError for staging that cannot work."""
        slot = self._memory.bytes_per_slot
        if not self.staged:
            return threads + 2, max(PROBE_BYTES_MIN, 2 * slot)
        if self._memory.memory != "DRAM":
            raise ConfigError(
                f"staged pulls (allow_ucx_tcp) work on host memory only, got {self._memory.memory}: use the relay"
            )
        arena_bytes = staging_mib * MIB // STAGING_ARENAS
        if arena_bytes < slot:
            raise ConfigError(
                f"staging_mib={staging_mib}: expected at least {-(-slot * STAGING_ARENAS // MIB)} for this cache"
            )
        return STAGING_ARENAS, arena_bytes


def _reason_of(error: TransferError) -> MissReason:
    if isinstance(error, (DeadlinePassed, NoArena)):
        return MissReason.TIMEOUT
    return MissReason.PEER_UNREACHABLE if isinstance(error, PeerUnreachable) else MissReason.TRANSFER_FAILED
