"""Which block lies in which host slot: the state of a worker's host tier, kept where its scheduler runs.

A pure state machine: no I/O, no thread; the clock is injected. Life of a host slot:

    free --begin--> copying --end: valid on every rank--> held
      ^                |                                    |
      '-- not valid ---+--- a victim, dropped: bumped ------'

A slot that was held is bumped before anything is written into it, like a slot of an engine: its new generation travels
with the step whose ranks then copy into it. It is withdrawn from the index at that moment. A slot whose copy was not
valid was in no entry, and needs no bump.

A copy that the ledger has given up (`clear`, `drop`, or no report in time) may still write into its slots. They are
free all the same: a rank carries out one copy after the other, so what a later copy writes is written later. A fetch
from objects writes nothing more once one of its slots is given to somebody else (worker/host_objects.py).
One that no rank has been given yet must not be given to any (`is_under_way`): it might come after the later one.

Which blocks stay is up to the retention; only that a *duplicate* makes room first: a block which the engine has and has
used since it was copied (it is copied again before the engine gives it up), or which a peer has lent, and has still.

Owner: one thread, the scheduler's.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

from ghostcacher_connector.core.retention.base import BlockTraits, EvictionReason
from ghostcacher_connector.core.retention.tier_retention import TierRetention
from ghostcacher_connector.core.types import BlockHash, Location, SectionType, Tier
from ghostcacher_connector.slots import Generations, Slots
from ghostcacher_connector.tiers.candidates import Candidate, Copied
from ghostcacher_connector.tiers.host_generations import HostGenerations
from ghostcacher_connector.tiers.tier_counts import TierCounts

COPY_TIMEOUT_S = 30.0
"""A copy that some rank has not reported by then is given up: it would keep its slots for good. A copy takes
milliseconds, but reports come with steps, and an engine may be busy with one for seconds."""


class _Held(NamedTuple):
    slot: int
    generation: int


@dataclass(slots=True)
class _Copy:
    """A copy under way."""

    candidates: Sequence[Candidate]
    slots: list[int]
    """Where each of them is copied to."""
    valid: list[bool]
    """Whether no rank has reported otherwise so far."""
    reports_due: int
    began_at: float


@dataclass(slots=True)
class _Load:
    """A load that reads host slots now."""

    blocks: set[BlockHash]
    until: float


class HostLedger:
    """See the module's docstring."""

    counts: TierCounts
    """What it has given up and not taken in."""

    changes: int
    """How often it has changed what is held: what is found by `prefix` is the same until it rises."""

    def __init__(
        self,
        first_slot: int,
        slot_count: int,
        retention: TierRetention,
        *,
        ranks: int,
        on_withdraw: Callable[[int, BlockHash], None],
        on_clear: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with every slot free.

        first_slot, slot_count: the host slots are ``[first_slot, first_slot + slot_count)`` of the worker's slots.
        retention: empty, with room for as many blocks.
        ranks: how many of them report each copy.
        on_withdraw: called with each slot that held a block, and the block, before anything else may be written there.
        on_clear: called instead when all slots are given up at once.
        """
        assert slot_count > 0
        self._first_slot = first_slot
        self._ranks = ranks
        self._retention = retention
        self._on_withdraw, self._on_clear = on_withdraw, on_clear
        self._clock = clock
        self._generations = HostGenerations(first_slot, slot_count)
        self._free = self._all_slots()
        self._held: dict[BlockHash, _Held] = {}
        self._duplicates: dict[BlockHash, None] = {}
        self._copying: set[BlockHash] = set()
        self._copies: dict[int, _Copy] = {}
        self._last_copy_id = 0
        self._loads: dict[str, _Load] = {}
        self.counts, self.changes = TierCounts(), 0

    def __repr__(self) -> str:
        under_way = f"copies under way={len(self._copies)}, loads={len(self._loads)}"
        return f"HostLedger(held={len(self._held)}, free={len(self._free)}, {under_way})"

    def __len__(self) -> int:
        """Return the number of blocks held."""
        return len(self._held)

    @property
    def slot_count(self) -> int:
        return len(self._generations)

    @property
    def blocks_by_section(self) -> tuple[int, ...]:
        """How many blocks, those on their way here included, are of each type, in the order of `SectionType`."""
        return self._retention.blocks_by_section

    @property
    def retained_bytes(self) -> int:
        """What requests want kept, as far as quotas let it be."""
        return self._retention.retained_bytes

    @property
    def quota_refused_bytes(self) -> int:
        """Bytes that requests have wanted kept and quotas did not let be, since the beginning."""
        return self._retention.quota_refused_bytes

    @property
    def full(self) -> bool:
        """Whether a block that comes makes another one go."""
        return not self._free

    @property
    def loading(self) -> bool:
        """Whether a load reads host slots: once it has ended, the engine has their blocks, too."""
        return bool(self._loads)

    @property
    def spare(self) -> int:
        """How many blocks can come without any going that is nowhere else."""
        return len(self._free) + len(self._duplicates)

    @property
    def copies_under_way(self) -> int:
        return len(self._copies)

    def is_under_way(self, copy_id: int) -> bool:
        """Say whether a copy has its slots still: it is not reported by every rank, and was not given up."""
        return copy_id in self._copies

    # -- looking -------------------------------------------------------------------------------------------------

    def knows(self, block: BlockHash) -> bool:
        """Say whether a block is held, or on its way here."""
        return block in self._held or block in self._copying

    def holds(self, block: BlockHash) -> bool:
        return block in self._held

    @property
    def on_their_way(self) -> Set[BlockHash]:
        """The blocks that are not held yet, and will be once their copies have ended: a view."""
        return self._copying

    def prefix(self, blocks: Sequence[BlockHash], first: int) -> list[Location]:
        """Return where blocks ``[first, ...)`` are, up to the first one that is not held."""
        found = []
        for index in range(first, len(blocks)):
            held = self._held.get(blocks[index])
            if held is None:
                break
            found.append(Location(Tier.HOST, held.slot, held.generation))
        return found

    # -- copies --------------------------------------------------------------------------------------------------

    def begin(self, candidates: Sequence[Candidate]) -> tuple[int, list[int | None]]:
        """Begin a copy of blocks that are not known; return its number, and for each block its host slot.

        None: the block is not worth what would have to go, or nothing may go. With no slot at all there is no copy, and
        the number means nothing.
        """
        slots = [self._admit(candidate) for candidate in candidates]
        taken = [pair for pair in zip(candidates, slots, strict=True) if pair[1] is not None]
        if taken:
            self._last_copy_id += 1
            self._copies[self._last_copy_id] = _Copy(
                [candidate for candidate, _ in taken],
                [slot for _, slot in taken if slot is not None],
                [True] * len(taken),
                self._ranks,
                self._clock(),
            )
        return self._last_copy_id, slots

    def end(self, copy_id: int, valid: Iterable[bool]) -> list[Copied]:
        """Take one rank's report of a copy; return what is held from now on, once every rank has reported it.

        valid: for each of its blocks, whether this rank has copied what the block's slot held when it was ordered.
        The report of a copy that was given up changes nothing.
        """
        copy = self._copies.get(copy_id)
        if copy is None:
            return []
        copy.valid = [so_far and bool(here) for so_far, here in zip(copy.valid, valid, strict=True)]
        copy.reports_due -= 1
        if copy.reports_due:
            return []
        del self._copies[copy_id]
        self.changes += 1
        done = []
        for candidate, slot, good in zip(copy.candidates, copy.slots, copy.valid, strict=True):
            if not good:
                self._abandon(candidate.block, slot)
                continue
            self._copying.remove(candidate.block)
            self._retention.unpin(candidate.block)
            generation = self._generations.of(slot)
            self._held[candidate.block] = _Held(slot, generation)
            done.append(Copied(slot, candidate, generation))
        return done

    def expire(self) -> int:
        """Give up blocks whose time is over, loads and copies that should have ended; return how many copies."""
        now = self._clock()
        late = [copy_id for copy_id, copy in self._copies.items() if copy.began_at + COPY_TIMEOUT_S <= now]
        for copy_id in late:
            self._give_up(copy_id)
        for load_id in [load_id for load_id, load in self._loads.items() if load.until <= now]:
            self.unpin(load_id)
        for evicted in self._retention.expire():
            self._release(evicted.key, evicted.section, evicted.reason)
        return len(late)

    # -- use -----------------------------------------------------------------------------------------------------

    def touch(self, blocks: Iterable[BlockHash], traits: Iterable[BlockTraits]) -> None:
        """Note that a prompt has these blocks, in prefix order, wherever it finds them.

        traits: what it says of each. A block that is held is retained as it asks; of one that is not, the policy learns
        whether it comes back.
        """
        for block, says in zip(blocks, traits, strict=True):
            self._retention.touch(block, says)

    def pin(self, load_id: str, blocks: Iterable[BlockHash], seconds: float) -> None:
        """Keep held blocks where they are while a load reads them: until `unpin`, but no longer than this."""
        pinned = set(blocks)
        assert load_id not in self._loads, f"load {load_id} is under way already"
        assert pinned <= self._held.keys(), "only what is held is pinned"
        self._loads[load_id] = _Load(pinned, self._clock() + seconds)
        for block in pinned:
            self._retention.pin(block)

    def unpin(self, load_id: str) -> None:
        """End a load; one that is not known, or was given up, is no error."""
        load = self._loads.pop(load_id, None)
        for block in load.blocks if load is not None else ():
            self._retention.unpin(block)

    def duplicate(self, block: BlockHash) -> None:
        """Note that a held block is elsewhere, too: the engine has used it, or a peer lent it. It makes room first."""
        if block in self._held:
            self._duplicates[block] = None

    def unique(self, block: BlockHash) -> None:
        """Note that a block is nowhere else any more, or soon will not be."""
        self._duplicates.pop(block, None)

    # -- giving up -----------------------------------------------------------------------------------------------

    def drop(self, chosen: Callable[[BlockHash], bool]) -> int:
        """Forget all chosen blocks, held or on their way; return how many were held."""
        for copy_id, copy in list(self._copies.items()):
            if any(chosen(candidate.block) for candidate in copy.candidates):
                self._give_up(copy_id)
        gone = [block for block in self._held if chosen(block)]
        for block in gone:
            self._drop(block, EvictionReason.FLUSHED)
        return len(gone)

    def clear(self) -> int:
        """Forget all that is held or on its way, at some 0.5 us a block; return how many blocks were held."""
        self._on_clear()
        self.changes += 1
        held = len(self._held)
        on_their_way = Counter(each.traits.section for copy in self._copies.values() for each in copy.candidates)
        for section, count in zip(SectionType, self._retention.blocks_by_section, strict=True):
            self.counts.evict(section, EvictionReason.FLUSHED, count - on_their_way[section])
        self._generations.bump_all((each.slot for each in self._held.values()), held)
        self._free = self._all_slots()
        self._held, self._duplicates, self._copying, self._copies, self._loads = {}, {}, set(), {}, {}
        self._retention.clear()
        return held

    @property
    def bumps_waiting(self) -> bool:
        """Whether there is anything to take: most steps give up nothing."""
        return self._generations.waiting

    def take_bumps(self) -> tuple[Slots, Generations]:
        """Return the slots that were given up since the last call, with their new generations, shape (n,) each."""
        return self._generations.take()

    def send_all(self) -> None:
        """Send every generation with the next step: a rank may have missed some."""
        self._generations.send_all()

    def _all_slots(self) -> list[int]:
        """Return all slots; the first one is taken last from a free list of them."""
        return list(range(self._first_slot + self.slot_count - 1, self._first_slot - 1, -1))

    def _admit(self, candidate: Candidate) -> int | None:
        """Return a slot for a block that is to be copied, or None if it is not worth one."""
        assert not self.knows(candidate.block), "a block is copied twice"
        if not self._free:
            self._drop_duplicate()
        insertion = self._retention.insert(candidate.block, candidate.parent, candidate.traits)
        for evicted in insertion.evicted:
            self._release(evicted.key, evicted.section, evicted.reason)
        if insertion.refusal is not None:
            self.counts.refuse(candidate.traits.section, insertion.refusal)
            return None
        self._retention.pin(candidate.block)
        self._copying.add(candidate.block)
        return self._free.pop()

    def _is_pinned(self, block: BlockHash) -> bool:
        known = self._retention.look(block)
        return known is not None and known.pins > 0

    def _drop_duplicate(self) -> None:
        # Few are pinned: what is loaded is what the engine lacks.
        block = next((block for block in self._duplicates if not self._is_pinned(block)), None)
        if block is not None:
            self._drop(block, EvictionReason.DUPLICATE)

    def _drop(self, block: BlockHash, reason: EvictionReason) -> None:
        """Give up a block that is held."""
        known = self._retention.look(block)
        assert known is not None, "what is held is retained"
        self._retention.remove(block)
        self._release(block, known.section, reason)

    def _release(self, block: BlockHash, section: SectionType, reason: EvictionReason) -> None:
        """Free the slot of a block that is held, and that the retention has no more: bump and withdraw it."""
        self.counts.evict(section, reason)
        self.changes += 1
        slot = self._held.pop(block).slot
        self._duplicates.pop(block, None)
        for load in self._loads.values():
            load.blocks.discard(block)
        self._generations.bump(slot)
        self._free.append(slot)
        self._on_withdraw(slot, block)

    def _give_up(self, copy_id: int) -> None:
        copy = self._copies.pop(copy_id)
        for candidate, slot in zip(copy.candidates, copy.slots, strict=True):
            self._abandon(candidate.block, slot)

    def _abandon(self, block: BlockHash, slot: int) -> None:
        """Free the slot of a block whose copy was of no use."""
        self._copying.remove(block)
        self._retention.unpin(block)
        self._retention.remove(block)
        self._free.append(slot)

    def check_invariants(self) -> None:
        """Assert what holds between any two calls. For tests: its cost grows with the slots."""
        held = [entry.slot for entry in self._held.values()]
        copying = [slot for copy in self._copies.values() for slot in copy.slots]
        slots = range(self._first_slot, self._first_slot + self.slot_count)
        assert sorted([*self._free, *held, *copying]) == list(slots), "every slot is in one place"
        assert self._copying == {each.block for copy in self._copies.values() for each in copy.candidates}
        assert not self._copying & self._held.keys(), "what is held is not copied again"
        assert self._duplicates.keys() <= self._held.keys(), "only what is held is a duplicate"
        assert all(load.blocks <= self._held.keys() for load in self._loads.values()), "only what is held is pinned"
        assert all(self._generations.of(entry.slot) == entry.generation for entry in self._held.values())
        assert all(0 < copy.reports_due <= self._ranks for copy in self._copies.values())
