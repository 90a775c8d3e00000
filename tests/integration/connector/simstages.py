"""The ranks of a simulated engine with pipeline parallelism: each stage has layers of its own, and its own pace.

    scheduled --send--> stage 0, which is always ahead --...--> last stage, which comes as late as can be

As in vLLM every rank gets every step, in order; a stage computes a step when the stage before it has, and a step's
output is that of all ranks. So the first stage may be some steps ahead: it has overwritten what the last one still has.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.distributed import parallel_state
from vllm.distributed.utils import get_pp_indices
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput

from tests.integration.connector.prefix_numbers import BLOCK_TOKENS
from tests.integration.connector.simranks import SHARD, SimExecutor, SimRank

MEET_S = 60.0


class StageRank(SimRank):
    """A rank that has the layers of one stage."""

    def __init__(self, config: VllmConfig, kv_config: KVCacheConfig, number: int, **options: Any) -> None:
        """number: the rank's own in the whole engine. kv_config: of all layers."""
        (group,) = kv_config.kv_cache_groups
        parallel = config.parallel_config
        stages, shards = parallel.pipeline_parallel_size, parallel.tensor_parallel_size
        self._first_layer, end = get_pp_indices(len(group.layer_names), number // shards, stages)
        self._layer_names = group.layer_names[self._first_layer : end]
        own = KVCacheGroupSpec(self._layer_names, group.kv_cache_spec)
        super().__init__(config, KVCacheConfig(kv_config.num_blocks, [], [own]), number, **options)
        self._shard = 0 if options["replicated"] else number % shards * SHARD  # stages differ by their layers

    def _make_memory(self, blocks: int) -> dict[str, torch.Tensor]:  # type: ignore[override]
        return {name: torch.zeros(blocks, BLOCK_TOKENS, 2, dtype=torch.int64) for name in self._layer_names}

    def _words(self, layer: int, number: int) -> tuple[int, int]:
        return super()._words(self._first_layer + layer, number)


class SimPipeline:
    """vLLM's group of the ranks of one pipeline, where each rank starts in a thread of its own."""

    def __init__(self, stages: int) -> None:
        self.world_size = stages
        self._own = threading.local()
        self._met = threading.Barrier(stages)
        self._said: dict[int, Any] = {}

    @property
    def rank_in_group(self) -> int:
        return int(self._own.stage)

    def enter(self, stage: int) -> None:
        """Be this stage, in the calling thread."""
        self._own.stage = stage

    def broadcast_object(self, said: Any, src: int) -> Any:
        if self.rank_in_group == src:
            self._said[src] = said
        self._met.wait(MEET_S)
        return self._said[src]


def start_stages(make: Callable[[int], SimRank], stages: int, shards: int) -> list[SimRank]:
    """Make all ranks, in order of their numbers. make: makes the rank of a number, and waits for its counterparts."""

    def start(stage: int, shard: int, pipeline: SimPipeline) -> SimRank:
        pipeline.enter(stage)
        return make(stage * shards + shard)

    columns = []
    for shard in range(shards):
        parallel_state._PP = pipeline = SimPipeline(stages)  # type: ignore[assignment]
        try:
            with ThreadPoolExecutor(stages) as pool:
                columns.append(list(pool.map(lambda stage: start(stage, shard, pipeline), range(stages))))  # noqa: B023
        finally:
            parallel_state._PP = None
    return [column[stage] for stage in range(stages) for column in columns]


class StageExecutor(SimExecutor):
    """Has each stage compute the steps at its own pace; see the module's docstring."""

    def __init__(self, config: Any, ranks: Sequence[SimRank], catch_up: Callable[[], None]) -> None:
        super().__init__(config, ranks, catch_up)
        self._shards = config.parallel_config.tensor_parallel_size
        self._to_do: list[deque[SchedulerOutput]] = [deque() for _ in ranks]
        self._done: list[deque[ModelRunnerOutput]] = [deque() for _ in ranks]

    def send(self, scheduler_output: SchedulerOutput) -> None:
        for number, waiting in enumerate(self._to_do):
            waiting.append(scheduler_output)
            if number < self._shards:
                self._compute(number)

    def execute_model(self, scheduler_output: SchedulerOutput, non_block: bool = False) -> Any:  # noqa: ARG002
        """Have all ranks come to the oldest step that is not done, and make one output of all, as vLLM does."""
        for number, done in enumerate(self._done):
            if not done:
                assert self._to_do[number][0] is scheduler_output
                self._compute(number)
        last_stage = len(self._ranks) - self._shards
        outputs = [done.popleft() for done in self._done]
        return self.kv_output_aggregator.aggregate(outputs, output_rank=last_stage)

    def _compute(self, number: int) -> None:
        output = self._to_do[number].popleft()
        self._done[number].append(self._call(self._ranks[number], "execute_model", (output,), {}))
