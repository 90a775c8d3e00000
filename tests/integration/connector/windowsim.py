"""The simulated engine with layers of two kinds, in three KV cache groups under vLLM's hybrid KV cache manager.

    group 0  sliding window   layers 2, 3
    group 1  full attention   layers 0, 1
    group 2  sliding window   layer 4

A block of any group lies in the rows of the two tensors that all groups share; one of group 2 leaves the second of
them unused. What a layer's KV must be differs from layer to layer, so that a block of another group is seen like a
stale one. As attention does, a step reads in a group with a window what its first token sees, and no more.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec, SlidingWindowSpec

from ghostcacher_connector.pull.cache_groups import block_of
from tests.integration.connector.enginesim import SimEngine
from tests.integration.connector.prefix_numbers import BLOCK_TOKENS, RunnerRequest
from tests.integration.connector.simcaches import SimCache
from tests.integration.connector.simranks import SimRank

WINDOW = 40
"""Tokens that a token of a sliding layer sees, itself included: no multiple of a block's."""
WINDOW_BLOCKS = 3
"""Blocks that hold the 39 tokens before a block's boundary."""
FULL_GROUP = 1
LAYERS = ((2, 3), (0, 1), (4,))
KEEP_ALL: dict[str, Any] = {"prefix_cache_retention_interval": None}
"""Has vLLM keep every window. By default it keeps those at the ends of prompts, and where it saw prompts part."""
ROW_BYTES = BLOCK_TOKENS * 2 * 8
"""Bytes of a block in one tensor."""


class Published(NamedTuple):
    """What a reader would find in the index."""

    slot: int
    generation: int
    group: int
    number: int
    """Of the block's last token."""


class WindowRank(SimRank):
    """Keeps a block table for each group."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._tables: dict[str, list[list[int]]] = {}
        super().__init__(*args, **options)

    @staticmethod
    def _make_memory(blocks: int) -> dict[str, torch.Tensor]:
        rows = [torch.zeros(blocks, BLOCK_TOKENS, 2, dtype=torch.int64) for _ in range(2)]
        return {f"layer.{layer}": rows[place] for layers in LAYERS for place, layer in enumerate(layers)}

    def _update_tables(self, output: SchedulerOutput) -> None:
        super()._update_tables(output)
        for request_id in output.finished_req_ids:
            self._tables.pop(request_id, None)
        for new in output.scheduled_new_reqs:
            self._tables[new.req_id] = [list(blocks) for blocks in new.block_ids]
        cached = output.scheduled_cached_reqs
        for request_id, fresh in zip(cached.req_ids, cached.new_block_ids, strict=True):
            if request_id in cached.resumed_req_ids:
                assert fresh is not None
                self._tables[request_id] = [list(blocks) for blocks in fresh]
            elif fresh is not None:
                for table, blocks in zip(self._tables[request_id], fresh, strict=True):
                    table.extend(blocks)

    def _store(self, request_id: str, state: RunnerRequest, position: int, number: int) -> None:  # noqa: ARG002
        for group, table in enumerate(self._tables[request_id]):
            for layer in LAYERS[group]:
                place = self.memory[f"layer.{layer}"][table[position // BLOCK_TOKENS], position % BLOCK_TOKENS]
                place[0], place[1] = self._words(layer, number)

    def _check(self, request_id: str, state: RunnerRequest, computed: int) -> bool:
        for group, table in enumerate(self._tables[request_id]):
            first = 0 if group == FULL_GROUP else max(0, computed - WINDOW + 1)
            for position in range(first, computed):
                block = table[position // BLOCK_TOKENS]
                if not self.group_holds(group, block, position % BLOCK_TOKENS, state.number(position)):
                    self.wrong.append(f"{self._name} {request_id}: group {group}, position {position}, slot {block}")
                    return False
        return True

    def group_holds(self, group: int, block: int, offset: int, number: int) -> bool:
        """Say whether a place holds a number, on every layer of a group."""
        return all(
            tuple(self.memory[f"layer.{layer}"][block, offset].tolist()) == self._words(layer, number)
            for layer in LAYERS[group]
        )


class WindowEngine(SimEngine):
    """See the module's docstring."""

    rank_class = WindowRank

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"blocks": 64, **options})

    def _make_kv_config(self, cache: SimCache, blocks: int) -> KVCacheConfig:  # noqa: ARG002 - it has its own kind
        shape: dict[str, Any] = {"block_size": BLOCK_TOKENS, "num_kv_heads": 1, "head_size": 2, "dtype": torch.float32}
        sliding = SlidingWindowSpec(**shape, sliding_window=WINDOW)
        groups = [
            KVCacheGroupSpec([f"layer.{layer}" for layer in layers], spec)
            for layers, spec in zip(LAYERS, (sliding, FullAttentionSpec(**shape), sliding), strict=True)
        ]
        kept = self.config.cache_config.prefix_cache_retention_interval
        return KVCacheConfig(blocks, [], groups, prefix_cache_retention_interval=kept)

    def watch_entries(self) -> list[Published]:
        """Return a growing list of all that is published."""
        entries: list[Published] = []
        publisher = self.connector._scheduler._publisher
        sink, number_of = publisher._sink, self._number_of

        class Spy:
            def publish(self, slot: int, key: bytes, root: bytes, generation: int) -> None:
                group = key[-1] if len(key) % 2 else FULL_GROUP
                entries.append(Published(slot, generation, group, number_of(block_of(key))))
                sink.publish(slot, key, root, generation)

            def withdraw(self, slot: int) -> None:
                sink.withdraw(slot)

        publisher._sink = Spy()
        return entries

    def false_hits(self) -> list[tuple[str, int, int]]:
        """Return (request, group, block) of what vLLM would give to who has a preempted request's tokens, wrongly.

        To be asked when no step is on its way.
        """
        pool, found = self.scheduler.kv_cache_manager.block_pool, []
        for name, request in self.requests.items():
            state = RunnerRequest(list(request.all_token_ids), [])
            for index, block_hash in enumerate(request.block_hashes if request.num_preemptions else ()):
                number = state.number((index + 1) * BLOCK_TOKENS - 1)
                for group in range(len(LAYERS)):
                    cached = pool.get_cached_block(block_hash, [group])
                    if cached and not self.rank.group_holds(group, cached[0].block_id, BLOCK_TOKENS - 1, number):
                        found.append((name, group, index))
        return found

    def false_entries(self, entries: list[Published]) -> list[Published]:
        """Return the entries that a reader would accept now and whose slot holds something else, on any rank."""
        return [
            entry
            for entry in entries
            for rank in self.ranks
            if rank.connector._worker._table.generation(entry.slot) == entry.generation
            and not rank.group_holds(entry.group, entry.slot, BLOCK_TOKENS - 1, entry.number)
        ]
