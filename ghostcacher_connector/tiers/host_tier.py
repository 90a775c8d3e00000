"""A worker's host tier as its scheduler sees it: what is copied down, what is found there, what its peers are told.

    engine's blocks, as they are published --> HostTier --host slots--> publisher --> index
                                                 |  ^
                                    copy orders  v  |  reports: copied, valid on this rank
                                                ranks

Life of a copy:
1. an engine publishes a block (`engine_holds`); its slot is `wanted`;
2. the engine's adapter sees that the slot will soon be given away, and `order` finds a host slot for its block. The
   order travels with a step, behind the generations of that step;
3. each rank copies, and reports which blocks still had the generation of the order when it was done (`reported`);
4. what is valid on every rank is held, and published with its host slot.

What is copied was published, so a step is known to have computed it; and it had its generation before and after.

Knows no engine. All methods are called on the scheduler's thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice, takewhile
from typing import Any, NamedTuple

import numpy as np

from ghostcacher_connector.core.coordination.tier_load import TierLoad
from ghostcacher_connector.core.index.base import BlockSink
from ghostcacher_connector.core.retention.base import BlockTraits
from ghostcacher_connector.core.retention.retention_settings import RetentionSettings
from ghostcacher_connector.core.retention.tier_retention import TierRetention
from ghostcacher_connector.core.types import BlockHash, SectionType, Tier
from ghostcacher_connector.metrics import Recorder
from ghostcacher_connector.tiers.candidates import Candidate, Copied
from ghostcacher_connector.tiers.host_ledger import HostLedger
from ghostcacher_connector.transfer.jobs import CopyJob

logger = logging.getLogger(__name__)

HOST = Tier.HOST.name.lower()
ORDER_BYTES = 8 << 20
"""One order: a few milliseconds of a rank's time, after which its generations are compared. Copies of blocks whose
slots are reused meanwhile are in vain."""

ORDERS_MAX = 64
"""Orders under way at once. More blocks wait in the engine, which has not given them up yet."""

RECORD_INTERVAL_S = 1.0
"""How often the tier's state goes into the metrics while the engine takes steps."""


LENT_S = 600.0
"""For how long it is believed that the peer which has lent a block holds it still, without a word of the index. Where
that is wrong, the only copy of the fleet may go; where it is true, a copy too many stays: both are made good by one
prompt, and a busy engine fills a tier of many GiB anew in minutes."""


class _Published(NamedTuple):
    """What an engine slot holds."""

    candidate: Candidate
    generation: int

    def used(self, says: BlockTraits) -> _Published:
        """Return it as a block that a prompt has used: it is kept for at least as long as that wants."""
        return self.with_traits(retain_s=max(self.candidate.traits.retain_s, says.retain_s), tools=says.tools)

    def with_traits(self, **traits: Any) -> _Published:
        """Return it with some traits changed."""
        changed = self.candidate.traits._replace(**traits)
        if changed == self.candidate.traits:
            return self
        return self._replace(candidate=self.candidate._replace(traits=changed))


class HostTier:
    """See the module's docstring."""

    def __init__(
        self,
        sink: BlockSink,
        recorder: Recorder,
        *,
        worker: str,
        first_slot: int,
        slot_count: int,
        ranks: int,
        block_bytes: int,
        retention: RetentionSettings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with nothing held.

        worker: whose tier it is, as peers know it. first_slot, slot_count: of the host slots, which follow the
        engine's. block_bytes: of one block on one rank.
        """
        self.worker = worker
        self._sink = sink
        self._recorder = recorder
        self._clock = clock
        self.block_bytes = block_bytes
        self._order_blocks = max(1, ORDER_BYTES // block_bytes)
        self._retention = TierRetention(retention, slot_count * block_bytes, clock=clock)
        self.ledger = HostLedger(
            first_slot,
            slot_count,
            self._retention,
            ranks=ranks,
            on_withdraw=self._given_up,
            on_clear=lambda: sink.withdraw_from(first_slot),
            clock=clock,
        )
        self._loaded = self._quota_refused = 0
        self._record_at = clock()
        self._engine: dict[int, _Published] = {}  # what was used last comes last
        self._engine_slots: dict[BlockHash, int] = {}
        self._lent: dict[BlockHash, float] = {}  # when a peer was known to hold them, in this order
        self._lent_max = first_slot  # some are never published, and so never given away
        self.wanted: set[int] = set()
        """Engine slots that are to be looked at once the engine is about to give them away."""
        self.on_copied: Callable[[int, Sequence[Copied]], None] = lambda _copy_id, _copied: None
        """Called with a copy's number and what is held from now on."""
        self.on_cleared: Callable[[], None] = lambda: None
        """Called when everything was forgotten."""

    def __repr__(self) -> str:
        return f"HostTier(engine blocks={len(self._engine)}, wanted={len(self.wanted)}, {self.ledger!r})"

    # -- the engine's blocks -------------------------------------------------------------------------------------

    def engine_holds(self, slot: int, candidate: Candidate, generation: int) -> None:
        """Take note of what an engine slot is published with."""
        self._engine.pop(slot, None)
        self._engine[slot] = _Published(candidate, generation)
        self._engine_slots[candidate.block] = slot
        self.ledger.duplicate(candidate.block)
        self.wanted.add(slot)

    def engine_gives(self, slot: int) -> None:
        """The engine gives a slot away; one that was not published is no error."""
        published = self._engine.pop(slot, None)
        self.wanted.discard(slot)
        if published is not None and self._engine_slots.get(published.candidate.block) == slot:
            del self._engine_slots[published.candidate.block]
            self._leaves_engine(published.candidate.block)
            if not self.ledger.holds(published.candidate.block):
                self._lent.pop(published.candidate.block, None)

    def lent(self, blocks: Iterable[BlockHash]) -> None:
        """Note blocks that have just come from a peer, which holds them still: nothing else goes for copies of them.

        Of a fleet whose tiers are about full, every second copy of a block costs the only copy of another one. So those
        that are made while there is room are the first to make some. This is believed for `LENT_S`.
        """
        now = self._clock()
        for block in blocks:
            self._lent.pop(block, None)
            self._lent[block] = now
            self.ledger.duplicate(block)
        while len(self._lent) > self._lent_max:
            self.owned([next(iter(self._lent))])

    def still_lent(self, blocks: Iterable[BlockHash]) -> None:
        """Note blocks that peers hold, as the index has just said; any that was not lent is no error."""
        now = self._clock()
        for block in self._lent.keys() & set(blocks):
            del self._lent[block]
            self._lent[block] = now

    def owned(self, blocks: Iterable[BlockHash]) -> None:
        """Note blocks that no peer holds, as far as the index knows; any that was not lent is no error."""
        for block in self._lent.keys() & set(blocks):
            del self._lent[block]
            slot = self._engine_slots.get(block)
            if slot is None:
                self.ledger.unique(block)
            else:
                self.wanted.add(slot)

    def oldest(self, count: int) -> list[int]:
        """Return the engine slots that were used least lately, at most so many, the oldest first."""
        return list(islice(self._engine, count))

    def _expire_lent(self) -> None:
        """Believe of nothing any longer that a peer holds it, if the index has not said so for `LENT_S`."""
        since = self._clock() - LENT_S
        self.owned([block for block, _ in takewhile(lambda each: each[1] <= since, self._lent.items())])

    # -- copies down ---------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether copies are under way."""
        return self.ledger.copies_under_way > 0

    def order(self, slots: Iterable[int]) -> list[CopyJob]:
        """Order copies of what these engine slots hold, which the engine gives away soon, in this order.

        slots: of those that are `wanted`; what cannot be ordered now stays so. While a load reads the tier, only what
        there is room for is ordered: what it reads will make room, and until then an only copy would have to go.
        """
        self.ledger.expire()
        self._expire_lent()
        orders: list[CopyJob] = []
        chosen: dict[BlockHash, int] = {}
        for slot in slots:
            if self.ledger.copies_under_way >= ORDERS_MAX:
                return orders
            block = self._engine[slot].candidate.block
            if self.ledger.knows(block):
                self.wanted.discard(slot)
                self._leaves_engine(block)
                continue
            if self.ledger.loading and len(chosen) >= self.ledger.spare:
                break
            self.wanted.discard(slot)
            if block not in chosen and not (self.ledger.full and block in self._lent):
                chosen[block] = slot
            if len(chosen) == self._order_blocks:
                orders += self._begin(list(chosen.values()))
                chosen.clear()
        return orders + self._begin(list(chosen.values()))

    def reported(self, copy_id: int, valid: Sequence[bool]) -> None:
        """Take one rank's report of a copy, and publish what every rank has copied."""
        done = self.ledger.end(copy_id, valid)
        for slot, candidate, generation in done:
            self._sink.publish(slot, candidate.block, candidate.root, generation)
            if candidate.block in self._lent:
                self.ledger.duplicate(candidate.block)
        if done:
            self.on_copied(copy_id, done)

    # -- use -----------------------------------------------------------------------------------------------------

    def loaded(self, blocks: int) -> None:
        """Note that a request has taken so many blocks from here, and that they were right."""
        self._loaded += blocks
        self._recorder.inc("gc_tier_loaded_blocks_total", blocks, tier=HOST)

    def load(self) -> TierLoad:
        """Return what there is to say of the tier now."""
        self._record()
        ledger = self.ledger
        return TierLoad(
            Tier.HOST,
            len(ledger),
            ledger.slot_count,
            ledger.blocks_by_section,
            self._loaded,
            ledger.counts.evicted,
            ledger.counts.refused,
            ledger.copies_under_way,
        )

    def record_metrics(self) -> None:
        """Record what has changed, once a second; cheap enough for every step, in each of which it is called."""
        if self._clock() >= self._record_at:
            self._expire_lent()  # what is copied after all then is `wanted` again: until then `order` is not called
            self._record()

    def _record(self) -> None:
        self._record_at = self._clock() + RECORD_INTERVAL_S
        ledger = self.ledger
        for section, blocks in zip(SectionType, ledger.blocks_by_section, strict=True):
            self._recorder.set("gc_tier_blocks", blocks, tier=HOST, type=section.name.lower())
        self._recorder.set("gc_tier_retained_bytes", ledger.retained_bytes, tier=HOST)
        self._recorder.set("gc_tier_needed_blocks", self._retention.needed_blocks, tier=HOST)
        refused_bytes, self._quota_refused = self._quota_refused, ledger.quota_refused_bytes
        self._recorder.inc("gc_tier_quota_refused_bytes_total", self._quota_refused - refused_bytes, tier=HOST)
        ledger.counts.record(self._recorder, HOST)

    def touch(self, blocks: Sequence[BlockHash], traits: Sequence[BlockTraits]) -> None:
        """Note that a prompt has these blocks, in prefix order, wherever it finds them. traits: of each of them."""
        self.ledger.touch(blocks, traits)
        for block, says in zip(blocks, traits, strict=True):
            slot = self._engine_slots.get(block)
            if slot is not None:
                self.ledger.duplicate(block)
                self.wanted.add(slot)
                self._engine[slot] = self._engine.pop(slot).used(says)

    def need(self, block: BlockHash, *, needed: bool) -> None:
        """Note whether the fleet would have too few copies of a block without this worker's."""
        if needed:
            self.owned((block,))
        self._retention.need(block, needed=needed)
        slot = self._engine_slots.get(block)
        if slot is not None:
            self._engine[slot] = self._engine[slot].with_traits(needed=needed)

    def age(self, tools: bytes) -> int:
        """Let what is held of prompts with these tools make room first, until it is used; return how many blocks."""
        return self._retention.age(tools)

    # -- giving up -----------------------------------------------------------------------------------------------

    def clear(self) -> int:
        """Forget and withdraw everything: what was computed so far must not be used any more.

        Returns how many blocks were held.
        """
        held = self.ledger.clear()
        self.wanted.clear()
        self._lent.clear()
        self.on_cleared()
        return held

    def _leaves_engine(self, block: BlockHash) -> None:
        """Note that the engine gives a block up, or soon will: unless a peer has it, it is not elsewhere, too."""
        if block not in self._lent:
            self.ledger.unique(block)

    def _begin(self, slots: list[int]) -> list[CopyJob]:
        if not slots:
            return []
        published = [self._engine[slot] for slot in slots]
        copy_id, host_slots = self.ledger.begin([each.candidate for each in published])
        taken = [(s, p.generation, h) for s, p, h in zip(slots, published, host_slots, strict=True) if h is not None]
        if not taken:
            return []
        engine, generations, host = zip(*taken, strict=True)
        return [
            CopyJob(
                copy_id,
                np.asarray(engine, dtype=np.int64),
                np.asarray(generations, dtype=np.uint64),
                np.asarray(host, dtype=np.int64),
            )
        ]

    def _given_up(self, slot: int, block: BlockHash) -> None:
        """A host slot is given away; what it held is copied again if the engine has it still."""
        engine_slot = self._engine_slots.get(block)
        if engine_slot is not None:
            self.wanted.add(engine_slot)
        else:
            self._lent.pop(block, None)
        self._sink.withdraw(slot)
