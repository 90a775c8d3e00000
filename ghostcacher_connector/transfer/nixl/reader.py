"""The READs of a pull, one by one: first the rows, then the seal.

Shared by the transport of an engine's rank, which reads rows into engine memory and checks the seal at once
(`check_seal`), and by the relay process, which reads both into a bounce buffer and passes them on (`read_rows`,
`read_seal`). Nothing here decides what a pull returns.

A seal READ is always posted after the READ of the rows has completed. Within one transfer NIXL promises no order, and
a seal that was read before the rows says nothing about what overwrote them in between.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial

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
from ghostcacher_connector.transfer.layout import (
    Descriptors,
    Side,
    by_memory,
    descriptors,
    endpoint_fault,
    packed_segments,
    slots_fault,
)
from ghostcacher_connector.transfer.nixl.agent import NixlAgent, Read, UnfinishedRead
from ghostcacher_connector.transfer.nixl.bounce_buffers import SEAL_SLOTS_MAX, BounceBuffer, BounceBuffers
from ghostcacher_connector.transfer.nixl.host import has_rdma, host_id
from ghostcacher_connector.transfer.nixl.links import Link, PeerLinks

SPINS = 64
SLEEP_FIRST_S = 20e-6
SLEEP_MAX_S = 1e-3
CONNECT_S = 2.0


class DeadlinePassed(TransferError):
    """The deadline passed: before a READ was posted, or a READ into a bounce buffer was given up."""


class NoBounceBuffer(TransferError):
    """Every bounce buffer is busy or quarantined."""


class Loan:
    """A bounce buffer that is lent to one pull. Afterwards it is free again, or quarantined if a READ was given up."""

    def __init__(self, buffer: BounceBuffer, link: Link) -> None:
        self.buffer = buffer
        self.link = link
        self.given_up: Read | None = None
        """The READ that was given up, or failed in part, and may still land in the buffer."""


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
    """READs from peers by a deadline, into bounce buffers that outlive a READ which was given up. Thread-safe."""

    def __init__(
        self,
        agent: NixlAgent,
        buffers: BounceBuffers,
        *,
        own_name: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """own_name: of the agent that serves this process's own memory, if any."""
        self.agent = agent
        self._own_name = own_name
        self.buffers = buffers
        self._clock = clock
        self.links = PeerLinks(agent, self._prove, clock, CONNECT_S)
        agent.register([buffers.span], "DRAM")
        if buffers.device_span is not None:
            agent.register([buffers.device_span], buffers.memory, buffers.device)

    def __repr__(self) -> str:
        return f"NixlReader({self.agent.name})"

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
    def reading_from(self, peer: RankEndpoint) -> Iterator[Loan]:
        """Hold the connection to a peer and a bounce buffer for one pull. Raises PeerUnreachable and NoBounceBuffer.

        A READ that fails, or is given up, takes the link down; a deadline that passes between two READs does not.
        """
        with self.links_to(peer) as link, self._borrow(link) as loan:
            try:
                yield loan
            except TransferError as exc:
                if not isinstance(exc, DeadlinePassed) or loan.given_up is not None:
                    self.links.failed(link, str(exc))
                raise

    def read_rows(self, peer: RankEndpoint, loan: Loan, slots: Slots, deadline: float) -> int:
        """READ the rows of `slots` into the bounce buffer, densely, segment after segment; return the bytes read.

        They are in `BounceBuffer.data` then.
        """
        size = peer.bytes_per_slot * len(slots)
        for memory, places, within in by_memory(peer.memories, slots):
            # Rows of a GPU land on the device first, and `fetch` brings along what lies between them: so in this order.
            on_device = memory.memory != "DRAM" and self.buffers.device_span is not None
            address = loan.buffer.data_address if on_device else loan.buffer.host_address
            here = Side(packed_segments(address, peer.slot_bytes, len(slots)), self.buffers.device if on_device else 0)
            remote, local = descriptors(Side(memory.segments, memory.device), here, within, places)
            post = partial(
                self.agent.read, peer.agent_name, remote, memory.memory, local, "VRAM" if on_device else "DRAM"
            )
            self._land(loan, deadline, post)
            if on_device:
                loan.buffer.fetch(size)
        return size

    def read_seal(self, peer: RankEndpoint, loan: Loan, slots: Slots, deadline: float) -> Generations:
        """READ header and generations of at most SEAL_SLOTS_MAX slots; return a view of the buffer, shape (5 + n,).

        To be called only after the READ of the rows has completed: that is what makes the answer a proof.
        """
        assert len(slots) <= SEAL_SLOTS_MAX
        remote = seal_descriptors(peer.table, slots)
        local = remote.copy()
        lengths = remote[:, 1].astype(np.int64)
        local[:, 0] = loan.buffer.seal_address + np.cumsum(lengths) - lengths
        self._land(loan, deadline, lambda: self.agent.read(peer.agent_name, remote, "DRAM", local, "DRAM"))
        return loan.buffer.seal[: seal_words(len(slots))]

    def check_seal(
        self, peer: RankEndpoint, loan: Loan, slots: Slots, expected: Generations, deadline: float
    ) -> Validity:
        """READ the seal of `slots`, whose rows have been read, and compare it with the generations that were published.

        expected: those generations, shape (n,). Returns which rows are valid, shape (n,). Raises TransferError.
        """
        valid = np.zeros(len(slots), dtype=np.bool_)
        for low in range(0, len(slots), SEAL_SLOTS_MAX):
            part = slice(low, low + SEAL_SLOTS_MAX)
            seal = self.read_seal(peer, loan, slots[part], deadline)
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
        with self.reading_from(peer) as loan:
            started = time.perf_counter()
            self.read_seal(peer, loan, slots[:0], deadline)
            read_header = time.perf_counter()
            size = self.read_rows(peer, loan, slots, deadline) if len(slots) else 0
            read_data = time.perf_counter()
            seal = self.read_seal(peer, loan, slots, deadline)
            return Probe(
                transport=name,
                rtt_s=read_header - started,
                current=_is_current(seal, peer),
                generations=seal[seal_words(0) :].copy(),
                data=loan.buffer.data[:size].tobytes(),
                data_s=read_data - read_header,
            )

    def close(self) -> None:
        """Disconnect from all peers and give the registrations back."""
        self.buffers.reap()
        self.links.close()
        self.agent.close()

    def destroy(self) -> bool:
        """End the agent with all that it has in flight; return whether it is gone: then nothing lands any more.

        Nobody may be inside any more. To be called again while it returns False.
        """
        self.buffers.abandon()
        if not self.agent.destroy():
            return False
        self.buffers.close()
        return True

    @contextlib.contextmanager
    def _borrow(self, link: Link) -> Iterator[Loan]:
        """Lend a bounce buffer to one pull. Raises NoBounceBuffer at once when there is none."""
        buffer = self.buffers.take()
        if buffer is None:
            raise NoBounceBuffer(f"no bounce buffer is free: {self.buffers}")
        loan = Loan(buffer, link)
        try:
            yield loan
        finally:
            if loan.given_up is None:
                self.buffers.give_back(buffer)
            else:
                self.links.hold(link)
                self.buffers.quarantine(buffer, loan.given_up, lambda: self.links.release(link))

    def _land(self, loan: Loan, deadline: float, post: Callable[[], Read]) -> None:
        """Post a READ into a bounce buffer and wait for it; at the deadline give it up, and so the buffer."""
        try:
            read = post()
            over = wait_until_over(read, deadline, self._clock)
        except UnfinishedRead as exc:
            loan.given_up = exc.read
            raise
        if not over:
            loan.given_up = read
            raise DeadlinePassed(
                f"READ from {loan.link.name} was given up at its deadline; {loan.buffer} is quarantined"
            )

    def _prove(self, link: Link, peer: RankEndpoint) -> None:
        """Read the header of a peer's seal, as proof that the connection carries READs, and a slot of its GPU, if any.

        The seal is host memory: it proves nothing about device memory, which goes another way.
        """
        deadline = self._clock() + CONNECT_S
        with self._borrow(link) as loan:
            seal = self.read_seal(peer, loan, np.zeros(0, dtype=np.int64), deadline)
            # CUDA does not open for a process the memory that is its own.
            if _is_current(seal, peer) and peer.memories[0].memory != "DRAM" and peer.agent_name != self._own_name:
                self.read_rows(peer, loan, np.zeros(min(1, self._slots_at_once(peer)), dtype=np.int64), deadline)

    def _slots_at_once(self, peer: RankEndpoint) -> int:
        return min(SEAL_SLOTS_MAX, self.buffers.data_bytes // peer.bytes_per_slot)


def _is_current(seal: Generations, peer: RankEndpoint) -> bool:
    """Say whether a header is that of the endpoint. Raises PeerUnreachable when it is no slot table at all."""
    try:
        return check_header(seal[: seal_words(0)].tobytes(), peer.incarnation, peer.slot_count)
    except ProtocolError as exc:
        raise PeerUnreachable(f"{peer.agent_name}: {exc}") from exc
