"""Measures what an engine has to do, alike for both engines: the arithmetic of its queue.

Some microseconds and a fraction of one for each request; done a few times a second, on the scheduler's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple, TypeVar

from msgspec.structs import replace

from ghostcacher_connector.core.coordination.base import LoadReport
from ghostcacher_connector.engines.common.pull_state import Phase, PullState
from ghostcacher_connector.metrics import Recorder
from ghostcacher_connector.publish.load import Work, load_report
from ghostcacher_connector.pull.forecast import Forecaster
from ghostcacher_connector.tiers.host_tier import HostTier

WAITING_LOOKED_UP_MAX = 64
"""Waiting requests whose local prefix is looked up, some ten microseconds each; those behind count in full."""


class Progress(NamedTuple):
    """How far an engine is with a request."""

    running: bool
    """The request is in a batch, and does not wait for one."""
    prompt_tokens: int
    """Tokens of its prompt."""
    computed_tokens: int | None
    """Tokens whose KV it has; None before its first step, when what is cached of it is looked up."""


class Occupancy(NamedTuple):
    """Blocks of the KV pool: those in use, and all."""

    used: int
    total: int


Request = TypeVar("Request", bound=PullState)


class WorkMeter:
    """Makes load reports of one engine."""

    def __init__(
        self,
        forecaster: Forecaster,
        recorder: Recorder,
        *,
        block_tokens: int,
        block_bytes: int,
        tier: HostTier | None = None,
    ) -> None:
        """Make one.

        recorder: of what requests found in the fleet. block_bytes: bytes of one block on one rank. tier: below the
        engine's cache, if there is one.
        """
        self._tier = tier
        self._forecaster, self._recorder = forecaster, recorder
        self._block_tokens = block_tokens
        self._block_bytes = block_bytes

    def _report(
        self,
        requests: Collection[Request],
        progress_of: Callable[[Request], Progress],
        cached_blocks: Callable[[Request], int],
        occupancy: Occupancy,
    ) -> LoadReport:
        """Return the load of an engine with these requests.

        cached_blocks: returns how many blocks of a waiting request's prefix are in this engine's own cache.
        Without requests no block is in use, or will be in a moment.
        """
        running = waiting_tokens = looked_up = 0
        for request in requests:
            progress = progress_of(request)
            running += progress.running
            at_hand = progress.computed_tokens
            if at_hand is None:
                looked_up += 1
                at_hand = self._at_hand(request, cached_blocks) if looked_up <= WAITING_LOOKED_UP_MAX else 0
            waiting_tokens += max(0, progress.prompt_tokens - at_hand)
        work = Work(
            running=running,
            waiting=len(requests) - running,
            waiting_tokens=waiting_tokens,
            kv_blocks_used=occupancy.used if requests else 0,
            kv_blocks_total=occupancy.total,
        )
        tokens, size = self._block_tokens, self._block_bytes
        load = load_report(work, self._forecaster, self._recorder, block_tokens=tokens, block_bytes=size)
        return load if self._tier is None else replace(load, tiers=(self._tier.load(),))

    def _at_hand(self, request: Request, cached_blocks: Callable[[Request], int]) -> int:
        """Return how many prompt tokens of a waiting request need no computing, near enough."""
        if request.phase is Phase.PLANNED and request.plan is not None:
            return (request.plan.first_block + request.plan.block_count) * self._block_tokens
        return cached_blocks(request) * self._block_tokens
