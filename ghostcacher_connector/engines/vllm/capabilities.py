"""What the connector needs of vLLM, whatever its version: that it is there, takes what is given, does what it says.

The argument that no peer ever reads a wrong block (docs/ARCHITECTURE.md) rests on a few calls. So a version of vLLM is
judged by them, not by its number: each is looked for by name and by its parameters, and the block pool, which is cheap
to make, is tried out. What only a running engine shows is checked there: that a step begins with `handle_preemptions`
(worker.py), and that the KV cache manager is bound before the engine joins the fleet (scheduling/scheduler.py).
"""

from __future__ import annotations

import inspect
import logging
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from ghostcacher_connector.engines.vllm.scheduling.eviction_window import EvictionWindow

if TYPE_CHECKING:
    from vllm.v1.core.block_pool import BlockPool

BASE = "vllm.distributed.kv_transfer.kv_connector.v1.base"
CONNECTOR = f"{BASE}:KVConnectorBase_V1"
MANAGER = "vllm.v1.core.kv_cache_manager:KVCacheManager"
POOL = "vllm.v1.core.block_pool:BlockPool"
EXECUTOR = "vllm.v1.executor.abstract:Executor"
STEP = "vllm.v1.core.sched.output"


class Hook(NamedTuple):
    """A function or class of vLLM that the connector relies on."""

    place: str
    """Where it is, as `pkgutil.resolve_name` takes it."""
    takes: str
    """The names of its parameters, or of the fields of a class that the connector reads, with spaces between."""
    why: str
    """What cannot be done without it."""


CALLED_BY_VLLM = (
    Hook(f"{CONNECTOR}.register_kv_caches", "kv_caches", "let peers read the KV memory"),
    Hook(f"{CONNECTOR}.get_handshake_metadata", "", "tell the scheduler where that memory is"),
    Hook(f"{CONNECTOR}.set_xfer_handshake_metadata_pp_aware", "metadata", "learn it there, and join the fleet"),
    Hook(f"{CONNECTOR}.handle_preemptions", "kv_connector_metadata", "bump generations before blocks are overwritten"),
    Hook(f"{CONNECTOR}.start_load_kv", "forward_context kwargs", "start pulls"),
    Hook(f"{CONNECTOR}.get_finished", "finished_req_ids", "say that a pull has ended"),
    Hook(f"{CONNECTOR}.get_transfer_results", "finished_req_ids", "say which requests must be computed after all"),
    Hook(f"{CONNECTOR}.get_block_ids_with_load_errors", "", "have blocks computed that could not be pulled"),
    Hook(f"{CONNECTOR}.build_connector_worker_meta", "", "say which step a rank has computed"),
    Hook(f"{CONNECTOR}.update_connector_output", "connector_output", "learn that every rank has computed a step"),
    Hook(f"{CONNECTOR}.bind_kv_cache_manager", "kv_cache_manager", "watch the block pool"),
    Hook(f"{CONNECTOR}.on_new_request", "request", "ask the index when a request arrives"),
    Hook(f"{CONNECTOR}.get_num_new_matched_tokens", "request num_computed_tokens", "say what can be pulled"),
    Hook(f"{CONNECTOR}.update_state_after_alloc", "request blocks num_external_tokens", "learn where to pull it to"),
    Hook(f"{CONNECTOR}.build_connector_meta", "scheduler_output", "send each step's orders to the ranks"),
    Hook(f"{CONNECTOR}.reset_cache", "", "learn that weights may change"),
    Hook(f"{BASE}:SupportsHMA.request_finished_all_groups", "request block_ids", "learn that a request is over"),
)
"""Methods that the connector overrides: with other parameters, vLLM would call them in vain."""

CALLED_BY_US = (
    Hook(f"{POOL}.touch", "blocks", "watch a block without changing who uses it"),
    Hook(f"{POOL}.unpin_blocks", "blocks on_reuse", "learn that a published block is handed out again"),
    Hook(f"{POOL}.get_cached_block", "block_hash kv_cache_group_ids", "know what the engine holds itself"),
    Hook(f"{POOL}.get_num_free_blocks", "", "report how full the cache is"),
    Hook(f"{MANAGER}.get_blocks", "request_id", "know where a request's blocks are"),
    Hook(f"{MANAGER}.evict_blocks", "block_ids", "have blocks forgotten that were never computed"),
    Hook("vllm.v1.core.kv_cache_manager:KVCacheManager.reset_prefix_cache", "", "learn that weights may change"),
    Hook(f"{EXECUTOR}.init_kv_output_aggregator", "connector", "learn which ranks are the connector's"),
    Hook(
        f"{EXECUTOR}.collective_rpc", "method timeout args kwargs non_block", "see every call that may change weights"
    ),
    Hook("vllm.v1.worker.worker_base:WorkerBase.get_model", "", "read a rank's weights"),
)
"""Methods that the connector calls."""

READ_BY_US = (
    Hook(
        f"{STEP}:SchedulerOutput",
        "num_scheduled_tokens scheduled_new_reqs scheduled_cached_reqs scheduled_spec_decode_tokens preempted_req_ids",
        "know which blocks a step fills",
    ),
    Hook(f"{STEP}:NewRequestData", "req_id num_computed_tokens", "follow new requests"),
    Hook(f"{STEP}:CachedRequestData", "req_ids num_computed_tokens resumed_req_ids", "follow running requests"),
    Hook(
        "vllm.v1.outputs:KVConnectorOutput",
        "invalid_block_ids finished_recving failed_recving kv_connector_worker_meta",
        "tell the scheduler what has arrived, and what has not",
    ),
    Hook(
        "vllm.config:KVTransferConfig", "kv_load_failure_policy", "have blocks computed whose pull failed, not refused"
    ),
)
"""Classes whose fields the connector reads or sets."""

OF_A_REQUEST = (
    "_block_hasher",
    "block_hashes",
    "cache_salt",
    "lora_request",
    "mm_features",
    "num_computed_tokens",
    "num_preemptions",
    "num_prompt_tokens",
    "num_tokens",
    "prompt_embeds",
    "prompt_is_token_ids",
    "resumable",
    "shared_prefix_boundary",
    "skip_reading_prefix_cache",
    "status",
)
"""What the connector reads or sets of a request, beside what it was given when it was made."""


def missing_hooks() -> Iterator[str]:
    """Yield what this vLLM lacks, each with what it is needed for."""
    yield from _missing_of_a_request()
    for hooks, fault in ((CALLED_BY_VLLM, _unlike), (CALLED_BY_US, _uncallable), (READ_BY_US, _without_fields)):
        for hook in hooks:
            if (found := _fault_of(hook, fault)) is not None:
                name, takes = hook.place.partition(":")[2], _listed(hook.takes.split())
                yield f"{name}: expected {takes}, found {found}; needed to {hook.why}"


def pool_faults(pool: BlockPool, block_tokens: int) -> Iterator[str]:
    """Yield what the engine's block pool does otherwise than generations need it, tried on a small one of its class."""
    if pool.hash_block_size != block_tokens:
        yield f"BlockPool.hash_block_size: expected {block_tokens} tokens as in a block, found {pool.hash_block_size}"
    pool_class = type(pool)
    try:
        yield from _faults_of_watching(pool_class(num_gpu_blocks=4, enable_caching=True, hash_block_size=16))
        yield from _faults_of_a_reset(pool_class(num_gpu_blocks=4, enable_caching=True, hash_block_size=16))
    except Exception as exc:
        yield f"BlockPool: expected a small one to be made and used, found {type(exc).__name__}: {exc}"


def free_list_faults(pool: BlockPool) -> Iterator[str]:
    """Yield what the engine's block pool does otherwise than a host tier needs it: its free list is walked."""
    pool_class: Any = type(pool)
    try:
        small = pool_class(num_gpu_blocks=4, enable_caching=True, hash_block_size=16)
        window = EvictionWindow(small, 1.0)
        seen = window.walk(range(4), 4)
        handed_out = [block.block_id for block in small.get_new_blocks(3)]
    except Exception as exc:
        yield f"BlockPool.free_block_queue: expected a list to walk, found {type(exc).__name__}: {exc}"
        return
    if seen != handed_out:
        yield f"BlockPool.free_block_queue: expected blocks in the order of their use, {handed_out}, found {seen}"


def _missing_of_a_request() -> Iterator[str]:
    from vllm.sampling_params import SamplingParams  # noqa: PLC0415 - vLLM is optional
    from vllm.v1.request import Request  # noqa: PLC0415

    try:
        request = Request("probe", [1], SamplingParams(max_tokens=1), None)
    except Exception as exc:
        yield f"Request: expected a plain one to be made, found {type(exc).__name__}: {exc}"
        return
    for name in OF_A_REQUEST:
        if not hasattr(request, name):
            yield f"Request.{name}: expected, found none; needed to know what of a request is computed"


@contextmanager
def _quiet(module: str) -> Iterator[None]:
    """Keep a module of vLLM from telling the engine's log about what is only tried out."""
    log = logging.getLogger(module)
    was, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = was


def _faults_of_watching(pool: Any) -> Iterator[str]:
    reused: list[Any] = []
    (block,) = pool.get_new_blocks(1)
    pool.touch((block,))
    pool.unpin_blocks((block,), reused.append)
    if block.ref_cnt != 1:
        yield f"BlockPool.touch, unpin_blocks: expected the block's one reference to stay, found {block.ref_cnt}"
        return
    pool.free_blocks((block,))
    pool.touch((block,))  # found again by its hash
    pool.free_blocks((block,))
    if reused:
        yield "BlockPool.unpin_blocks: expected on_reuse when the block is handed out, found it called before"
    handed_out = pool.get_new_blocks(pool.get_num_free_blocks())
    if block not in handed_out or reused != [block]:
        yield (
            "BlockPool.unpin_blocks: expected on_reuse once before the block is handed out again, "
            f"found {len(reused)} calls"
        )


def _faults_of_a_reset(pool: Any) -> Iterator[str]:
    reused: list[Any] = []
    (block,) = pool.get_new_blocks(1)
    pool.touch((block,))
    pool.unpin_blocks((block,), reused.append)
    pool.free_blocks((block,))
    with _quiet(type(pool).__module__):
        reset = pool.reset_prefix_cache()
    if not reset or reused != [block]:
        yield f"BlockPool.reset_prefix_cache: expected on_reuse of each watched block, found {len(reused)} calls"


def _fault_of(hook: Hook, fault: Callable[[set[str], inspect.Signature], str | None]) -> str | None:
    try:
        found = pkgutil.resolve_name(hook.place)
    except (ImportError, AttributeError):
        return "none"
    return fault(set(hook.takes.split()) | {"self"}, inspect.signature(found))


def _unlike(wanted: set[str], found: inspect.Signature) -> str | None:
    return None if set(found.parameters) | {"self"} == wanted else _listed(found.parameters)


def _uncallable(wanted: set[str], found: inspect.Signature) -> str | None:
    required = {name for name, each in found.parameters.items() if each.default is each.empty}
    return None if required <= wanted <= set(found.parameters) else _listed(found.parameters)


def _without_fields(wanted: set[str], found: inspect.Signature) -> str | None:
    lacking = sorted(wanted - set(found.parameters) - {"self"})
    return f"it without {', '.join(lacking)}" if lacking else None


def _listed(names: Iterable[str]) -> str:
    return f"({', '.join(name for name in names if name != 'self')})"
