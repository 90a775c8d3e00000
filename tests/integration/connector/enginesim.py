"""A vLLM engine without a model: real scheduler, real connector, real memory and NIXL; only the forward pass is ours.

The forward pass writes, for each token, a number that identifies the token's whole prefix, and first checks that every
earlier token of the request has the number that it must have: what attention would have read. So a torn, stale, late
or misplaced block is seen at the first step that would have used it, thousands of steps a minute. A step that has read
something wrong writes something wrong, as a model would.

The forward pass is in simranks.py, the kinds of KV cache in simcaches.py, pipeline stages in simstages.py. `in_flight`
> 1 runs steps ahead of their outputs, as async scheduling does; with stages, as many as vLLM does. With speculative
decoding drafts are proposed of which some are right.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

from vllm.config import KVTransferConfig, VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine.core import EngineCore
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from ghostcacher_connector.engines.vllm.nesting import CONNECTOR, own_connector
from ghostcacher_connector.metrics import Delta, merge
from ghostcacher_connector.metrics.catalog import SEPARATOR
from tests.integration.connector.prefix_numbers import BLOCK_TOKENS, VOCABULARY, RunnerRequest, expected_output
from tests.integration.connector.simcaches import CACHES, LAYERS, SimCache, kv_config_of
from tests.integration.connector.simranks import SimExecutor, SimRank
from tests.integration.connector.simstages import StageExecutor, StageRank, start_stages


def make_model_dir(root: Path) -> Path:
    """Write the configuration of a model that is never loaded."""
    root.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 64,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 128,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 2048,
        "torch_dtype": "float32",
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
    }
    (root / "config.json").write_text(json.dumps(config))
    (root / "pytorch_model.bin").write_bytes(b"never loaded")
    return root


class SimEngine:
    """One engine; see the module's docstring."""

    rank_class = SimRank

    def __init__(
        self,
        name: str,
        model: Path,
        settings: dict[str, Any],
        *,
        blocks: int = 32,
        in_flight: int = 1,
        role: str = "kv_both",
        step_tokens: int = 64,
        cache: str = "full",
        ranks: int = 1,
        stages: int = 1,
        adapt: Callable[[VllmConfig], None] = lambda _: None,
        **engine_args: Any,
    ) -> None:
        """cache: its kind of KV cache, a name in `CACHES`. ranks, stages: its tensor- and pipeline-parallel size.

        adapt: changes the configuration before anything is made with it. engine_args: more of vLLM's own.
        """
        self.name = name
        sizes = {"tensor_parallel_size": ranks, "pipeline_parallel_size": stages}
        more = {**sizes, **CACHES[cache].engine_args, **engine_args}
        self.config = self.make_config(name, model, settings, in_flight, role, step_tokens, **more)
        adapt(self.config)
        self.config.cache_config.num_gpu_blocks = blocks
        self.kv_config = self._make_kv_config(CACHES[cache], blocks)
        self.ranks = self._make_ranks(CACHES[cache].replicated)
        self.rank = self.ranks[0]
        self.worker = self.rank.connector
        executor_class = SimExecutor if stages == 1 else StageExecutor
        self.executor = executor_class(self.config, self.ranks, self._catch_up)
        scheduler_class = self.config.scheduler_config.get_scheduler_cls()
        self.scheduler = scheduler_class(
            vllm_config=self.config,
            kv_cache_config=self.kv_config,
            structured_output_manager=StructuredOutputManager(self.config),
            block_size=BLOCK_TOKENS,
            hash_block_size=BLOCK_TOKENS,
            log_stats=True,
        )
        init_none_hash(sha256)
        self._hasher = get_request_block_hasher(BLOCK_TOKENS, sha256)
        self.outer = self.scheduler.connector
        self.connector = own_connector(self.outer)
        self._in_flight = in_flight if stages == 1 else self.config.max_concurrent_batches
        self._scheduled: deque[SchedulerOutput] = deque()
        self._executed: deque[ModelRunnerOutput] = deque()
        # In the order of vLLM's engine core.
        self.executor.init_kv_output_aggregator(self.outer)
        said = {divmod(number, ranks): rank.outer.get_handshake_metadata() for number, rank in enumerate(self.ranks)}
        self.outer.set_xfer_handshake_metadata_pp_aware({rank: data for rank, data in said.items() if data is not None})
        self.requests: dict[str, Request] = {}
        self.transfers: dict[str, Any] = {}
        self.delta: Delta = {}
        self.steps = 0
        self._random = random.Random(name)

    # -- construction ----------------------------------------------------------------------------------------------

    @staticmethod
    def make_config(
        name: str,
        model: Path,
        settings: dict[str, Any],
        in_flight: int,
        role: str,
        step_tokens: int,
        **engine_args: Any,
    ) -> VllmConfig:
        transfer = KVTransferConfig(
            kv_connector="GhostCacherConnector",
            kv_connector_module_path="ghostcacher_connector.engines.vllm",
            kv_role=role,
            kv_connector_extra_config={"worker_id": name, **settings},
        )
        return EngineArgs(
            model=str(model),
            skip_tokenizer_init=True,
            dtype="float32",
            enforce_eager=True,
            max_model_len=512,
            block_size=BLOCK_TOKENS,
            max_num_batched_tokens=step_tokens,
            max_num_seqs=8,
            enable_prefix_caching=True,
            async_scheduling=in_flight > 1,
            kv_transfer_config=transfer,
            **engine_args,
        ).create_engine_config()

    def _make_kv_config(self, cache: SimCache, blocks: int) -> KVCacheConfig:
        return kv_config_of(self.config, cache, blocks)

    def _make_ranks(self, replicated: bool) -> list[SimRank]:
        parallel, options = self.config.parallel_config, {"replicated": replicated, "name": self.name}
        stages, shards = parallel.pipeline_parallel_size, parallel.tensor_parallel_size
        if stages == 1:
            return [self.rank_class(self.config, self.kv_config, number, **options) for number in range(shards)]
        return start_stages(lambda number: StageRank(self.config, self.kv_config, number, **options), stages, shards)

    # -- requests --------------------------------------------------------------------------------------------------

    def add(
        self,
        request_id: str,
        tokens: list[int] | None,
        *,
        max_tokens: int = 4,
        pull: bool = True,
        transfer: dict[str, Any] | None = None,
        sampling: dict[str, Any] | None = None,
        **options: Any,
    ) -> Request:
        """transfer, sampling: more kv_transfer_params and SamplingParams. options: more of its own, as in vLLM."""
        params = (transfer or {}) | ({} if pull else {"gc_pull": False})
        given = {"extra_args": {"kv_transfer_params": params} if params else None} | (sampling or {})
        request = Request(
            request_id=request_id,
            prompt_token_ids=None if tokens is None else list(tokens),
            sampling_params=SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True, **given),
            pooling_params=None,
            block_hasher=self._hasher,
            **options,
        )
        request.sampling_params.update_from_generation_config({}, 0)
        self.requests[request_id] = request
        self.scheduler.add_request(request)
        return request

    def _number_of(self, block: bytes) -> int:
        """Return the number that the last token of a full block of a request must have, be it running or not."""
        for request in reversed(self.requests.values()):
            if block in request.block_hashes:
                end = (request.block_hashes.index(block) + 1) * BLOCK_TOKENS
                return RunnerRequest(list(request.all_token_ids), [], lambda: self.rank.weight).number(end - 1)
        raise AssertionError("a block was published that belongs to no request")

    def abort(self, request_id: str) -> None:
        self.scheduler.finish_requests(request_id, RequestStatus.FINISHED_ABORTED)

    def outputs(self, request_id: str) -> list[int]:
        return list(self.requests[request_id].output_token_ids)

    # -- what tests look at ----------------------------------------------------------------------------------------

    @property
    def wrong(self) -> list[str]:
        """Descriptions of every wrong number that a step would have read, on any rank."""
        return [fault for rank in self.ranks for fault in rank.wrong]

    def holds(self, block: int, offset: int, number: int) -> bool:
        """Say whether a place holds a number, on every layer of every rank."""
        return all(rank.holds(block, offset, number) for rank in self.ranks)

    def counted(self, name: str, **labels: str) -> float:
        """Return a counter's value, summed over the series that have these label values."""
        wanted = set(labels.values())
        series = self.delta.get(name, {})
        return sum(
            value for key, value in series.items() if isinstance(value, float) and wanted <= set(key.split(SEPARATOR))
        )

    def free_blocks(self) -> int:
        return int(self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks())

    def peers_ready(self, count: int) -> bool:
        """Say whether scheduler and rank both know that many peers, and the rank reaches them."""
        fleet = self.connector._scheduler._fleet
        links = [rank.connector._worker._runtime.puller.links().values() for rank in self.ranks]
        connected = min(sum(link.connected and link.ready for link in of_rank) for of_rank in links)
        return connected >= count and len(fleet.live_workers.records()) > count

    def all_published(self) -> bool:
        """Return whether the index holds all that the worker does."""
        publisher = self.connector._scheduler._fleet.publisher
        return publisher.available and publisher.applied(time.monotonic())

    def watch_published(self) -> list[tuple[int, int, int]]:
        """Return a growing list of (slot, generation, number of the block's last token) of all that is published."""
        published: list[tuple[int, int, int]] = []
        publisher = self.connector._scheduler._publisher
        sink, number_of = publisher._sink, self._number_of

        class Spy:
            def publish(self, slot: int, block: bytes, root: bytes, generation: int) -> None:
                published.append((slot, generation, number_of(block)))
                sink.publish(slot, block, root, generation)

            def withdraw(self, slot: int) -> None:
                sink.withdraw(slot)

        publisher._sink = Spy()
        return published

    def lies(self, published: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
        """Return the entries that a reader would accept now and whose slot holds something else."""
        return [
            entry
            for entry in published
            for rank in self.ranks
            if rank.connector._worker._table.generation(entry[0]) == entry[1]
            and not rank.holds(entry[0], BLOCK_TOKENS - 1, entry[2])
        ]

    # -- steps -----------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Schedule one step; execute the oldest one in flight and process its output.

        A step that runs ahead is executed as late as can be: what is published too early is then not yet there.
        """
        self.steps += 1
        if self.scheduler.has_requests():
            output = self.scheduler.schedule()
            self._scheduled.append(output)
            self.executor.send(output)
            if len(self._scheduled) < self._in_flight and output.total_num_scheduled_tokens:
                return
        if self._scheduled:
            if not self._executed:
                self._executed.append(self.executor.execute_model(self._scheduled[0]))
            done, result = self._scheduled.popleft(), self._executed.popleft()
            for outputs in self.scheduler.update_from_output(done, result).values():
                self.transfers |= {each.request_id: each.kv_transfer_params for each in outputs.outputs}
                if outputs.scheduler_stats is not None and (stats := outputs.scheduler_stats.kv_connector_stats):
                    self.delta = merge(self.delta, stats if self.connector is self.outer else stats.get(CONNECTOR, {}))
            if self.config.speculative_config is not None:
                self._draft(done, self.config.speculative_config.num_speculative_tokens)

    def _draft(self, done: SchedulerOutput, count: int) -> None:
        """Propose draft tokens for the requests of a step, right up to a random one."""
        drafts = {}
        for request_id in done.num_scheduled_tokens:
            if (tokens := self.rank.tokens_of(request_id)) is not None:
                drafts[request_id] = expected_output(tokens, count, self.rank.weight)
                wrong_from = self._random.randrange(count + 1)
                drafts[request_id][wrong_from:] = [VOCABULARY] * (count - wrong_from)
        self.scheduler.update_draft_token_ids(DraftTokenIds(list(drafts), list(drafts.values())))

    def run(self, *, timeout_s: float = 30.0) -> None:
        """Step until every request has ended. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while self.scheduler.has_requests() or self._scheduled:
            self.step()
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name}: unfinished after {timeout_s} s: {list(self.scheduler.requests)}")

    def close(self) -> None:
        self.scheduler.shutdown()
        for rank in self.ranks:
            rank.outer.shutdown()

    def rpc(self, method: Any, *args: Any) -> list[Any]:
        """Call a method on every rank, as vLLM's users do."""
        return EngineCore.collective_rpc(SimpleNamespace(model_executor=self.executor), method, None, args)

    def _catch_up(self) -> None:
        """Execute the steps on their way: a call to the ranks comes after them. Their outputs are processed later."""
        for output in list(self._scheduled)[len(self._executed) :]:
            self._executed.append(self.executor.execute_model(output))
