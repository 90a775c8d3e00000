"""The peers of one rank: which records are acceptable, how each peer is reached, and how well that went."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from ghostcacher_connector.core.backoff import Backoff
from ghostcacher_connector.core.errors import TransferError
from ghostcacher_connector.core.types import OWN_INCARNATION, MissReason, RankEndpoint, SlotMemory, WorkerRecord
from ghostcacher_connector.transfer.base import Probe, PullResult, Transport
from ghostcacher_connector.transfer.jobs import LinkStats
from ghostcacher_connector.transfer.layout import endpoint_fault
from ghostcacher_connector.transfer.shares import WHOLE, Piece, RowPart, Share, part_of_rank

logger = logging.getLogger(__name__)

PROBE_TIMEOUT_S = 2.0


class Source(NamedTuple):
    """A rank of a peer, as far as it is read."""

    endpoint: RankEndpoint
    """Describes what is read of its rows."""
    ours: RowPart
    """The part of this rank's rows that it fills."""


class Peer:
    """One peer: its endpoint and what is known of the way to it. Guarded by the lock of `Peers`."""

    def __init__(self, worker: str, incarnation: bytes, pieces: tuple[Source, ...]) -> None:
        self.worker = worker
        """The worker's name."""
        self.incarnation = incarnation
        """The incarnation of the entries that are good: those of another one are stale."""
        self.pieces = pieces
        """What to read of which of its ranks, in order: together the share of each block that this rank has."""
        self.backoff = Backoff()
        self.transport: str | None = None
        """The transport that was used last; None when none reaches it."""
        self.rtt_s: float | None = None
        """The round trip, measured when it was connected to."""
        self.bytes = 0
        """What has been pulled from it."""
        self.failures = 0
        """How many pulls from it have failed."""
        self.last_error = ""
        """Why the last one did."""

    @property
    def endpoint(self) -> RankEndpoint:
        """The first of its ranks that is read: the others are reached in the same way."""
        return self.pieces[0].endpoint


class Peers:
    """Peers by worker name. Thread-safe; transports are called without the lock held."""

    def __init__(
        self,
        transports: Sequence[Transport],
        memory: SlotMemory,
        *,
        namespace: str,
        share: Share,
        clock: Callable[[], float],
    ) -> None:
        """share: of the rank, which its peers have, too."""
        self._transports = transports
        self._slot_bytes = memory.slot_bytes
        self._namespace = namespace
        self._share = share
        self._clock = clock
        self._lock = threading.Lock()
        self._peers: dict[str, Peer] = {}
        self._own: Peer | None = None
        self.refused: dict[str, str] = {}
        """Why a worker's record is not used, by worker; "fingerprint_mismatch: ..." or "malformed_entry: ..."."""

    def update(self, records: Iterable[WorkerRecord]) -> list[Peer]:
        """Take over the live workers and forget those that are gone. Return the new peers and incarnations."""
        accepted: dict[str, WorkerRecord] = {}
        refused: dict[str, str] = {}
        for record in records:
            fault = self._fault_of(record)
            if fault:
                refused[record.worker] = fault
            else:
                accepted[record.worker] = record
        with self._lock:
            for worker in refused.keys() - self.refused.keys():
                logger.warning("not pulling from %s: %s", worker, refused[worker])
            self.refused = refused
            old = self._peers
            self._peers = {worker: self._kept(old.get(worker), record) for worker, record in accepted.items()}
            fresh = [peer for worker, peer in self._peers.items() if old.get(worker) is not peer]
            left = [peer for worker, peer in old.items() if self._peers.get(worker) is not peer]
        gone = [source.endpoint for peer in left for source in peer.pieces]
        kept = {source.endpoint.agent_name for peer in fresh for source in peer.pieces}
        for endpoint in gone:
            if endpoint.agent_name not in kept:
                self._forget(endpoint)
        return fresh

    def counterparts(self, record: WorkerRecord) -> tuple[Source, ...]:
        """Return what to read of which ranks of a worker; nothing when it has not what this rank has."""
        return tuple(
            Source(part_of_rank(record.ranks[piece.rank], piece.theirs, piece.ours), piece.ours)
            for piece in self._share.pieces_in(len(record.ranks))
        )

    def know_own(self, worker: str, endpoint: RankEndpoint) -> None:
        """Take the own worker for a peer, for loads from its own host slots: no record of it is needed."""
        with self._lock:
            self._own = Peer(worker, OWN_INCARNATION, (Source(endpoint, WHOLE),))

    def is_own(self, worker: str) -> bool:
        """Say whether a name is that of the own worker."""
        return self._own is not None and worker == self._own.worker

    def move(self, namespace: str) -> None:
        """Accept the workers of another namespace from now on, and forget those of the present one."""
        with self._lock:
            self._namespace = namespace
        self.update(())

    def connect(self, peer: Peer) -> None:
        """Connect to a peer and measure its round trip, so that the first pull does not pay for that."""
        reached: list[Probe] = []
        for source in peer.pieces:
            transport = self.transport_to(source.endpoint)
            if transport is None:
                self._note_error(peer, "no transport reaches it")
                return
            try:
                nothing = np.zeros(0, dtype=np.int64)
                reached.append(transport.probe(source.endpoint, nothing, timeout_s=PROBE_TIMEOUT_S))
            except TransferError as exc:
                self._note_error(peer, str(exc))
                return
        with self._lock:
            peer.transport = reached[-1].transport
            peer.rtt_s = max(probe.rtt_s for probe in reached)

    def ready(self, worker: str) -> Peer | None:
        """Return a peer that is known and that nothing backs off from."""
        with self._lock:
            peer = self._find(worker)
            return peer if peer is not None and peer.backoff.ready(self._clock()) else None

    def find(self, worker: str) -> Peer | None:
        """Return a peer, backed off or not."""
        with self._lock:
            return self._find(worker)

    def transport_to(self, endpoint: RankEndpoint) -> Transport | None:
        """Return the most preferred transport that reaches a peer now."""
        return next((transport for transport in self._transports if transport.reaches(endpoint)), None)

    def record(self, peer: Peer, result: PullResult) -> None:
        """Count a pull and what it moved; back off from a peer that fails."""
        with self._lock:
            peer.bytes += result.bytes
            if result.reason in {None, MissReason.STALE_GENERATION}:
                peer.backoff.succeeded()
                peer.transport = result.transport
            else:
                peer.failures += 1
                peer.last_error = result.detail
                if peer is not self._own:  # nothing that it does is over the sooner for a pause
                    peer.backoff.failed(self._clock())

    def links(self) -> dict[str, LinkStats]:
        """Return what is known of the way to each peer, by worker."""
        now = self._clock()
        with self._lock:
            return {worker: _stats_of(peer, now) for worker, peer in self._peers.items()}

    def _find(self, worker: str) -> Peer | None:
        return self._own if self.is_own(worker) else self._peers.get(worker)

    def _kept(self, peer: Peer | None, record: WorkerRecord) -> Peer:
        """Return what is known of a peer, or a new one when this is another incarnation of it."""
        pieces = self.counterparts(record)
        same = peer is not None and peer.incarnation == record.incarnation and peer.pieces == pieces
        return peer if peer is not None and same else Peer(record.worker, record.incarnation, pieces)

    def _fault_of(self, record: WorkerRecord) -> str:
        if record.namespace != self._namespace:
            return f"fingerprint_mismatch: namespace {record.namespace[:16]}, expected {self._namespace[:16]}"
        pieces = self._share.pieces_in(len(record.ranks))
        if not pieces:
            return f"fingerprint_mismatch: {len(record.ranks)} ranks do not divide a block as this worker's do"
        return next(filter(None, (self._fault_of_piece(record, piece) for piece in pieces)), "")

    def _fault_of_piece(self, record: WorkerRecord, piece: Piece) -> str:
        endpoint = record.ranks[piece.rank]
        if endpoint.rank != piece.rank:
            return f"malformed_entry: expected rank {piece.rank}, found rank {endpoint.rank}"
        fault = endpoint_fault(endpoint)
        if fault:
            return f"malformed_entry: {fault}"
        # So many times one of their rows' parts as one of ours: rows that could not be divided so are not equal here.
        theirs = [size * piece.ours.of for size in endpoint.slot_bytes]
        if theirs != [size * piece.theirs.of for size in self._slot_bytes]:
            return "fingerprint_mismatch: its bytes per slot differ from this worker's"
        return ""

    def _forget(self, endpoint: RankEndpoint) -> None:
        for transport in self._transports:
            transport.forget(endpoint)

    def _note_error(self, peer: Peer, error: str) -> None:
        with self._lock:
            peer.transport = None
            peer.last_error = error
        logger.info("%s cannot be reached yet: %s", peer.worker, error)


def _stats_of(peer: Peer, now: float) -> LinkStats:
    return LinkStats(
        transport=peer.transport,
        ready=peer.backoff.ready(now),
        rtt_s=peer.rtt_s,
        bytes=peer.bytes,
        failures=peer.failures,
    )
