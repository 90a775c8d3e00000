"""The ranks of a simulated engine as vLLM's engine core reaches them: by vLLM's executor, each with a model of weights.

What a forward pass writes depends on the model's weight, so that KV of other weights is seen at once, and on the rank,
where ranks hold shards.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.distributed.kv_transfer import kv_transfer_state
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorRole
from vllm.lora.request import LoRARequest
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.executor.abstract import Executor
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput
from vllm.v1.serial_utils import run_method

from ghostcacher_connector.engines.vllm.connector import GhostCacherConnector
from ghostcacher_connector.engines.vllm.nesting import own_connector
from tests.integration.connector.prefix_numbers import BLOCK_TOKENS, VOCABULARY, RunnerRequest
from tests.integration.connector.simadapters import SimAdapters
from tests.integration.connector.simcaches import LAYERS

SHARD = 1 << 61
"""What a rank's number times this is added to what the first rank holds; no number is that large."""


class SimModel(torch.nn.Module):
    """A model of one weight, a whole number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.int64), requires_grad=False)
        self.lora_manager = SimAdapters()


class SimRank:
    """One rank: its KV memory, its half of the connector, and the forward pass.

    A method that is called on every rank sees it in place of vLLM's worker. Its side of a step follows vLLM's model
    runner: block tables are kept from the scheduler's outputs alone, and the connector's calls come in its order.
    """

    def __init__(
        self, config: VllmConfig, kv_config: KVCacheConfig, number: int, *, replicated: bool, name: str
    ) -> None:
        """number: the rank's own. replicated: it holds the same as the other ranks. name: for descriptions."""
        self.model = SimModel()
        self.wrong: list[str] = []
        self.after_forward: Callable[[], None] | None = None
        self.memory = self._make_memory(kv_config.num_blocks)
        own = copy.copy(config)
        own.parallel_config = copy.copy(config.parallel_config)
        own.parallel_config.rank = number
        self.outer = self._make_connector(own, kv_config)
        self.connector: GhostCacherConnector = own_connector(self.outer)
        self.outer.register_kv_caches(self.memory)
        self._name = name
        self._shard = 0 if replicated else number * SHARD
        self._running: dict[str, RunnerRequest] = {}

    def _make_connector(self, config: VllmConfig, kv_config: KVCacheConfig) -> KVConnectorBase_V1:
        """Return what vLLM calls on this rank: our connector, or one that it is a child of."""
        return GhostCacherConnector(config, KVConnectorRole.WORKER, kv_config)

    @staticmethod
    def _make_memory(blocks: int) -> dict[str, torch.Tensor]:
        return {f"layer.{i}": torch.zeros(blocks, BLOCK_TOKENS, 2, dtype=torch.int64) for i in range(LAYERS)}

    # -- what methods that are called on every rank do ---------------------------------------------------------------

    @property
    def weight(self) -> int:
        return int(self.model.weight)

    def get_model(self) -> SimModel:
        return self.model

    def weight_with(self, lora: LoRARequest | None) -> Callable[[], int]:
        """Return what tells with what a step computes a request: the weight, and the adapter that vLLM has for it."""
        if lora is None:
            return lambda: self.weight
        return lambda: self.weight + self.model.lora_manager.weight(lora.lora_int_id)

    def add_lora(self, lora: LoRARequest) -> bool:
        return self.model.lora_manager.add(lora)

    def remove_lora(self, number: int) -> bool:
        return self.model.lora_manager.remove(number)

    def update_weights(self, weight: int) -> None:
        """Change the weight, as a worker extension of an RL stack does."""
        self.model.weight.fill_(weight)

    def ping(self) -> str:
        """Do nothing that concerns the weights; nobody can know that by the name."""
        return "pong"

    # -- steps -------------------------------------------------------------------------------------------------------

    def execute_model(self, output: SchedulerOutput) -> ModelRunnerOutput:
        metadata = output.kv_connector_metadata
        assert metadata is not None
        self.outer.handle_preemptions(metadata)
        self._update_tables(output)
        for request_id in output.num_scheduled_tokens:
            if (lora := self._running[request_id].lora) is not None:
                self.add_lora(lora)
        self.outer.bind_connector_metadata(metadata)
        for layer in self.memory:
            self.outer.wait_for_layer_load(layer)
        sampled = {request_id: self._forward(request_id, output) for request_id in output.num_scheduled_tokens}
        if self.after_forward is not None:
            self.after_forward()
        self.outer.start_load_kv(None)  # type: ignore[arg-type]
        self.outer.wait_for_save()
        results = self.outer.get_transfer_results(output.finished_req_ids)
        connector_output = KVConnectorOutput(
            finished_sending=results.finished_sending,
            finished_recving=results.finished_recving,
            failed_recving=results.failed_recving,
            invalid_block_ids=self.outer.get_block_ids_with_load_errors(),
            kv_connector_worker_meta=self.outer.build_connector_worker_meta(),
            kv_connector_stats=self.outer.get_kv_connector_stats(),
        )
        self.outer.clear_connector_metadata()
        ids = list(sampled)
        return ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={request_id: i for i, request_id in enumerate(ids)},
            sampled_token_ids=[sampled[request_id] for request_id in ids],
            kv_connector_output=connector_output,
        )

    def tokens_of(self, request_id: str) -> list[int] | None:
        """Return what the runner knows of a request's tokens, None when it has ended."""
        state = self._running.get(request_id)
        return None if state is None else list(state.tokens)

    def _update_tables(self, output: SchedulerOutput) -> None:
        for request_id in output.finished_req_ids:
            self._running.pop(request_id, None)
        for new in output.scheduled_new_reqs:
            tokens = list(new.prefill_token_ids or new.prompt_token_ids or [])
            lora = new.lora_request
            self._running[new.req_id] = RunnerRequest(tokens, list(new.block_ids[0]), self.weight_with(lora), lora)
        cached = output.scheduled_cached_reqs
        for i, request_id in enumerate(cached.req_ids):
            state, fresh = self._running[request_id], cached.new_block_ids[i]
            if request_id in cached.resumed_req_ids:
                assert fresh is not None
                state.blocks, state.numbers = list(fresh[0]), []
                if (all_tokens := cached.all_token_ids.get(request_id)) is not None:
                    state.tokens = list(all_tokens)
            elif fresh is not None:
                state.blocks.extend(fresh[0])

    def _forward(self, request_id: str, output: SchedulerOutput) -> list[int]:
        """Check the KV that attention would read, write the KV of the step's tokens, sample when the prompt is done.

        Draft tokens are written like others, and stay in memory when they turn out to be wrong.
        """
        state, count = self._running[request_id], output.num_scheduled_tokens[request_id]
        drafts = output.scheduled_spec_decode_tokens.get(request_id, [])
        computed = self._computed(request_id, output)
        # They are what they are with the weight of this step, whenever somebody looks at them.
        state.number(min(computed + count, len(state.tokens)) - 1)
        drafted = RunnerRequest([*state.tokens, *drafts], state.blocks, state.weight, numbers=list(state.numbers))
        error = 0 if self._check(request_id, state, computed) else 1
        for position in range(computed, computed + count):
            self._store(request_id, state, position, drafted.number(position) ^ error)
        known = len(state.tokens)
        if computed + count < known:
            return []
        for position in range(known - 1, known + len(drafts)):
            state.tokens.append(drafted.number(position) % VOCABULARY)
            if drafted.tokens[position + 1 : position + 2] != state.tokens[-1:]:
                break
        return state.tokens[known:]

    @staticmethod
    def _computed(request_id: str, output: SchedulerOutput) -> int:
        for new in output.scheduled_new_reqs:
            if new.req_id == request_id:
                return int(new.num_computed_tokens)
        cached = output.scheduled_cached_reqs
        return int(cached.num_computed_tokens[cached.req_ids.index(request_id)])

    def _words(self, layer: int, number: int) -> tuple[int, int]:
        """Return what this rank holds in a layer of a token with this number."""
        return number + self._shard, number ^ (layer + 1)

    def _store(self, request_id: str, state: RunnerRequest, position: int, number: int) -> None:  # noqa: ARG002
        """Write a token's KV where the request's block table says. request_id: for ranks with several tables."""
        block, offset = state.blocks[position // BLOCK_TOKENS], position % BLOCK_TOKENS
        for layer, memory in enumerate(self.memory.values()):
            memory[block, offset, 0], memory[block, offset, 1] = self._words(layer, number)

    def _check(self, request_id: str, state: RunnerRequest, computed: int) -> bool:
        for position in range(computed):
            block, offset, expected = (
                state.blocks[position // BLOCK_TOKENS],
                position % BLOCK_TOKENS,
                state.number(position),
            )
            if not self.holds(block, offset, expected):
                self.wrong.append(f"{self._name} {request_id}: position {position}, slot {block}")
                return False
        return True

    def holds(self, block: int, offset: int, number: int) -> bool:
        """Say whether a place holds a number, on every layer."""
        return all(
            tuple(memory[block, offset].tolist()) == self._words(layer, number)
            for layer, memory in enumerate(self.memory.values())
        )


class SimExecutor(Executor):
    """Calls ranks in this very process, each call behind the steps that were scheduled before it."""

    def __init__(self, config: Any, ranks: Sequence[SimRank], catch_up: Callable[[], None]) -> None:
        """catch_up: has the ranks carry out the steps that are on their way to them."""
        self._ranks = ranks
        self._catch_up = catch_up
        super().__init__(config)

    def _init_executor(self) -> None:
        """The ranks are there."""

    def send(self, scheduler_output: SchedulerOutput) -> None:
        """Have the ranks know of a step that has been scheduled: they carry it out when its output is asked for."""

    def execute_model(self, scheduler_output: SchedulerOutput, non_block: bool = False) -> Any:  # noqa: ARG002
        """Have every rank carry out a step, and make one output of all, as vLLM's executor of several ranks does."""
        return self.kv_output_aggregator.aggregate(self.collective_rpc("execute_model", args=(scheduler_output,)))

    def collective_rpc(  # type: ignore[override]
        self, method: Any, _timeout: float | None = None, args: tuple[Any, ...] = (), kwargs: Any = None, **_: Any
    ) -> list[Any]:
        if method != "execute_model":
            self._catch_up()
        return [self._call(rank, method, args, kwargs or {}) for rank in self._ranks]

    def _call(self, rank: SimRank, method: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # A process has one connector of a rank; here are several ranks in one process.
        kv_transfer_state._KV_CONNECTOR_AGENT = rank.outer
        try:
            return run_method(rank, method, args, kwargs)
        finally:
            kv_transfer_state._KV_CONNECTOR_AGENT = None

    def check_health(self) -> None:
        """They are healthy."""
