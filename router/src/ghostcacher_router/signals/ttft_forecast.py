"""Forecasts the time to first token (TTFT) of a prompt on a worker, and chooses among forecasts. Pure; times in ms.

total = queue + wait + pull + compute + penalty + decode + others

queue     the prefill work ahead of the prompt, and the decoding of running requests that shares its steps
wait      until a prefix that is being computed now is there, or the link is free for the pull, as far as the queue does
          not cover it
pull      reading from a peer what the peer has, where that is faster than computing it
compute   the prefill of the rest
penalty   what is lost when the prompt does not fit into the free KV memory
decode    a price, and no part of the TTFT: how much later the tokens after the first come, this answer's own and those
          of the answers that are being decoded there
others    a price, and no part of the TTFT: what the request costs others. They wait longer behind what is computed for
          it, as many as wait there now; and what it evicts has to be computed again, if anybody asks for it

Without the price each request takes what is best for itself, and a fleet whose caches are about full collapses:
documents are copied to wherever the queue is a little shorter, last copies are evicted for that, and computing them
makes queues long everywhere. With it a copy is made where a queue is longer than the copy costs everybody.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ghostcacher_router.signals.working_sets import FREE, Displacement
from ghostcacher_router.types import Forecast

STEP_TOKENS = 2048
"""Prompt tokens that an engine computes in one step, as vLLM and SGLang set it by default, or close to it."""

KV_FULL_MS = 1000.0
"""The assumed cost of waiting until running requests have freed the KV memory of a whole prompt. Most answers take
seconds, and several run at a time. The value only has to exceed what computing a prefix again elsewhere costs."""

TIE_MS = 0.5
TIE_SHARE = 0.01
"""Forecasts that differ by less, in ms or as a share of the least one, count as equal: no engine is so predictable."""


class Engine(NamedTuple):
    """How fast a worker's engine is: the same for every prompt, until the worker's load changes."""

    name: str
    """The worker's name."""
    ms_per_token: float
    """Prefill time of one prompt token."""
    step_ms: float
    """What decoding for the requests that run already adds to each step."""
    decode_ms: float
    """What one more request loses and costs by decoding beside those that run: see `engine_rates.DECODE_WEIGHT`."""
    kv_free_tokens: int | None
    """Tokens for which there is free KV memory; None when the worker does not report it."""
    pull_fixed_ms: float
    """Time of a pull that does not depend on its size."""
    pull_ms_per_token: float | None
    """Time to pull the KV of one token; None when the worker cannot pull."""


Column = npt.NDArray[np.float64]


class EngineColumns(NamedTuple):
    """The same of many engines, each a column; shape (workers,)."""

    ms_per_token: Column
    step_ms: Column
    decode_ms: Column
    kv_free_tokens: Column
    """Infinite where the worker does not report it."""
    pull_fixed_ms: Column
    pull_ms_per_token: Column
    """Far above what computing takes where the worker cannot pull."""


class WorkerMatch(NamedTuple):
    """The prefix match of one prompt at one worker: how many tokens, from the first, need not be computed there."""

    local: int
    """Tokens in the worker's own prefix cache."""
    pullable: int
    """Tokens that a peer has and the worker can pull, counted from the first token as `local` is."""
    ready_ms: float
    """Time until both are true; 0 when they are now, more while a prefix is still being computed."""


class MatchColumns(NamedTuple):
    """The same at many workers; shape (workers,), or a number that is the same at all of them."""

    local: Column | float
    pullable: Column | float
    ready_ms: float = 0.0


NO_MATCH = WorkerMatch(0, 0, 0.0)

_new = tuple.__new__
"""A NamedTuple's own constructor, in half the time."""


class Queue(Protocol):
    """What is ahead of a request at a worker."""

    @property
    def engine(self) -> Engine: ...
    @property
    def queue_ms(self) -> float: ...
    @property
    def prefilling(self) -> int: ...
    @property
    def link_ms(self) -> float: ...


def forecast(  # noqa: PLR0917 - keywords take longer
    engine: Engine,
    queue_ms: float,
    tokens: int,
    match: WorkerMatch,
    delayed: float = 0.0,
    displacement: Displacement = FREE,
    link_ms: float = 0.0,
) -> Forecast:
    """Return the forecast of a prompt of `tokens` on a worker. queue_ms: the worker's queue now.

    delayed: how many requests wait longer for what is computed here.
    displacement: what the prompt costs others in the worker's cache.
    link_ms: until the pulls ahead are done, which a pull waits for.
    The last token is always computed: an engine needs its logits.
    """
    # Called for each worker of each request, hence plain branches for min and max, and no keywords.
    name, ms_per_token, step_ms, decode_ms, kv_free, pull_fixed_ms, pull_ms_per_token = engine
    local, pullable, ready_ms = match
    last = tokens - 1 if tokens > 1 else 0
    if local > last:  # noqa: PLR1730 -- min() takes five times as long
        local = last
    pulled, pull_ms, computed = (pullable if pullable < last else last) - local, 0.0, tokens - local
    queue_ms += step_ms * (1.0 + computed / STEP_TOKENS)
    if pulled > 0 and pull_ms_per_token is not None:
        pull_ms = pull_fixed_ms + pulled * pull_ms_per_token
        shorter_ms = queue_ms - step_ms * pulled / STEP_TOKENS
        # What is pulled shares no step with requests that run, unless there is a wait that hides this.
        begin_ms = link_ms if link_ms > ready_ms else ready_ms
        sooner_ms = max(queue_ms, ready_ms) - max(shorter_ms, begin_ms)
        if pull_ms < sooner_ms + pulled * ms_per_token:
            computed, queue_ms, ready_ms = computed - pulled, shorter_ms, begin_ms
        else:
            pulled, pull_ms = 0, 0.0
    else:
        pulled = 0
    wait_ms = ready_ms - queue_ms if ready_ms > queue_ms else 0.0
    penalty_ms, needed = 0.0, tokens - local
    if kv_free is not None and needed > kv_free:
        penalty_ms = KV_FULL_MS * (needed - kv_free) / needed
    compute_ms = computed * ms_per_token
    others_ms = delayed * compute_ms + (displacement[0] * needed + displacement[1] * tokens) * ms_per_token
    ttft_ms = queue_ms + wait_ms + pull_ms + compute_ms + penalty_ms
    total_ms, times = ttft_ms + decode_ms + others_ms, (queue_ms, wait_ms, pull_ms, compute_ms, penalty_ms)
    terms = (name, total_ms, *times, decode_ms, others_ms, local, pulled, computed)
    return _new(Forecast, terms)


def totals_of_few(
    queues: Sequence[Queue],
    tokens: int,
    local: Iterable[int],
    pullable: Iterable[int],
    usual: Displacement,
    others: Sequence[Displacement] | None = None,
) -> list[float]:
    """Return the `total_ms` of `forecast` for a few workers, to the last bit, in less than half the time.

    local, pullable: of `WorkerMatch`, where `ready_ms` is 0, of each worker.
    usual: what the prompt costs others in each worker's cache; others: the same where it is not the same everywhere.
    """
    last, totals_ms = tokens - 1 if tokens > 1 else 0, []
    for queue, has, most, (brought, kept) in zip(queues, local, pullable, others or repeat(usual), strict=False):
        _, ms_per_token, step_ms, decode_ms, kv_free, pull_fixed_ms, pull_ms_per_token = queue.engine
        held = has if has < last else last
        computed = needed = tokens - held
        begins_ms = queue.queue_ms + step_ms * (1.0 + computed / STEP_TOKENS)
        pull_ms = 0.0
        if most > held < last and pull_ms_per_token is not None:
            pulled = (most if most < last else last) - held
            pulls_ms = pull_fixed_ms + pulled * pull_ms_per_token
            shorter_ms = begins_ms - step_ms * pulled / STEP_TOKENS
            link_ms = queue.link_ms
            after_ms = shorter_ms if shorter_ms > link_ms else link_ms
            if pulls_ms < begins_ms - after_ms + pulled * ms_per_token:
                computed, pull_ms = computed - pulled, pulls_ms
                begins_ms = shorter_ms + (after_ms - shorter_ms)
        compute_ms = computed * ms_per_token
        total_ms = begins_ms + pull_ms + compute_ms
        if kv_free is not None and needed > kv_free:
            total_ms += KV_FULL_MS * (needed - kv_free) / needed
        others_ms = queue.prefilling * compute_ms + (brought * needed + kept * tokens) * ms_per_token
        totals_ms.append(total_ms + decode_ms + others_ms)
    return totals_ms


def totals(
    engines: EngineColumns,
    queue_ms: Column,
    tokens: int,
    match: MatchColumns,
    *,
    delayed: Column | float,
    link_ms: Column | float,
    brought: Column | float,
    kept: Column | float,
    computed_max: int | None = None,
) -> Column:
    """Return the `total_ms` of `forecast` for many workers, to the last bit: the same steps in the same order.

    brought, kept: of `Displacement`.
    computed_max: the total of a worker that would compute more tokens than this is infinite.
    """
    # What adds nothing is left out: each step takes about a microsecond, whatever the number of workers.
    ms_per_token, step_ms, decode_ms, kv_free, pull_fixed_ms, pull_ms_per_token = engines
    local, pullable, ready_ms = match
    last = float(tokens - 1) if tokens > 1 else 0.0
    held = min(local, last) if isinstance(local, float) else np.minimum(local, last)
    needed = tokens - held
    total_ms = queue_ms + step_ms * (1.0 + needed / STEP_TOKENS)
    computed = needed
    pulled = (min(pullable, last) if isinstance(pullable, float) else np.minimum(pullable, last)) - held
    pulls = np.greater(pulled, 0.0)
    # By when the prefix is there that is still being computed, whether it is local then or pulled.
    after_ms = np.maximum(total_ms, ready_ms) if ready_ms else total_ms
    if np.count_nonzero(pulls):
        pulls_ms = pull_fixed_ms + pulled * pull_ms_per_token
        shorter_ms = total_ms - step_ms * pulled / STEP_TOKENS
        waits = not isinstance(link_ms, float) or link_ms > 0.0 or ready_ms > 0.0
        begin_ms = np.maximum(shorter_ms, link_ms) if waits else shorter_ms
        if ready_ms:
            begin_ms = np.maximum(begin_ms, ready_ms)
        pulls = pulls & (pulls_ms < after_ms - begin_ms + pulled * ms_per_token)
        computed = needed - pulled * pulls
        wait_ms = np.where(pulls, begin_ms - shorter_ms, after_ms - total_ms) if waits else 0.0
        total_ms = np.where(pulls, shorter_ms, total_ms)
        if waits:
            total_ms += wait_ms
        total_ms += np.where(pulls, pulls_ms, 0.0)
    elif ready_ms:
        total_ms += after_ms - total_ms
    compute_ms = computed * ms_per_token
    total_ms += compute_ms
    lacking = needed > kv_free
    if np.count_nonzero(lacking):
        total_ms += np.where(lacking, KV_FULL_MS * (needed - kv_free) / needed, 0.0)
    total_ms += decode_ms
    others_ms = delayed * compute_ms
    if not isinstance(kept, float) or kept:
        others_ms += (brought * needed + kept * tokens) * ms_per_token
    elif not isinstance(brought, float) or brought:
        others_ms += brought * needed * ms_per_token
    total_ms += others_ms
    if computed_max is not None:
        total_ms[np.greater(computed, computed_max)] = np.inf
    return total_ms


def tie_limit(least_ms: float) -> float:
    """Return up to which total forecasts count as equal to the least one."""
    return least_ms + max(TIE_MS, TIE_SHARE * least_ms)


def best_of(totals_ms: Sequence[float]) -> list[int]:
    """Return the places of the least total, and of those that count as equal. totals_ms: at least one."""
    limit = tie_limit(min(totals_ms))
    return [place for place, total_ms in enumerate(totals_ms) if total_ms <= limit]
