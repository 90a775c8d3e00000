"""Publishes blocks once they are computed on every rank, and never before.

vLLM gives a block its hash when it *schedules* the tokens, so a hash proves nothing. What proves it is the step's
output: when vLLM processes it, every rank has run the forward pass, and
``num_computed_tokens - num_in_flight_tokens`` counts the tokens whose KV is final (steps that are still in flight under
async scheduling are left out, and so are rejected drafts). Only steps in which a request can have filled a block are
looked at, so that a plain decode step costs next to nothing.

Driven by the scheduler's thread alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from ghostcacher_connector.core.index.base import BlockSink
from ghostcacher_connector.engines.common.pull_state import Phase
from ghostcacher_connector.engines.vllm.scheduling.requests import Tracked, shareable
from ghostcacher_connector.engines.vllm.scheduling.slot_watch import SlotWatch

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.core.sched.output import SchedulerOutput

HASH_GROUP_BYTES = 4
"""vLLM appends the KV cache group's number to the hash that it keeps with a block."""

STEPS_IN_FLIGHT_MAX = 1024
"""Far above vLLM's own limit of concurrent batches; a longer queue means that outputs no longer arrive."""


class BlockPublisher:
    """Follows each request's computed tokens and offers its full blocks to the index."""

    def __init__(
        self,
        manager: KVCacheManager,
        watch: SlotWatch,
        sink: BlockSink,
        block_tokens: int,
        on_published: Callable[[Tracked], None],
    ) -> None:
        """on_published: called with a request whenever its computed blocks have been published."""
        self._manager = manager
        self._watch = watch
        self._sink = sink
        self._block_tokens = block_tokens
        self._on_published = on_published
        self._steps: deque[tuple[int, list[str]]] = deque(maxlen=STEPS_IN_FLIGHT_MAX)

    def note_step(self, step: int, output: SchedulerOutput) -> None:
        """Remember the requests whose computed tokens may reach the end of a block in this step."""
        tokens, scheduled = self._block_tokens, output.num_scheduled_tokens
        filling = [data.req_id for data in output.scheduled_new_reqs]
        cached = output.scheduled_cached_reqs
        for request_id, computed in zip(cached.req_ids, cached.num_computed_tokens, strict=True):
            if computed // tokens != (computed + scheduled.get(request_id, 0)) // tokens:
                filling.append(request_id)
        filling.extend(cached.resumed_req_ids)
        if filling:
            self._steps.append((step, filling))

    def confirm(self, step: int, tracked: dict[str, Tracked]) -> None:
        """Publish what the steps up to this one have computed; every rank has reported them done."""
        while self._steps and self._steps[0][0] <= step:
            for request_id in self._steps.popleft()[1]:
                if (request := tracked.get(request_id)) is not None:
                    self.publish_computed(request)

    def publish_computed(self, tracked: Tracked) -> None:
        """Publish the full blocks of one request whose KV is final and that are not published yet."""
        self._publish(tracked)
        self._on_published(tracked)

    def _publish(self, tracked: Tracked) -> None:
        request = tracked.request
        if tracked.phase is Phase.LOADING or not shareable(request):
            return
        computed = max(0, request.num_computed_tokens - request.num_in_flight_tokens)
        if computed > tracked.given and not tracked.own_step:
            # The blocks that it was given are final now, too. Most are published, but not those that a request left
            # behind which was aborted in the middle of a step.
            tracked.own_step, tracked.published = True, 0
        hashes = request.block_hashes
        end = min(computed // self._block_tokens, len(hashes))
        if end <= tracked.published:
            return
        blocks = self._manager.get_blocks(request.request_id).blocks[0]
        for index in range(tracked.published, min(end, len(blocks))):
            block = blocks[index]
            if block.is_null or self._watch.is_published(block.block_id):
                continue
            # The pool must agree that this slot holds this hash: it does not after a reset of the prefix cache.
            if block.block_hash is None or block.block_hash[:-HASH_GROUP_BYTES] != hashes[index]:
                continue
            generation = self._watch.publish(block)
            self._sink.publish(block.block_id, hashes[index], hashes[0], generation)
        tracked.published = end
