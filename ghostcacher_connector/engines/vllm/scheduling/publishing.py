"""Publishes blocks by evidence: a completed step filled the slot, on every rank, on top of blocks that are proven, too.

vLLM gives a block its hash when it *schedules* the tokens, so neither a hash nor a hit in vLLM's prefix cache proves
anything: a request that is preempted in the midst of `schedule()` leaves hashed blocks behind that no step computes
(engine_patches/vllm/README.md). Whatever is computed on top of such a block is as wrong as the block.

1. `note_step`: a step is scheduled. For each request that fills blocks in it, the slots are watched, and remembered
   with their generations. vLLM's order is kept: a request may be given blocks that one before it fills in that step.
2. `confirm`: every rank has carried the step out. Request by request, in that order, the blocks that it filled are
   marked as computed and published, up to the first one that stands on a block which is not marked.

Nothing here looks at what becomes of a request between the two: its slots were watched while it held them, and a slot
that has been handed out since has another generation. So a step also proves the blocks of a request that was aborted
or preempted while the step was on its way.

A draft token proves nothing: its KV is that of a token which the request may not get. Where the drafts of a step reach
into another block, the request's next step says which of them were right, since it begins behind them.

Only steps in which a request begins or fills a block are looked at, so that a plain decode step costs next to nothing.

Driven by the scheduler's thread alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from vllm.v1.core.kv_cache_utils import make_block_hash_with_group_id

from ghostcacher_connector.core.index.base import BlockSink
from ghostcacher_connector.engines.vllm.scheduling.requests import Evidence, Tracked, candidate_of, shareable
from ghostcacher_connector.engines.vllm.scheduling.slot_watch import SlotWatch
from ghostcacher_connector.publish.block_notes import BlockNotes, Note
from ghostcacher_connector.pull.cache_groups import ONE_GROUP, CacheGroups
from ghostcacher_connector.tiers.host_tier import HostTier

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.core.kv_cache_utils import KVCacheBlock
    from vllm.v1.core.sched.output import SchedulerOutput

COPIES_MAX = 8
"""More copies of one block than these are not looked for. Requests that compute the same side by side make some."""

STEPS_IN_FLIGHT_MAX = 1024
"""Far above vLLM's own limit of concurrent batches; a longer queue means that outputs no longer arrive."""


class Held(NamedTuple):
    """A block of a request in one KV cache group."""

    group: int
    """The group's number."""
    block: KVCacheBlock


class Fill(NamedTuple):
    """Blocks of one request that one step fills, after those that the request was given and nobody has proven yet."""

    tracked: Tracked
    evidence: Evidence
    first: int
    """Index of the first of these blocks in the request's tables."""
    blocks: Sequence[Sequence[Held]]
    """What the request holds of each of them, in every KV cache group."""
    generations: Sequence[Sequence[int]]
    """The generations of their slots, likewise."""


class BlockPublisher:
    """Follows what each step fills and offers proven blocks to the index."""

    def __init__(
        self,
        manager: KVCacheManager,
        watch: SlotWatch,
        sink: BlockSink,
        block_tokens: int,
        on_published: Callable[[Tracked], None],
        *,
        notes: BlockNotes,
        groups: CacheGroups = ONE_GROUP,
        tier: HostTier | None = None,
        mixes_adapters_wrong: bool = False,
        trails: bool = False,
    ) -> None:
        """on_published: called with a request whenever a step has proven what it can of its blocks.

        notes: of what is published. groups: the engine's KV cache groups. tier: told of each block that is published,
        if there is one.
        mixes_adapters_wrong: the engine computes requests without an adapter wrong in a step together with one.
        trails: a drafter writes rows into a step's blocks when the step has been reported already: a step is proven
        when a later one has computed something.
        """
        self._manager = manager
        self._watch = watch
        self._sink = sink
        self._block_tokens = block_tokens
        self._on_published = on_published
        self._notes, self._groups, self._tier = notes, groups, tier
        self._mixes_adapters_wrong = mixes_adapters_wrong
        self._steps: deque[tuple[int, list[Fill]]] = deque(maxlen=STEPS_IN_FLIGHT_MAX)
        self._drafted: set[str] = set()
        self._trails = trails
        self._computing: deque[int] = deque(maxlen=STEPS_IN_FLIGHT_MAX)
        self._finished = 0

    def note_step(self, step: int, output: SchedulerOutput, tracked: Mapping[str, Tracked]) -> None:
        """Remember what the requests of a step that has just been scheduled fill in it."""
        if self._mixes_adapters_wrong:
            _taint_mixed(output, tracked)
        if self._trails and output.total_num_scheduled_tokens:
            self._computing.append(step)
        fills = []
        for request_id, (start, end) in self._filling(output, tracked).items():
            request = tracked.get(request_id)
            if request is not None and not request.evidence.tainted and not request.request.resumable:
                fills.append(self._fill(request, start, end))
        if fills:
            self._steps.append((step, fills))
        for request_id in output.preempted_req_ids or ():
            if (request := tracked.get(request_id)) is not None and not request.evidence.tainted:
                self._drop_uncomputed(request)

    def confirm(self, step: int) -> None:
        """Mark and publish what the steps up to this one have computed; every rank has reported them done."""
        if self._trails:
            step = self._finished_by(step)
        while self._steps and self._steps[0][0] <= step:
            for fill in self._steps.popleft()[1]:
                self._prove(fill)
                self._on_published(fill.tracked)

    def _finished_by(self, step: int) -> int:
        """Return the last step whose drafter has written all its rows, too, when a step's output is there.

        That is the one before the last that computed tokens: a device carries out one step after the other. A step
        without tokens launches nothing, and its output waits for nothing.
        """
        while self._computing and self._computing[0] <= step:
            self._finished = self._computing.popleft() - 1
        return self._finished

    def pulled(self, tracked: Tracked, first: int, count: int) -> None:
        """Mark blocks ``[first, first + count)`` of a waiting request, whose seals were right on every rank."""
        if tracked.evidence.tainted:
            return
        if (computed_by := tracked.computed_by) is None:
            return
        for held in self._held(tracked, first, first + count):
            for _, block in held:
                self._watch.mark(block.block_id, self._watch.watch(block), computed_by)

    def forget_all(self, tracked: Iterable[Tracked]) -> None:
        """Withdraw everything; what has been computed so far, or is being computed now, is never published again.

        tracked: all requests that have not ended. What they compute is not published until they are matched anew.
        The new generations travel with the next step.
        """
        self._steps.clear()
        for request in tracked:
            request.evidence.tainted = True
        self._watch.forget_all()

    def forget(self, tracked: Collection[Tracked]) -> None:
        """Have nothing that these requests compute, or have in flight, published until they are matched anew."""
        for request in tracked:
            request.evidence.tainted = True
        for _, fills in self._steps:
            fills[:] = [fill for fill in fills if not fill.evidence.tainted]

    def _filling(self, output: SchedulerOutput, tracked: Mapping[str, Tracked]) -> dict[str, tuple[int, int]]:
        """Return the tokens ``[start, end)`` of each request that begins in this step, or fills a block; no drafts.

        What the drafts of its last step reached into may have been filled by them: it is returned, too.
        """
        tokens, cached, known = self._block_tokens, output.scheduled_cached_reqs, _known_tokens(output)
        resumed, looked_at = cached.resumed_req_ids, cached.resumed_req_ids | self._drafted
        spans = {
            request_id: (start, start + known[request_id])
            for request_id, start in zip(cached.req_ids, cached.num_computed_tokens, strict=True)
            if start // tokens != (start + known[request_id]) // tokens or request_id in looked_at
        }
        if self._drafted or known is not output.num_scheduled_tokens:
            self._note_drafts(output, known, tracked)
        if not output.scheduled_new_reqs and not resumed:
            return spans
        for data in output.scheduled_new_reqs:
            spans[data.req_id] = data.num_computed_tokens, data.num_computed_tokens + known[data.req_id]
        return {request_id: spans[request_id] for request_id in known if request_id in spans}

    def _note_drafts(self, output: SchedulerOutput, known: Mapping[str, int], tracked: Mapping[str, Tracked]) -> None:
        """Remember which requests' drafts reach into another block; of the others that were, those that still wait."""
        tokens, cached, scheduled = self._block_tokens, output.scheduled_cached_reqs, output.num_scheduled_tokens
        self._drafted = {name for name in self._drafted if name in tracked and name not in scheduled}
        for name, start in zip(cached.req_ids, cached.num_computed_tokens, strict=True):
            if (start + known[name]) // tokens != (start + scheduled[name]) // tokens:
                self._drafted.add(name)

    def _fill(self, tracked: Tracked, start: int, end: int) -> Fill:
        """Watch the blocks that a request has filled when its tokens ``[start, end)`` are computed."""
        evidence = tracked.evidence
        if evidence.given is None:
            evidence.given = -(-start // self._block_tokens)
            self._accept_given(tracked, self._held(tracked, 0, evidence.given))
            first = evidence.sound
        else:
            first = min(start // self._block_tokens, evidence.filled)
        evidence.filled = max(first, end // self._block_tokens)
        blocks = self._held(tracked, first, evidence.filled)
        generations = [[self._watch.watch(block) for _, block in held] for held in blocks]
        return Fill(tracked, evidence, first, blocks, generations)

    def _accept_given(self, tracked: Tracked, given: Sequence[Sequence[Held]]) -> None:
        """Count the leading blocks that are marked by now; the steps that fill the rest may still be in flight.

        A block that lies before a group's window counts without being marked there: nothing that the request computes
        reads it, and it holds no slot of that group.
        """
        if (computed_by := tracked.computed_by) is None:
            return
        for index, held in enumerate(given):
            if not all(self._watch.is_computed(block.block_id, computed_by) for _, block in held):
                return
            tracked.evidence.sound = index + 1
            self._publish(tracked, index, held)

    def _prove(self, fill: Fill) -> None:
        """Mark what a step has filled, as far as all that comes before it is marked."""
        evidence, computed_by = fill.evidence, fill.tracked.computed_by
        assert evidence.given is not None
        if computed_by is None:
            return
        end = fill.tracked.shared_end
        for index, (held, generations) in enumerate(zip(fill.blocks, fill.generations, strict=True), fill.first):
            if index != evidence.sound or index == end:
                return
            slots = [block.block_id for _, block in held]
            if index < evidence.given and not all(self._watch.is_computed(slot, computed_by) for slot in slots):
                return
            pairs = zip(slots, generations, strict=True)
            marked = [self._watch.mark(slot, generation, computed_by) for slot, generation in pairs]
            if not all(marked):
                return
            evidence.sound = index + 1
            self._publish(fill.tracked, index, held)

    def _drop_uncomputed(self, tracked: Tracked) -> None:
        """Take out of vLLM's prefix cache what a preempted request has left there hashed, and no step fills.

        At worst vLLM computes again what it had: a hash that is taken out is a miss.
        """
        pool = self._manager.block_pool
        for block_hash in tracked.request.block_hashes[tracked.evidence.sound :]:
            for group in self._groups.numbers:
                for _ in range(COPIES_MAX):
                    cached = pool.get_cached_block(block_hash, [group])
                    if cached is None or self._watch.is_watched(cached[0].block_id):
                        break
                    self._manager.evict_blocks({cached[0].block_id})

    def _publish(self, tracked: Tracked, index: int, held: Sequence[Held]) -> None:
        """Publish marked blocks, the index-th of a request in its groups, if their hash means the same elsewhere."""
        if not shareable(tracked) or index >= len(tracked.blocks):
            return
        for group, block in held:
            # The pool must agree that the slot holds this hash: it does not after a reset of the prefix cache.
            hashed = make_block_hash_with_group_id(tracked.request.block_hashes[index], group)
            if block.block_hash == hashed and not self._watch.is_published(block.block_id):
                self._publish_one(tracked, index, group, block)

    def _publish_one(self, tracked: Tracked, index: int, group: int, block: KVCacheBlock) -> None:
        hashes = tracked.blocks
        generation, parent = self._watch.publish(block.block_id), hashes[index - 1] if index else None
        sections = tracked.sections
        self._notes.put(hashes[index], Note(parent, sections.section_of(index), sections.session_of(index)))
        if self._tier is not None:
            self._tier.engine_holds(
                block.block_id, candidate_of(tracked, index, self._block_tokens, self._tier.block_bytes), generation
            )
        self._sink.publish(block.block_id, self._groups.key_of(hashes[index], group), hashes[0], generation)

    def _held(self, tracked: Tracked, first: int, end: int) -> Sequence[Sequence[Held]]:
        """Return what a request holds of its blocks ``[first, end)``, of each in every KV cache group.

        Where a group's window has moved on, vLLM has put a null block in the place of one that it may have given away.
        """
        tables = self._manager.get_blocks(tracked.request_id).blocks
        numbers = self._groups.numbers
        rows = zip(*(tables[group][first:end] for group in numbers), strict=False)
        return [
            [Held(group, block) for group, block in zip(numbers, row, strict=True) if not block.is_null] for row in rows
        ]


def _known_tokens(output: SchedulerOutput) -> Mapping[str, int]:
    """Return how many tokens of each request a step computes, without drafts: in vLLM's order."""
    count: Mapping[str, int] = output.num_scheduled_tokens
    drafts = output.scheduled_spec_decode_tokens
    return {name: number - len(drafts.get(name, ())) for name, number in count.items()} if drafts else count


def _taint_mixed(output: SchedulerOutput, tracked: Mapping[str, Tracked]) -> None:
    """Taint the requests without an adapter in a step that also computes one with an adapter."""
    requests = [tracked[request_id] for request_id in output.num_scheduled_tokens if request_id in tracked]
    plain = [request for request in requests if request.request.lora_request is None]
    if len(plain) < len(requests):
        for request in plain:
            request.evidence.tainted = True
