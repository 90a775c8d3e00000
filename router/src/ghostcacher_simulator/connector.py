"""The connector of a simulated engine: what a real one enters into the block index and the coordination store.

What the engine says is kept until `flush` sends it, or sent at once where the stores are in memory. A `ConnectorThread`
renews the lease and flushes, as the threads of a real connector do; Redis may come and go.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from ghostcacher_connector.core.coordination.base import CoordinationStore, LoadReport, PromptChain
from ghostcacher_connector.core.errors import IndexUnavailable
from ghostcacher_connector.core.index.base import BlockIndex, Drop, Entry, WorkerRef, ref_of
from ghostcacher_connector.core.types import BlockHash, Location, PrefixHit, Tier, WorkerRecord
from ghostcacher_simulator.pool import HeldBlock

logger = logging.getLogger(__name__)

TURN_S = 0.1
REPORT_TTL_S = 10 * TURN_S
RENEWALS_PER_LEASE = 3
UNSENT_MAX = 1_024
"""Prompts kept for a store that is away; older ones are dropped. Of blocks the last change of each is kept."""


def entries_of(blocks: Sequence[HeldBlock]) -> list[Entry]:
    """Return the index entries of one chain's leading blocks."""
    return [Entry(held.block, blocks[0].block, Location(Tier.DEVICE, held.slot, held.generation)) for held in blocks]


class Connector:
    """One worker's entries in the stores. Implements `Sharing` for an engine.

    load: asked for the worker's load at each flush; None reports none.
    """

    def __init__(
        self,
        index: BlockIndex,
        store: CoordinationStore,
        record: WorkerRecord,
        *,
        lease_ttl_s: float,
        peers: Callable[[], Sequence[WorkerRef]] | None = None,
        at_once: bool = False,
        keeps_unsent: bool = False,
    ) -> None:
        """peers: to pull from; None: the live workers of the namespace.

        at_once: send what the engine says in the same call, and drop it when a store is away.
        keeps_unsent: keep it then, for the next `flush`.
        """
        self.record = record
        self.ref = ref_of(record)
        self._index = index
        self._store = store
        self._lease_ttl_s = lease_ttl_s
        self.load: Callable[[], LoadReport] | None = None
        self._peers = peers or self._known_peers
        self._at_once = at_once
        self._keeps_unsent = keeps_unsent
        self._known: Sequence[WorkerRef] = ()
        self._chains: deque[PromptChain] = deque(maxlen=UNSENT_MAX)
        self._computed: deque[str] = deque(maxlen=UNSENT_MAX)
        self._changes: dict[BlockHash, Entry | Drop] = {}
        self._changing = threading.Lock()
        self._roots: dict[BlockHash, BlockHash] = {}
        self._published: dict[BlockHash, Entry] = {}

    @property
    def published(self) -> Mapping[BlockHash, Entry]:
        """Return what the index has been told of and not had withdrawn, by block."""
        return self._published

    def join(self) -> None:
        """Enter the worker into the index. Raises IndexUnavailable."""
        self._index.join(self.record, lease_ttl_s=self._lease_ttl_s)
        self._published.clear()

    def renew(self) -> None:
        """Prolong the lease, enter again what was lost, and look for peers. Raises IndexUnavailable."""
        if sum(self._index.renew(self.record, lease_ttl_s=self._lease_ttl_s).counts) < len(self._published):
            self._index.apply(self.ref, list(self._published.values()), [], lease_ttl_s=self._lease_ttl_s)
        self.know([ref_of(record) for record in self._index.workers(self.ref.namespace)])

    def know(self, workers: Sequence[WorkerRef]) -> None:
        """Take the workers of the namespace, with or without this one, as those to pull from."""
        self._known = [ref for ref in workers if ref.worker != self.ref.worker]

    def leave(self) -> None:
        """Remove the worker from the index. Raises IndexUnavailable."""
        self._index.leave(self.ref)

    def received(self, chain: PromptChain) -> None:
        """Report a prompt's chain to routers."""
        self._chains.append(chain)
        self._sent()

    def computed(self, request_id: str | None, blocks: Sequence[HeldBlock]) -> None:
        """Publish a prompt's blocks, and, unless there is more of it to come, report that peers can pull them."""
        entries = entries_of(blocks)
        self._roots.update((entry.block, entry.root) for entry in entries)
        self._change(entries)
        if request_id is not None:
            self._computed.append(request_id)
        self._sent()

    def evicted(self, blocks: Sequence[HeldBlock]) -> None:
        """Withdraw blocks, if they were published."""
        self.withdrawn([held.block for held in blocks])

    def moved(self, blocks: Sequence[HeldBlock], tier: Tier) -> None:
        """Publish blocks at another place, if they were published."""
        entries = [
            Entry(held.block, self._roots[held.block], Location(tier, held.slot, held.generation))
            for held in blocks
            if held.block in self._roots
        ]
        if entries:
            self._change(entries)
            self._sent()

    def withdrawn(self, blocks: Sequence[BlockHash]) -> None:
        """Withdraw blocks, if they were published."""
        drops = [Drop(block, self._roots.pop(block)) for block in blocks if block in self._roots]
        if drops:
            self._change(drops)
            self._sent()

    def best_peer(self, blocks: Sequence[BlockHash]) -> PrefixHit | None:
        """Ask the index which peer holds the longest prefix, and where: one bounded call. None: nobody is known."""
        peers = self._peers()
        if not peers or not blocks:
            return None
        try:
            return next(iter(self._index.lookup(peers, blocks, locations_for=1)), None)
        except IndexUnavailable:
            return None

    def prefix_at_peers(self, blocks: Sequence[BlockHash]) -> int:
        """Ask the index how many leading blocks a peer holds: one bounded call. 0 when it is away."""
        peers = self._peers()
        if not peers or not blocks:
            return 0
        try:
            return max((hit.length for hit in self._index.lookup(peers, blocks, locations_for=0)), default=0)
        except IndexUnavailable:
            return 0

    def flush(self) -> None:
        """Send all that is new. Raises IndexUnavailable; what was not sent then is sent by a later flush."""
        if self.load is None and not (self._changes or self._chains or self._computed):
            return
        with self._changing:
            changes, self._changes = self._changes, {}
        try:
            self._apply(list(changes.values()))
        except IndexUnavailable:
            with self._changing:
                self._changes = changes | self._changes
            raise
        chains = [self._chains.popleft() for _ in range(len(self._chains))]
        computed = [self._computed.popleft() for _ in range(len(self._computed))]
        load = self.load() if self.load is not None else None
        if load is not None or chains or computed:
            self._store.publish(self.ref, load, chains, computed, ttl_s=REPORT_TTL_S)

    def _change(self, changes: Sequence[Entry | Drop]) -> None:
        with self._changing:
            self._changes.update((change.block, change) for change in changes)

    def _apply(self, changes: Sequence[Entry | Drop]) -> None:
        published = self._published
        new = [each for each in changes if isinstance(each, Entry) and published.get(each.block) != each]
        gone = [each for each in changes if isinstance(each, Drop) and each.block in published]
        if new or gone:
            self._index.apply(self.ref, new, gone, lease_ttl_s=self._lease_ttl_s)
        published.update((entry.block, entry) for entry in new)
        for drop in gone:
            del published[drop.block]

    def _sent(self) -> None:
        if self._at_once:
            with contextlib.suppress(IndexUnavailable):
                self.flush()
            if self._keeps_unsent:
                return
            with self._changing:
                self._changes = {}
            self._chains.clear()
            self._computed.clear()

    def _known_peers(self) -> Sequence[WorkerRef]:
        return self._known


class ConnectorThread(threading.Thread):
    """Joins, renews and flushes a connector until `leave`; waits a third of the lease when Redis is away."""

    def __init__(self, connector: Connector, lease_ttl_s: float) -> None:
        super().__init__(name="gc-simulated-connector", daemon=True)
        self._connector = connector
        self._renew_every_s = lease_ttl_s / RENEWALS_PER_LEASE
        self._joined = False
        self._renewed_at = float("-inf")
        self._ended = threading.Event()

    def run(self) -> None:
        pause_s = TURN_S
        while not self._ended.wait(pause_s):
            try:
                self._turn(time.monotonic())
                pause_s = TURN_S
            except IndexUnavailable as exc:
                logger.warning("%s: %s", self._connector.ref.worker, exc)
                pause_s = self._renew_every_s

    def leave(self) -> None:
        """End, and remove the worker from the index if that can be reached."""
        self._ended.set()
        self.join(5)
        with contextlib.suppress(IndexUnavailable):
            self._connector.leave()

    def _turn(self, now: float) -> None:
        if not self._joined:
            self._connector.join()
            self._joined = True
        if now - self._renewed_at > self._renew_every_s:
            self._connector.renew()
            self._renewed_at = now
        self._connector.flush()
