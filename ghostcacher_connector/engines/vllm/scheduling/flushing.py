"""Drops blocks in every tier of a worker when a router orders it.

Engine slots are withdrawn from the index, bumped, so that no peer can read them any more, and taken out of vLLM's own
prefix cache. Host slots: see the ledger; objects: objects/object_flushes.py. Requests that run keep their slots, and
compute on; what they compute on top of a dropped block is not published.

Blocks that were never published, those of requests that are not shared for instance, have no name that an order could
mean: the scope "all" drops them, too, and no other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from ghostcacher_connector.core.coordination.flushes import FlushOrder, FlushReport, TierDropped
from ghostcacher_connector.core.types import BlockHash, FlushScope, SectionType, Tier
from ghostcacher_connector.engines.vllm.scheduling.publishing import BlockPublisher
from ghostcacher_connector.engines.vllm.scheduling.requests import Tracked
from ghostcacher_connector.engines.vllm.scheduling.slot_watch import SlotWatch
from ghostcacher_connector.objects.catalogue import KnownObject
from ghostcacher_connector.objects.object_flushes import ObjectsFlushed
from ghostcacher_connector.publish.block_notes import BlockNotes, Note
from ghostcacher_connector.publish.publisher import Publisher
from ghostcacher_connector.pull.cache_groups import block_of
from ghostcacher_connector.tiers.host_tier import HostTier
from ghostcacher_connector.tiers.object_orders import ObjectOrders

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_manager import KVCacheManager


class Flusher:
    """Carries out orders to flush. On the scheduler's thread, or while that is idle."""

    def __init__(
        self,
        manager: KVCacheManager,
        publisher: Publisher,
        notes: BlockNotes,
        watch: SlotWatch | None,
        blocks: BlockPublisher | None,
        tier: HostTier | None,
        *,
        objects: ObjectOrders | None,
        amend: Callable[[FlushOrder, TierDropped], None],
        block_bytes: int,
    ) -> None:
        """watch, blocks: None for a worker that does not publish. block_bytes: of one block, on all ranks together.

        amend: told later, on another thread, what has become of the objects of an order.
        """
        self._objects, self._amend = objects, amend
        self._manager, self._publisher, self._notes = manager, publisher, notes
        self._watch, self._blocks, self._tier, self._block_bytes = watch, blocks, tier, block_bytes

    def drop(self, order: FlushOrder, tracked: Iterable[Tracked]) -> FlushReport:
        """Drop what an order names; return how much that was. tracked: all requests that have not ended."""
        slots = self._blocks_by_slot()
        known = self._known(slots)
        doomed = self._notes.doomed(order, known)
        pool = self._manager.block_pool
        assert pool is not None, "bind() has checked it"
        engine = {slot for slot, block in slots.items() if block in doomed and slot < pool.num_gpu_blocks}
        everything = order.scope == FlushScope.ALL.value
        if everything:
            engine.update(block.block_id for block in pool.blocks if block.block_hash is not None)
        if self._watch is not None and self._blocks is not None:
            self._watch.forget(engine)
            self._blocks.forget([one for one in tracked if everything or not doomed.isdisjoint(one.blocks)])
        self._manager.evict_blocks(engine)
        dropped = [self._dropped(Tier.DEVICE, len(engine))]
        if self._tier is not None:
            held = self._tier.clear() if everything else self._tier.ledger.drop(doomed.__contains__)
            dropped.append(self._dropped(Tier.HOST, held))
        if self._objects is not None:
            self._flush_objects(self._objects, order, known)
            dropped.append(TierDropped(Tier.OBJECT, 0, 0, complete=False))
        return FlushReport(tuple(dropped))

    def _flush_objects(self, objects: ObjectOrders, order: FlushOrder, known: set[BlockHash]) -> None:
        """Have what an order names deleted from objects. known: what this worker held when it came.

        Which objects are meant is found out on the thread of their directory: there may be many.
        """
        notes, under_way = self._notes.copy(), objects.under_way()

        def doomed(found: Iterable[KnownObject]) -> set[BlockHash]:
            return _doomed_of(notes, order, known | under_way, found)

        def done(how: ObjectsFlushed) -> None:
            self._amend(order, TierDropped(Tier.OBJECT, how.blocks, how.bytes, error=how.error))

        objects.flush(order.order, None if order.scope == FlushScope.ALL.value else doomed, under_way, done)

    def tidy(self) -> None:
        """Forget what is known of blocks that are gone, from time to time."""
        if self._notes.sweep_due:
            self._notes.sweep(self._known(self._blocks_by_slot()))

    def _blocks_by_slot(self) -> dict[int, BlockHash]:
        """Return the hash of the block in each slot, whatever its KV cache group."""
        return {slot: block_of(key) for slot, key in self._publisher.held_blocks.blocks_by_slot().items()}

    def _known(self, slots: Mapping[int, BlockHash]) -> set[BlockHash]:
        """Return all blocks of this worker: what its slots hold, and what is on its way to a host slot.

        The engine may have given up what is copied: nothing else names it until its copy is reported.
        """
        known = set(slots.values())
        return known if self._tier is None else known | self._tier.ledger.on_their_way

    def _dropped(self, tier: Tier, blocks: int) -> TierDropped:
        return TierDropped(tier, blocks, blocks * self._block_bytes)


def _doomed_of(
    notes: BlockNotes, order: FlushOrder, known: set[BlockHash], found: Iterable[KnownObject]
) -> set[BlockHash]:
    """Return which of the known blocks, and of those in objects, an order drops. notes: gets those of objects, too."""
    blocks, named = set(known), set[BlockHash]()
    for one in found:
        parent: BlockHash | None = one.parent or None
        for block in one.hashes:
            # What a request said of it here is newer than what one said of it when it was written.
            notes.put_first(block, Note(parent, SectionType(one.section), one.session or None))
            parent = block
        blocks.update(one.hashes)
        if order.scope == FlushScope.TOOLS.value and one.after_tools:
            named.update(one.hashes)
        if order.scope == FlushScope.SESSION.value and one.session == order.session:
            named.update(one.hashes)
    return notes.doomed(order, blocks, named)
