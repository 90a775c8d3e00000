"""Adds what SGLang's linker interface leaves out, by SGLang's own plugin hooks. engine_patches/sglang says why.

Every process of SGLang loads this module before its configuration is known, so it imports little: whoever imports
prometheus_client too early takes SGLang's metrics page away. A hook does nothing in a process without a linker of ours.

No hook raises. Some change the call that they see: pages that are held count as pages in use, a request that a router
sent keeps the router's id, and a request that waits for a pull is in no batch, and holds up none behind it.
"""

from __future__ import annotations

import functools
import logging
import secrets
from collections.abc import Callable
from typing import Any, Protocol

from ghostcacher_connector.engines.sglang import flags

logger = logging.getLogger(__name__)

SCHEDULER = "sglang.srt.managers.scheduler.Scheduler"
WRAPPER = "sglang.srt.mem_cache.unified_cache.unified_cache_linker.UnifiedCacheLinkerWrapper"
ADDER = "sglang.srt.managers.schedule_policy.PrefillAdder"
BATCH = "sglang.srt.managers.schedule_batch.ScheduleBatch"
CHECKER = "sglang.srt.managers.scheduler_components.invariant_checker.SchedulerInvariantChecker"
WEIGHTS = "sglang.srt.managers.scheduler_components.weight_updater.SchedulerWeightUpdaterManager"
ARGUMENTS = "sglang.srt.server_args.ServerArgs"
SERVING = "sglang.srt.entrypoints.openai.serving_base.OpenAIServingBase"

WEIGHT_CHANGES = (
    "update_weights_from_disk",
    "update_weights_from_distributed",
    "update_weights_from_tensor",
    "update_weights_from_ipc",
    "begin_weight_update",
    "end_weight_update",
    "release_memory_occupation",
    "resume_memory_occupation",
)
HARMLESS_CALLS = frozenset({"save_remote_model", "save_sharded_model"})
"""Methods of SGLang's scheduler that `Engine.collective_rpc` may call without a look at the weights."""

REQUEST_CHARS_MAX = 256
"""Longer ids of clients are left alone."""


class HookedLinker(Protocol):
    """What the hooks need of the linker."""

    @property
    def kept_tokens(self) -> int:
        """Tokens of pages that are neither free nor in use: a READ may still write to them."""

    def queued(self, scheduler: Any, req: Any) -> None:
        """A request has entered the scheduler's queue."""

    def waits(self, rid: str) -> bool:
        """Say whether a request is to be in no batch yet. Never raises."""

    def memory_is_short(self) -> None:
        """SGLang is about to retract requests for want of memory."""

    def ended(self, rid: str) -> None:
        """A request is over, one way or another."""

    def node_offered(self, cache: Any, node_id: Any) -> None:
        """SGLang is about to offer the pages of a node of its tree."""

    def batch_begins(self, batch: Any) -> None:
        """A batch is about to be computed."""

    def batch_done(self, batch: Any) -> None:
        """The results of a batch have been processed."""

    def idle(self, scheduler: Any) -> None:
        """SGLang's scheduler has nothing to compute at the moment."""

    def weights_may_change(self, model: Any, why: str) -> None:
        """The weights of this model may be changed by what comes next. The same happens on every rank."""


_linker: HookedLinker | None = None


def set_linker(linker: HookedLinker | None) -> None:
    """Name the linker that the hooks of this process call. SGLang's scheduler makes one, other processes have none."""
    global _linker  # noqa: PLW0603 - one a process, as SGLang has it
    _linker = linker


def careful(hook: Callable[..., None]) -> Callable[..., None]:
    """Make an unexpected error of a hook a line in the log: what a hook does for the cache must not end a request."""

    @functools.wraps(hook)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            hook(*args, **kwargs)
        except Exception:
            logger.exception("hook %s: unexpected error", hook.__name__)

    return guarded


@careful
def request_queued(scheduler: Any, req: Any, *_: Any, **__: Any) -> None:
    if _linker is not None:
        _linker.queued(scheduler, req)


@careful
def request_aborted(_result: Any, _scheduler: Any, req: Any) -> None:
    if _linker is not None:
        _linker.ended(req.rid)


@careful
def abort_sent(_result: Any, _scheduler: Any, _abort: Any, req: Any, *_: Any, **__: Any) -> None:
    if _linker is not None:
        _linker.ended(req.rid)


def prefill_built(build: Callable[..., Any], scheduler: Any, *args: Any, **kwargs: Any) -> Any:
    """Build a batch of those that do not wait; the others keep their places in the queue."""
    if _linker is None:
        return build(scheduler, *args, **kwargs)
    queue = scheduler.waiting_queue
    waiting = [req for req in queue if _linker.waits(req.rid)]
    places = {id(req): place for place, req in enumerate(queue)}
    waiting_ids = {id(req) for req in waiting}
    if waiting:
        scheduler.waiting_queue = [req for req in queue if id(req) not in waiting_ids]
    try:
        built = build(scheduler, *args, **kwargs)
    finally:
        if waiting:
            everyone = [*scheduler.waiting_queue, *waiting]
            scheduler.waiting_queue = sorted(everyone, key=lambda req: places.get(id(req), len(places)))
    _look_again(scheduler, built[1])
    return built


def _look_again(scheduler: Any, running_batch: Any) -> None:
    """Have SGLang admit requests in the next pass, though it has found no room for one while pulls hold pages.

    It would look at none before a request that runs has ended: not at the one whose pages have come meanwhile either.
    """
    assert _linker is not None
    waits = _linker.waits
    if running_batch.batch_is_full and (_linker.kept_tokens or any(waits(req.rid) for req in scheduler.waiting_queue)):
        running_batch.batch_is_full = False


def request_added(add: Callable[..., Any], adder: Any, req: Any, *args: Any, **kwargs: Any) -> Any:
    """Pass over a request that waits, or has begun to, and go on with the one behind it."""
    if _linker is not None and _linker.waits(req.rid):
        return adder.budget_state()
    result = add(adder, req, *args, **kwargs)
    return adder.budget_state() if _linker is not None and _linker.waits(req.rid) else result


def load_begun(load_back: Callable[..., Any], wrapper: Any, req: Any) -> Any:
    """Tell SGLang that a request cannot be admitted now, where it waits for what was to be loaded."""
    result = load_back(wrapper, req)
    return None if _linker is not None and _linker.waits(req.rid) else result


@careful
def memory_is_short(_batch: Any, *_: Any, **__: Any) -> None:
    if _linker is not None:
        _linker.memory_is_short()


@careful
def batch_begins(_scheduler: Any, batch: Any, *_: Any, **__: Any) -> None:
    if _linker is not None:
        _linker.batch_begins(batch)


@careful
def batch_done(_result: Any, _scheduler: Any, batch: Any, *_: Any, **__: Any) -> None:
    if _linker is not None:
        _linker.batch_done(batch)


@careful
def scheduler_idles(scheduler: Any, *_: Any, **__: Any) -> None:
    if _linker is not None:
        _linker.idle(scheduler)


@careful
def node_offered(wrapper: Any, node_id: Any, *_: Any, **__: Any) -> None:
    if _linker is not None:
        _linker.node_offered(wrapper.cache, node_id)


def weights_change(name: str) -> Callable[..., None]:
    """Return the hook before a method of SGLang's weight updater."""

    @careful
    def weights_may_change(updater: Any, *_: Any, **__: Any) -> None:
        if _linker is not None:
            _linker.weights_may_change(updater.tp_worker.model_runner.model, name)

    return weights_may_change


@careful
def method_called(scheduler: Any, request: Any, *_: Any, **__: Any) -> None:
    if _linker is not None and request.method not in HARMLESS_CALLS:
        _linker.weights_may_change(scheduler.tp_worker.model_runner.model, request.method)


def full_pool_checked(check: Callable[..., Any], checker: Any, stats: Any, uncached: int = 0) -> Any:
    """Count pages that are held as pages in use: SGLang ends an engine in which pages are missing."""
    return check(checker, stats, uncached + (_linker.kept_tokens if _linker is not None else 0))


@careful
def flags_parsed(server_args: Any, *_: Any, **__: Any) -> None:
    """End the process when the flags, or the environment, give the linker wrong settings."""
    flags.check_flags(server_args)


@careful
def request_received(_serving: Any, request: Any, raw_request: Any = None, *_: Any, **__: Any) -> None:
    """Name a request as its router does, with something unique behind it: SGLang ignores ``X-Request-Id``."""
    name = raw_request.headers.get("x-request-id") if raw_request is not None else None
    # Not those of embeddings and scores: SGLang refuses one name for a batch of them. Tokenising knows no names.
    generates = hasattr(request, "messages") or hasattr(request, "prompt")
    if generates and name and len(name) <= REQUEST_CHARS_MAX and getattr(request, "rid", name) is None:
        request.rid = f"{name}-{secrets.token_hex(4)}"


def install() -> None:
    """Register every hook with SGLang's registry, which applies them when all plugins are loaded."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType  # noqa: PLC0415 - SGLang is optional

    for target, hook, kind in hooks():
        HookRegistry.register(target, hook, HookType(kind))


def hooks() -> list[tuple[str, Callable[..., Any], str]]:
    """Return (target, hook, kind) of every hook."""
    return [
        (f"{SCHEDULER}._add_request_to_queue", request_queued, "before"),
        (f"{SCHEDULER}._release_aborted_request", request_aborted, "after"),
        (f"{SCHEDULER}.send_abort_output", abort_sent, "after"),
        (f"{SCHEDULER}._get_new_batch_prefill_raw", prefill_built, "around"),
        (f"{ADDER}.add_one_req", request_added, "around"),
        (f"{WRAPPER}.load_back", load_begun, "around"),
        (f"{BATCH}.retract_decode", memory_is_short, "before"),
        (f"{SCHEDULER}.run_batch", batch_begins, "before"),
        (f"{SCHEDULER}.process_batch_result", batch_done, "after"),
        (f"{SCHEDULER}.on_idle", scheduler_idles, "before"),
        (f"{WRAPPER}._offload_node", node_offered, "before"),
        (f"{CHECKER}._check_full_pool", full_pool_checked, "around"),
        (f"{ARGUMENTS}.from_cli_args", flags_parsed, "after"),
        (f"{SERVING}.handle_request", request_received, "before"),
        (f"{SCHEDULER}.handle_rpc_request", method_called, "before"),
        *((f"{WEIGHTS}.{name}", weights_change(name), "before") for name in WEIGHT_CHANGES),
    ]


def missing() -> list[str]:
    """Return the targets whose hooks SGLang has not applied in this process."""
    from sglang.srt.plugins.hook_registry import HookRegistry  # noqa: PLC0415 - SGLang is optional

    return [target for target, _, _ in hooks() if target not in HookRegistry._patched]
