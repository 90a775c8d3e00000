"""The READs of a pull, one by one: rows into memory, then the seal into an arena.

Shared by the transport of an engine's rank (which reads into engine memory) and by the relay process (which reads
into its own). Nothing here decides what a pull returns.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import numpy as np

from ghostcacher_connector.core.errors import PeerUnreachable, ProtocolError, TransferError
from ghostcacher_connector.core.types import RankEndpoint
from ghostcacher_connector.slots import (
    GENERATION_BYTES,
    HEADER_BYTES,
    Generations,
    Slots,
    check_header,
    generation_offset,
    seal_words,
    valid_mask,
)
from ghostcacher_connector.transfer.base import Probe, Validity
from ghostcacher_connector.transfer.host import has_rdma, host_id
from ghostcacher_connector.transfer.layout import (
    Descriptors,
    Side,
    descriptors,
    endpoint_fault,
    packed_segments,
    slots_fault,
)
from ghostcacher_connector.transfer.nixl.agent import NixlAgent, Read
from ghostcacher_connector.transfer.nixl.bounce_buffers import SEAL_SLOTS_MAX, Arena, ArenaPool
from ghostcacher_connector.transfer.nixl.links import Link, PeerLinks

SPINS = 64
SLEEP_FIRST_S = 20e-6
SLEEP_MAX_S = 1e-3
CONNECT_S = 2.0


class DeadlinePassed(TransferError):
    """A READ into an arena was given up; the arena is quarantined."""


class NoArena(TransferError):
    """Every arena is busy or quarantined."""


class Lease:
    """An arena on loan, on one link. It goes back to the pool, or into quarantine with the READ that was given up."""

    def __init__(self, arena: Arena, link: Link) -> None:
        self.arena = arena
        self.link = link
        self.given_up: Read | None = None


def wait_until_over(read: Read, deadline: float | None, clock: Callable[[], float]) -> bool:
    """Wait for a READ; return False when the deadline passed first. Raises TransferError when it failed.

    Over shared memory a READ is over when it was posted, so the first look mostly ends it.
    """
    spins = 0
    pause_s = SLEEP_FIRST_S
    while not read.done():
        if deadline is not None and clock() >= deadline:
            return False
        spins += 1
        if spins > SPINS:
            time.sleep(pause_s)
            pause_s = min(SLEEP_MAX_S, pause_s * 2)
    return True


def seal_descriptors(table: int, slots: Slots) -> Descriptors:
    """Return the rows that read a header and the generations of `slots`, in their order, from a table's address.

    The matching local rows are dense: the header, then one generation a slot.
    """
    starts = np.concatenate(([0], np.flatnonzero(np.diff(slots) != 1) + 1)) if len(slots) else np.zeros(0, np.int64)
    rows = np.zeros((1 + len(starts), 3), dtype=np.uint64)
    rows[0, :2] = table, HEADER_BYTES
    rows[1:, 0] = table + generation_offset(0) + slots[starts] * GENERATION_BYTES
    rows[1:, 1] = np.diff(np.concatenate((starts, [len(slots)]))) * GENERATION_BYTES
    if len(slots) and starts.size and int(slots[0]) == 0:
        rows = rows[1:]  # slot 0 follows the header: one run
        rows[0, 0] = table
        rows[0, 1] += HEADER_BYTES
    return rows


class NixlReader:
    """READs from peers with deadlines, over arenas that survive being given up. Thread-safe."""

    def __init__(
        self,
        agent: NixlAgent,
        pool: ArenaPool,
        *,
        clock: Callable[[], float] = time.monotonic,
        connect_s: float = CONNECT_S,
    ) -> None:
        self.agent = agent
        self.pool = pool
        self._clock = clock
        self._connect_s = connect_s
        self.links = PeerLinks(agent, self._prove, clock, connect_s)
        agent.register([pool.span], "DRAM")
        if pool.device_span is not None:
            agent.register([pool.device_span], pool.memory, pool.device)

    def reaches(self, peer: RankEndpoint) -> bool:
        """Say whether the peer's seal can be read."""
        try:
            with self.links_to(peer):
                return True
        except PeerUnreachable:
            return False

    def links_to(self, peer: RankEndpoint) -> contextlib.AbstractContextManager[Link]:
        """Hold the connection to a peer. Entering raises PeerUnreachable."""
        fault = endpoint_fault(peer)
        if fault:
            raise PeerUnreachable(f"{peer.agent_name}: {fault}")
        if peer.host != host_id() and not has_rdma():
            raise PeerUnreachable(f"{peer.agent_name} is on another host, and this one has no RDMA device")
        return self.links.use(peer)

    @contextlib.contextmanager
    def lease(self, link: Link) -> Iterator[Lease]:
        """Lend an arena for one pull. Raises NoArena at once when there is none."""
        arena = self.pool.take()
        if arena is None:
            raise NoArena(f"no free arena: {self.pool}")
        lease = Lease(arena, link)
        try:
            yield lease
        finally:
            if lease.given_up is None:
                self.pool.give_back(arena)
            else:
                self.links.hold(link)
                self.pool.quarantine(arena, lease.given_up, lambda: self.links.release(link))

    @contextlib.contextmanager
    def reading_from(self, peer: RankEndpoint) -> Iterator[Lease]:
        """Hold the connection to a peer and an arena for one pull. Raises PeerUnreachable and NoArena.

        A READ that fails, or is given up, takes the link down; a deadline that passes between two READs does not.
        """
        with self.links_to(peer) as link, self.lease(link) as lease:
            try:
                yield lease
            except TransferError as exc:
                if not isinstance(exc, DeadlinePassed) or lease.given_up is not None:
                    self.links.failed(link, str(exc))
                raise

    def read_packed(self, peer: RankEndpoint, lease: Lease, slots: Slots, deadline: float) -> int:
        """READ the rows of `slots` into the lease's arena, densely, segment after segment; return the bytes read.

        In `Arena.data` they are after `Arena.fetch`.
        """
        sizes = [segment.slot_bytes for segment in peer.segments]
        here = Side(packed_segments(lease.arena.data_address, sizes, len(slots)), self.pool.device)
        remote, local = descriptors(
            Side(peer.segments, peer.device), here, slots, np.arange(len(slots), dtype=np.int64)
        )
        self._land(self.agent.read(peer.agent_name, remote, peer.memory, local, self.pool.memory), lease, deadline)
        return sum(sizes) * len(slots)

    def read_seal(self, peer: RankEndpoint, lease: Lease, slots: Slots, deadline: float) -> Generations:
        """READ header and generations of at most SEAL_SLOTS_MAX slots; return a view of the arena, shape (5 + n,).

        To be called only after the READ of the data has completed: that is what makes the answer a proof.
        """
        assert len(slots) <= SEAL_SLOTS_MAX
        remote = seal_descriptors(peer.table, slots)
        local = remote.copy()
        lengths = remote[:, 1].astype(np.int64)
        local[:, 0] = lease.arena.seal_address + np.cumsum(lengths) - lengths
        self._land(self.agent.read(peer.agent_name, remote, "DRAM", local, "DRAM"), lease, deadline)
        return lease.arena.seal[: seal_words(len(slots))]

    def validate(
        self, peer: RankEndpoint, lease: Lease, slots: Slots, expected: Generations, deadline: float
    ) -> Validity:
        """Read the seal of `slots` and compare; return which are valid, shape (n,). Raises TransferError."""
        valid = np.zeros(len(slots), dtype=np.bool_)
        for low in range(0, len(slots), SEAL_SLOTS_MAX):
            part = slice(low, low + SEAL_SLOTS_MAX)
            seal = self.read_seal(peer, lease, slots[part], deadline)
            if _is_current(seal, peer):
                valid[part] = valid_mask(seal, peer.incarnation, peer.slot_count, expected[part])
        return valid

    def probe(self, peer: RankEndpoint, slots: Slots, *, name: str, timeout_s: float) -> Probe:
        """Time a READ of the header, then one of a few rows; see `Transport.probe`."""
        fault = slots_fault(slots, peer.slot_count)
        if fault:
            raise TransferError(f"probe: {fault}")
        slots = slots[: self._slots_at_once(peer)]
        deadline = self._clock() + timeout_s
        with self.reading_from(peer) as lease:
            started = time.perf_counter()
            self.read_seal(peer, lease, slots[:0], deadline)
            read_header = time.perf_counter()
            size = self.read_packed(peer, lease, slots, deadline) if len(slots) else 0
            read_data = time.perf_counter()
            seal = self.read_seal(peer, lease, slots, deadline)
            lease.arena.fetch(size)
            return Probe(
                transport=name,
                rtt_s=read_header - started,
                current=_is_current(seal, peer),
                generations=seal[seal_words(0) :].copy(),
                data=lease.arena.data[:size].tobytes(),
                data_s=read_data - read_header,
            )

    def close(self) -> None:
        """Disconnect from all peers and give the registrations back."""
        self.pool.reap()
        self.links.close()
        self.agent.close()

    def _land(self, read: Read, lease: Lease, deadline: float) -> None:
        """Wait for a READ into a lease's arena; give it up at the deadline, and the arena with it."""
        if not wait_until_over(read, deadline, self._clock):
            lease.given_up = read
            raise DeadlinePassed(
                f"READ from {lease.link.name} was given up at its deadline; {lease.arena} is quarantined"
            )

    def _prove(self, link: Link, peer: RankEndpoint) -> None:
        """Read the header of a peer's seal, as proof that the connection carries READs, and a slot of a GPU.

        The seal is host memory: it proves nothing about device memory, which goes another way.
        """
        deadline = self._clock() + self._connect_s
        with self.lease(link) as lease:
            seal = self.read_seal(peer, lease, np.zeros(0, dtype=np.int64), deadline)
            if _is_current(seal, peer) and peer.memory != "DRAM" and peer.agent_name != self.agent.name:
                self.read_packed(peer, lease, np.zeros(min(1, self._slots_at_once(peer)), dtype=np.int64), deadline)

    def _slots_at_once(self, peer: RankEndpoint) -> int:
        return min(SEAL_SLOTS_MAX, self.pool.data_bytes // peer.bytes_per_slot)


def _is_current(seal: Generations, peer: RankEndpoint) -> bool:
    """Say whether a header is that of the endpoint. Raises PeerUnreachable when it is no slot table at all."""
    try:
        return check_header(seal[: seal_words(0)].tobytes(), peer.incarnation, peer.slot_count)
    except ProtocolError as exc:
        raise PeerUnreachable(f"{peer.agent_name}: {exc}") from exc
