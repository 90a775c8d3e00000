"""Which blocks a tier keeps: typed retention, budgets, and evictions that take children before their parents.

Life of a block:

1. `insert` takes it in, and returns what had to go; or refuses it.
2. `touch` at every use that the tier is told of, also where the engine's own cache had the block.
3. `pin` while its bytes are being copied, `unpin` after: a pinned block, and all before it, are not evicted.
4. It leaves by `insert` or `evict` (room was needed), `expire` (its type's time is over), `flush` (somebody asked), or
   `remove` (the caller lost it). Each block leaves once, and what leaves is returned: the caller frees its slot.

The order in which leaves go when a tier is full, the first group that has any:

1. aged ones (`age`: of prompts whose tools have been replaced by others);
2. of types that hold more than their budget; space that nobody else wants may be borrowed, and is given back first;
3. all others, the least worth first, as the policy says;
4. *needed* ones, of which the fleet would have too few copies (`need`), only for what is needed or to be retained
   itself, the least worth first; not beyond the budget of their type, nor long after their last use;
5. retained ones, only for a block that is to be retained itself, the least worth first.

Not thread-safe: the caller's lock covers all calls. None waits for anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import monotonic

from ghostcacher_connector.core.retention.alarms import Alarms
from ghostcacher_connector.core.retention.base import (
    BlockKey,
    BlockTraits,
    Evicted,
    EvictionPolicy,
    EvictionReason,
    Insertion,
    Refusal,
    TierBlock,
)
from ghostcacher_connector.core.retention.block_forest import BlockForest, descend
from ghostcacher_connector.core.retention.eviction_queues import EvictionQueues
from ghostcacher_connector.core.retention.policies import make_policy
from ghostcacher_connector.core.retention.retained import Retained
from ghostcacher_connector.core.retention.retention_settings import RetentionSettings
from ghostcacher_connector.core.retention.tool_sets import ToolSets
from ghostcacher_connector.core.retention.victims import Newcomer, Victim
from ghostcacher_connector.core.threads import daemon_thread
from ghostcacher_connector.core.types import SectionType

GIB = 1 << 30
NEEDED_S = 3_600.0
"""What nobody has used for so long is kept no longer for the fleet's sake."""


class TierRetention:
    """The blocks of one tier and the order in which they leave it. Sizes are bytes, times seconds of `clock`."""

    def __init__(
        self,
        settings: RetentionSettings,
        capacity_bytes: int,
        *,
        clock: Callable[[], float] = monotonic,
        policy: EvictionPolicy | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._policy = policy if policy is not None else make_policy(settings, capacity_bytes)
        self._forest = BlockForest()
        self._queues = EvictionQueues()
        self._deadlines = Alarms()
        self._tool_sets = ToolSets()
        self._needed = Alarms()
        self._retained = self._new_retained(capacity_bytes)
        self._budgets = {section: settings.budget(section) * capacity_bytes for section in SectionType}
        self._ttls = {section: settings.ttl_s(section) for section in SectionType}
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self.bytes_by_section = dict.fromkeys(SectionType, 0)

    def __len__(self) -> int:
        return len(self._forest)

    def __contains__(self, key: BlockKey) -> bool:
        return key in self._forest

    def __iter__(self) -> Iterator[BlockKey]:
        return iter(self._forest.keys())

    def __repr__(self) -> str:
        return f"TierRetention({len(self)} blocks, {self.used_bytes} of {self.capacity_bytes} bytes)"

    @property
    def blocks_by_section(self) -> tuple[int, ...]:
        """How many blocks are of each type, in the order of `SectionType`, where all blocks have one size."""
        size = next((block.size_bytes for block in self._forest), 1)
        return tuple(self.bytes_by_section[section] // size for section in SectionType)

    @property
    def retained_bytes(self) -> int:
        return self._retained.total_bytes

    @property
    def needed_blocks(self) -> int:
        """How many blocks are kept since the fleet would have too few copies."""
        return len(self._needed)

    @property
    def quota_refused_bytes(self) -> int:
        """Bytes of all blocks so far that requests wanted retained and quotas did not allow."""
        return self._retained.refused_bytes

    def look(self, key: BlockKey) -> TierBlock | None:
        """Return what is known of a block, to be read; None if it is not in the tier."""
        return self._forest.get(key)

    def insert(self, key: BlockKey, parent: BlockKey | None, traits: BlockTraits) -> Insertion:
        """Take in a block that is not in the tier, and make room for it; or refuse it.

        parent: the key of the block before it, None for the first of a prefix. It need not be in the tier.
        A refusal for FULL may come after some room was made: what left is returned then, too.
        """
        assert key not in self._forest, f"block {key.hex()} is in the tier"
        now = self._clock()
        if traits.section is SectionType.USER:
            return Insertion(Refusal.TYPE, ())
        block = TierBlock(key, parent, traits, now)
        block.aged = self._tool_sets.is_over(traits.tools)
        worth = self._policy.offered(block, now)
        wanted = self.used_bytes + block.size_bytes - self.capacity_bytes
        if block.aged and wanted > 0:
            return Insertion(Refusal.WORTH, ())
        in_budget = self.bytes_by_section[block.section] + block.size_bytes <= self._budgets[block.section]
        newcomer = Newcomer(block, worth, traits.retain_s > 0, traits.needed and in_budget)
        refusal, evicted = self._make_room(wanted, now, newcomer)
        if refusal is None:
            self._add(block, traits, now)
        return Insertion(refusal, tuple(evicted))

    def touch(self, key: BlockKey, traits: BlockTraits | None = None) -> bool:
        """Note that a prompt has a block; return whether the block is in the tier.

        All blocks of a prompt are touched, in prefix order, each once, wherever they are: what comes back though it is
        not in the tier is worth a place, too. traits: what this prompt says of it, as far as known; of a block in the
        tier its type, size and tenant stay as they are.
        """
        block = self._forest.get(key)
        now = self._clock()
        if traits is not None:
            self._tool_sets.begin(traits.tools)
        if block is None:
            self._policy.asked(key, traits, now)
            return False
        if traits is not None:
            block.prompt_blocks = traits.prompt_blocks
            self._tool_sets.use(block, traits.tools)
        block.aged = False
        self._policy.used(block, now)
        block.hits += 1
        block.used_at = now
        if block in self._needed:
            self._needed.set(block, now + NEEDED_S)
        if block.section is SectionType.SESSION:
            self._set_deadline(block, now)
        if traits is not None and traits.retain_s > 0:
            self._retain(block, traits.retain_s, now)
        self._settle(block)
        return True

    def need(self, key: BlockKey, *, needed: bool) -> None:
        """Note whether the fleet would have too few copies of a block without this one; not here is no error."""
        block = self._forest.get(key)
        if block is None or needed == (block in self._needed):
            return
        if needed:
            self._needed.set(block, self._clock() + NEEDED_S)
        else:
            self._needed.clear(block)
        self._settle(block)

    def pin(self, key: BlockKey) -> None:
        """Keep a block, and so all before it, from being evicted or expiring, until as many calls of `unpin`."""
        block = self._at(key)
        block.pins += 1
        self._settle(block)

    def unpin(self, key: BlockKey) -> None:
        """Take back one `pin`. A block that was flushed or removed meanwhile needs none."""
        block = self._forest.get(key)
        if block is not None and block.pins:
            block.pins -= 1
            self._settle(block)

    def remove(self, key: BlockKey) -> bool:
        """Forget a block that the caller has lost, whatever follows it; return whether it was in the tier."""
        block = self._forest.get(key)
        if block is not None:
            self._drop(block, self._clock())
        return block is not None

    def evict(self, size_bytes: int) -> list[Evicted]:
        """Make so many bytes free at least, as for a block that is not to be retained; less where nothing may go."""
        return self._make_room(self.used_bytes + size_bytes - self.capacity_bytes, self._clock(), None)[1]

    def expire(self) -> list[Evicted]:
        """Evict all whose type's time is over and that nothing keeps: no retention, no pin, no block that follows."""
        now = self._clock()
        self._end_retentions(now)
        evicted = []
        while (block := self._deadlines.pop_due(now)) is not None:
            if block.deadline > now:
                self._deadlines.set(block, block.deadline)
            elif block in self._queues and block not in self._retained:
                evicted.append(self._evict(block, EvictionReason.TTL, now))
        return evicted

    def next_expiry(self) -> float | None:
        """Return the earliest time, by the clock, at which `expire` may find something; None: never, as things are."""
        return self._deadlines.next_at()

    def flush(self, chosen: Callable[[TierBlock], bool]) -> list[Evicted]:
        """Evict all chosen blocks and all that follow them, also retained and pinned ones. O(blocks in the tier)."""
        now = self._clock()
        doomed: set[TierBlock] = set()
        for block in self._forest:
            if block not in doomed and chosen(block):
                doomed.update(descend(block))
        evicted = []
        leaves = [block for block in doomed if not block.children]
        while leaves:
            leaf = leaves.pop()
            parent = leaf.parent
            evicted.append(self._evict(leaf, EvictionReason.FLUSHED, now))
            if parent in doomed and not parent.children:
                leaves.append(parent)
        return evicted

    def clear(self) -> None:
        """Forget all blocks, also retained and pinned ones, at once; what the policy has learnt stays.

        What they were is freed beside, on a thread of its own: of a million blocks that takes a second or more.
        """
        gone, refused_bytes = self._forest, self.quota_refused_bytes
        self._forest, self._queues, self._deadlines = BlockForest(), EvictionQueues(), Alarms()
        self._retained = self._new_retained(self.capacity_bytes)
        self._retained.refused_bytes = refused_bytes
        self._needed, sets = Alarms(), self._tool_sets.clear()
        self.used_bytes = 0
        self.bytes_by_section = dict.fromkeys(SectionType, 0)

        def free() -> None:
            gone.untie_all()
            sets.clear()

        daemon_thread("gc-free", free).start()

    def age(self, tools: bytes) -> int:
        """Let the blocks of prompts with these tools go before all others, retained or not; return how many there are.

        Those that come are taken in only where there is room. It ends for each block that is used, and for what comes
        once a prompt has these tools again.
        """
        aged = self._tool_sets.end(tools)
        for block in aged:
            block.aged = True
            self._retained.release(block)
            self._needed.clear(block)
            self._settle(block)
        self._end_retentions(self._clock())
        return len(aged)

    def _new_retained(self, capacity_bytes: int) -> Retained:
        quota = float("inf") if self._settings.quota_gib is None else self._settings.quota_gib * GIB
        return Retained(self._settings.retained_share_max * capacity_bytes, quota)

    def _at(self, key: BlockKey) -> TierBlock:
        block = self._forest.get(key)
        assert block is not None, f"block {key.hex()} is not in the tier"
        return block

    def _add(self, block: TierBlock, traits: BlockTraits, now: float) -> None:
        block.came_at = now - traits.age_s
        self._forest.add(block)
        self._tool_sets.add(block)
        self.used_bytes += block.size_bytes
        self.bytes_by_section[block.section] += block.size_bytes
        self._policy.came(block, now)
        self._set_deadline(block, block.came_at)
        if traits.retain_s > 0:
            self._retain(block, traits.retain_s, now)
        if traits.needed and not block.aged:
            self._needed.set(block, now + NEEDED_S)
        self._settle(block)
        if block.parent is not None:
            self._settle(block.parent)

    def _set_deadline(self, block: TierBlock, since: float) -> None:
        ttl_s = self._ttls[block.section]
        if ttl_s is not None:
            block.deadline = since + ttl_s
            if block not in self._deadlines:
                self._deadlines.set(block, block.deadline)

    def _retain(self, block: TierBlock, retain_s: float, now: float) -> None:
        self._retained.retain(block, now + min(retain_s, self._settings.retain_s_max))

    def _end_retentions(self, now: float) -> None:
        while (block := self._retained.next_end(now)) is not None:
            self._settle(block)
        while (block := self._needed.pop_due(now)) is not None:
            self._settle(block)

    def _settle(self, block: TierBlock) -> None:
        """Give a block the place that it should have now: in a queue if it is a leaf and not pinned, else none."""
        if block.children or block.pins:
            self._queues.take(block)
            return
        self._queues.put(block, retained=block in self._retained, needed=block in self._needed)
        if block not in self._deadlines and block.deadline < float("inf"):
            self._deadlines.set(block, block.deadline)

    def _make_room(self, wanted: int, now: float, newcomer: Newcomer | None) -> tuple[Refusal | None, list[Evicted]]:
        """Evict until so many bytes more are free, nothing may go, or what would go is worth more than the newcomer."""
        evicted: list[Evicted] = []
        if wanted <= 0:
            return None, evicted
        self._end_retentions(now)
        parent = self._forest.get(newcomer.block.parent_key) if newcomer and newcomer.block.parent_key else None
        if parent is not None:
            # What the newcomer follows must not go for it.
            parent.pins += 1
            self._settle(parent)
        refusal = None
        while wanted > 0:
            victim = self._victim(now, newcomer)
            if victim is None:
                refusal = Refusal.FULL
                break
            if newcomer is not None and not newcomer.outweighs(victim):
                refusal = Refusal.WORTH
                break
            evicted.append(self._evict(victim.block, victim.reason, now))
            wanted -= victim.block.size_bytes
        if parent is not None:
            parent.pins -= 1
            self._settle(parent)
        return refusal, evicted

    def _victim(self, now: float, newcomer: Newcomer | None) -> Victim | None:
        best = None
        for name, block in self._queues.firsts():
            size_bytes, budget = self.bytes_by_section[name.section], self._budgets[name.section]
            needed = name.needed and size_bytes <= budget
            if newcomer is not None and newcomer.block.section is name.section:
                size_bytes += newcomer.block.size_bytes
            worth = self._policy.worth(block, now)
            victim = Victim(name.retained, needed, not name.aged, size_bytes <= budget, worth, block)
            may_go = newcomer.may_replace(victim) if newcomer is not None else not (victim.retained or victim.needed)
            if may_go and (best is None or victim[:5] < best[:5]):
                best = victim
        return best

    def _evict(self, block: TierBlock, reason: EvictionReason, now: float) -> Evicted:
        self._drop(block, now)
        return Evicted(block.key, block.section, block.size_bytes, reason)

    def _drop(self, block: TierBlock, now: float) -> None:
        parent = block.parent
        self._queues.take(block)
        self._deadlines.clear(block)
        self._retained.release(block)
        self._needed.clear(block)
        self._forest.remove(block)
        self._tool_sets.remove(block)
        self.used_bytes -= block.size_bytes
        self.bytes_by_section[block.section] -= block.size_bytes
        self._policy.left(block, now)
        if parent is not None:
            self._settle(parent)

    def check_invariants(self) -> None:
        self._forest.check_invariants()
        self._queues.check_invariants()
        self._retained.check_invariants()
        self._tool_sets.check_invariants(set(self._forest))
        sizes = dict.fromkeys(SectionType, 0)
        for block in self._forest:
            sizes[block.section] += block.size_bytes
            assert (block in self._queues) == (not block.children and not block.pins)
            assert block in self._deadlines or block.deadline == float("inf") or block.deadline <= self._clock()
        assert sizes == self.bytes_by_section
        assert sum(sizes.values()) == self.used_bytes <= self.capacity_bytes
