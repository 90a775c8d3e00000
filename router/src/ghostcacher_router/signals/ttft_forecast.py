"""The forecast of time to first token, and the choice among forecasts. Pure; times in ms.

    total = queue + wait + pull + compute + penalty

queue: computing that is ahead, and the decoding that shares its steps. wait: until what is being computed is there, as
far as the queue does not cover it. pull: what a peer has, where that is faster than computing it. compute: the rest.
penalty: the prompt does not fit in the free KV memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from ghostcacher_router.types import Forecast

STEP_TOKENS = 2048
"""Prompt tokens that an engine computes in one step, as vLLM and SGLang set it by default, or close to it."""

KV_FULL_MS = 1000.0
"""What waiting for running requests to give back all of a prompt's KV memory is held to cost: most answers are seconds
long, and several run. It only has to be more than computing a prefix again elsewhere costs."""

TIE_MS = 0.5
TIE_SHARE = 0.01
"""Forecasts closer than this are equal: no engine keeps its times so well."""


class Engine(NamedTuple):
    """How fast a worker is and what it holds: the same for every prompt, until its load changes.

    ms_per_token: of prefill. step_ms: what a step costs for the requests that run already. kv_free_tokens: None when it
    is not known. pull_ms_per_token: None when it cannot pull.
    """

    name: str
    ms_per_token: float
    step_ms: float
    kv_free_tokens: int | None
    pull_fixed_ms: float
    pull_ms_per_token: float | None


class WorkerMatch(NamedTuple):
    """How much of one prompt a worker can have without computing it, counted from its first token.

    local: in its own cache. pullable: in a peer's. ready_ms: when that will be so; 0: it is so now.
    """

    local: int
    pullable: int
    ready_ms: float


NOTHING = WorkerMatch(0, 0, 0.0)

_new = tuple.__new__


def forecast(engine: Engine, queue_ms: float, tokens: int, reach: WorkerMatch) -> Forecast:
    """Return what a prompt of `tokens` costs on a worker. The last token is always computed."""
    # Called for each worker of each request, hence plain branches for min and max, and no keywords.
    name, ms_per_token, step_ms, kv_free, pull_fixed_ms, pull_ms_per_token = engine
    local, pullable, ready_ms = reach
    last = tokens - 1 if tokens > 1 else 0
    if local > last:  # noqa: PLR1730 -- min() takes five times as long
        local = last
    pulled, pull_ms, computed = (pullable if pullable < last else last) - local, 0.0, tokens - local
    queue_ms += step_ms * (1.0 + computed / STEP_TOKENS)
    if pulled > 0 and pull_ms_per_token is not None:
        pull_ms = pull_fixed_ms + pulled * pull_ms_per_token
        shorter_ms = queue_ms - step_ms * pulled / STEP_TOKENS
        # What is pulled shares no step with requests that run, unless there is a wait that hides this.
        sooner_ms = max(queue_ms, ready_ms) - max(shorter_ms, ready_ms)
        if pull_ms < sooner_ms + pulled * ms_per_token:
            computed, queue_ms = computed - pulled, shorter_ms
        else:
            pulled, pull_ms = 0, 0.0
    else:
        pulled = 0
    wait_ms = ready_ms - queue_ms if ready_ms > queue_ms else 0.0
    penalty_ms, needed = 0.0, tokens - local
    if kv_free is not None and needed > kv_free:
        penalty_ms = KV_FULL_MS * (needed - kv_free) / needed
    compute_ms = computed * ms_per_token
    total_ms = queue_ms + wait_ms + pull_ms + compute_ms + penalty_ms
    return _new(Forecast, (name, total_ms, queue_ms, wait_ms, pull_ms, compute_ms, penalty_ms, local, pulled, computed))


def choose(forecasts: Sequence[Forecast], rng: Random) -> Forecast:
    """Return one of the least forecasts, any of those that are equal. forecasts: at least one."""
    least = min([found.total_ms for found in forecasts])
    limit = least + max(TIE_MS, TIE_SHARE * least)
    best = [found for found in forecasts if found.total_ms <= limit]
    return best[0] if len(best) == 1 else best[int(rng.random() * len(best))]
