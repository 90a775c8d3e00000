"""Calls from vLLM's scheduler process to its ranks: ours are made here, and everybody's are watched.

Whoever changes the weights of a running vLLM does it through `Executor.collective_rpc`: `reload_weights`, weight
transfer, methods of a ``worker_extension_cls``, functions that are sent to the workers, sleep mode. No connector is
given the executor, but vLLM calls `Executor.init_kv_output_aggregator` with the scheduler's connector once, before the
ranks introduce themselves: `watch_executors` takes it there (engine_patches/vllm says why).

Calls reach every rank in the order in which they were made, steps included: what a rank reads in one of ours is what
the steps before it have computed with.

Driven by the scheduler's thread alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ghostcacher_connector.engines.vllm.drafters import drafter_of
from ghostcacher_connector.engines.vllm.messages import RankHandshake
from ghostcacher_connector.engines.vllm.nesting import own_connector
from ghostcacher_connector.worker.registration import Introduction

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.v1.executor.abstract import Executor

HARMLESS = frozenset(
    {
        *("execute_model", "sample_tokens", "take_draft_token_ids", "execute_dummy_batch", "synchronize_device"),
        *("check_health", "profile", "shutdown", "get_supported_tasks", "get_model_inspection", "annotate_profile"),
        *("get_kv_connector_handshake_metadata", "get_kv_cache_spec", "get_cache_block_size_bytes"),
        *("get_encoder_timing_stats", "release_late_interaction_query_cache", "reset_mm_cache", "reset_encoder_cache"),
        *("add_lora", "remove_lora", "list_loras", "pin_lora"),
        *("compute_weight_checksums", "save_sharded_state", "save_tensorized_model", "supports_draft_weight_updates"),
    }
)
"""Methods of vLLM's own workers that leave the weights as they are. All others are taken to change them."""


class RankCalls:
    """The scheduler's way to the ranks."""

    def __init__(
        self,
        executor: Executor,
        on_doubt: Callable[[str], None],
        on_adapter: Callable[[LoRARequest], None] = lambda _: None,
    ) -> None:
        """Watch an executor's calls from now on.

        on_doubt: called with the name of each call that may change the weights, before it is made.
        on_adapter: called with each LoRA adapter that the ranks were told to load, when they have done so.
        """
        self._call = executor.collective_rpc
        self._on_doubt, self._on_adapter = on_doubt, on_adapter
        executor.collective_rpc = self._watched

    def introduce(self) -> list[RankHandshake]:
        """Return who the ranks are, in order of rank. Raises whatever the executor does."""
        return list(self._call(introduce))

    def read_weights(self) -> list[str]:
        """Return each rank's digest of its weights, in order of rank. Raises whatever the executor does."""
        return list(self._call(read_weights))

    def read_adapters(self) -> list[dict[int, bytes]]:
        """Return each rank's digests of the LoRA adapters that it has. Raises whatever the executor does."""
        return list(self._call(read_adapters))

    def move(self, epoch: str) -> list[Introduction]:
        """Have every rank become another incarnation under this weight epoch; return who they are then."""
        return list(self._call(move, args=(epoch,)))

    def _watched(self, method: str | Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if method not in HARMLESS:
            self._on_doubt(method if isinstance(method, str) else getattr(method, "__qualname__", repr(method)))
        done = self._call(method, *args, **kwargs)
        if method == "add_lora" and (loaded := _request_of(*args, **kwargs)) is not None:
            self._on_adapter(loaded)
        return done


def _request_of(
    _timeout: float | None = None, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None, **_: Any
) -> LoRARequest | None:
    """Return what a call of `collective_rpc`, without its method, hands to ``add_lora``."""
    return next(iter([*args, *(kwargs or {}).values()]), None)


def introduce(_worker: Any) -> RankHandshake:
    """Have one rank introduce itself; runs in the rank's process."""
    handshake: RankHandshake = _connector().introduce()
    return handshake


def read_weights(worker: Any) -> str:
    """Return a digest of one rank's weights; runs in the rank's process. worker: vLLM's own."""
    return str(_connector().read_weights(worker.get_model(), drafter_of(worker)))


def read_adapters(worker: Any) -> dict[int, bytes]:
    """Return the digests of one rank's LoRA adapters, by vLLM's numbers; runs in the rank's process."""
    digests: dict[int, bytes] = _connector().read_adapters(worker.get_model())
    return digests


def move(_worker: Any, epoch: str) -> Introduction:
    """Have one rank become another incarnation; runs in the rank's process."""
    introduction: Introduction = _connector().move(epoch)
    return introduction


def _connector() -> Any:
    from vllm.distributed.kv_transfer import get_kv_transfer_group  # noqa: PLC0415 - only in a rank

    return own_connector(get_kv_transfer_group())


def watch_executors() -> None:
    """Have vLLM's executors introduced to our connectors. May be called more than once in a process.

    That they have what is needed is checked before (capabilities.py).
    """
    from vllm.v1.executor.abstract import Executor  # noqa: PLC0415 - vLLM is optional

    begin = Executor.init_kv_output_aggregator
    if begin.__module__ != __name__:
        Executor.init_kv_output_aggregator = _introducing(begin)


def _introducing(begin: Callable[..., None]) -> Callable[..., None]:
    """Return vLLM's method with an introduction behind it, for connectors of ours."""

    @functools.wraps(begin)
    def init_kv_output_aggregator(executor: Executor, connector: Any) -> None:
        begin(executor, connector)
        if (own := own_connector(connector)) is not None:
            own.watch_executor(executor)

    init_kv_output_aggregator.__module__ = __name__  # by which it is known again
    return init_kv_output_aggregator
