"""Pulls pages for requests that wait in SGLang's queue, while it computes others; the same on every rank.

Life of a load:
1. SGLang would admit a request, and has allocated pages for what peers have of its prompt. `begin` takes them over: it
   holds them (page_guard.py) and submits the pull. SGLang is told that it has loaded nothing, and frees the pages,
   which get no further than the guard. From now on the request `waits`: hooks.py keeps it out of batches.
2. Pulls go on beside the scheduler. In each pass the ranks agree on what has become of each (`settle`).
3. All ranks have the first n pages: these are entered into SGLang's tree, and the others are free. SGLang finds them
   there in the same pass, when it looks for the request's prefix, as it finds what it has computed itself.
4. The deadline has passed: the request waits no longer, and is computed. The pages of a READ that may still land are
   held on, until it is over on every rank.

Nothing that waits for a load can wait for longer than its deadline: with `pull=auto` the time that computing the same
tokens would have taken, `pull_timeout_s` at most. A request whose pages another load brings waits for that one, once.
All loads together hold a part of the pool; when SGLang runs out of memory all the same it would retract requests, and
abort the last one: it has their pages first (`drain`).

Driven by the scheduler's thread alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ghostcacher_connector.config import Settings
from ghostcacher_connector.engines.common.pull_state import Phase
from ghostcacher_connector.engines.sglang.scheduling.load_records import LoadRecords
from ghostcacher_connector.engines.sglang.scheduling.matching import common_pages
from ghostcacher_connector.engines.sglang.scheduling.page_guard import PageGuard
from ghostcacher_connector.engines.sglang.scheduling.rank_group import RankGroup
from ghostcacher_connector.engines.sglang.scheduling.requests import Tracked
from ghostcacher_connector.pull.forecast import Forecaster
from ghostcacher_connector.pull.planner import PullPlan
from ghostcacher_connector.slots import Slots
from ghostcacher_connector.transfer.jobs import JobResult, PullJob, PullSource
from ghostcacher_connector.transfer.puller import Puller

logger = logging.getLogger(__name__)

WAIT_MIN_S = 0.05
"""A pull may take this long however fast computing is forecast to be: forecasts of milliseconds are guesses."""
REST_S = 0.002
"""A scheduler that has nothing to do but to wait for pulls looks for new requests this often."""

RUNNING, IN_FLIGHT = -2, -1
"""What a load is on a rank; otherwise the number of its leading pages that hold their blocks. Ranks agree on the least.

RUNNING: it may still end in time. IN_FLIGHT: given up, and still able to write to its pages.
"""
REFUSED, FOLLOW, BEGIN = 0, 1, 2
"""What a rank would do with a new load. Ranks agree on the least. FOLLOW: wait for another load first."""

Enter = Callable[[Tracked, int, torch.Tensor], bool]
"""Enters pages behind a request's first so many into SGLang's tree, or frees them and returns False."""


@dataclass(slots=True, eq=False)
class Load:
    """Pages that a request waits for. Equal on all ranks but for plan, submitted and result."""

    job_id: str
    """Names the pull."""
    tracked: Tracked
    """The request."""
    keys: frozenset[str]
    """The hashes of the pages."""
    plan: PullPlan
    """From whom this rank pulls them; their place in the prompt, too."""
    pages: Slots
    """Their numbers, shape (n,)."""
    token_indexes: torch.Tensor
    """Places of all their tokens in the pool."""
    events: Sequence[Any]
    """Over when nothing else writes to the pages any more: the pull begins then."""
    began: float
    """When SGLang gave the pages, on the loader's clock."""
    deadline: float
    """When nobody waits any more."""
    submitted: bool = False
    """Whether the pull has begun."""
    result: JobResult | None = None
    """How this rank's pull ended."""


class Loader:
    """Carries out SGLang's loads on one rank."""

    def __init__(
        self,
        puller: Puller,
        guard: PageGuard,
        ranks: RankGroup,
        settings: Settings,
        forecaster: Forecaster,
        *,
        records: LoadRecords,
        enter: Enter,
        page_tokens: int,
        pages_max: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare for one rank's loads.

        records: told of each load that ends. enter: enters pages into SGLang's tree. pages_max: pages that all loads
        together may hold.
        """
        self._puller = puller
        self._guard = guard
        self._ranks = ranks
        self._settings = settings
        self._forecaster = forecaster
        self._records = records
        self._enter = enter
        self._page_tokens = page_tokens
        self._pages_max = pages_max
        self._clock = clock
        self._number = 0
        self._loads: list[Load] = []
        self._late: list[Load] = []
        self._waits: dict[str, Load] = {}
        self._submitted: dict[str, tuple[PullSource, ...]] = {}

    def __repr__(self) -> str:
        return f"Loader({len(self._loads)} loads, {len(self._late)} given up and not over)"

    def waits(self, rid: str) -> bool:
        """Say whether a request waits for a load."""
        return rid in self._waits

    def begin(
        self, tracked: Tracked | None, keys: Sequence[str], token_indexes: torch.Tensor, events: Sequence[Any]
    ) -> None:
        """Begin to fill pages that SGLang has allocated, and will free at once; or have the request computed.

        keys: the hash of each page. token_indexes: places of all tokens of the pages in the pool. events: see `Load`.
        To be called by every rank.
        """
        pages = (token_indexes[:: self._page_tokens].cpu() // self._page_tokens).numpy().astype(np.int64, copy=False)
        plan = self._plan(tracked, keys)
        before = self._before(keys, len(pages))
        choice = self._ranks.least(self._choice(tracked, plan, before, len(pages)))
        if tracked is None:
            return
        if choice == FOLLOW and before is not None:
            tracked.followed = True
            self._waits[tracked.request_id] = before
        elif choice == BEGIN and plan is not None:
            self._begin(tracked, plan, keys, pages, token_indexes, events)
        else:
            tracked.phase = Phase.SETTLED
            self._records.refused(tracked, plan)

    def settle(self) -> None:
        """Agree on what has become of each load. To be called in every pass, by every rank."""
        if not self._loads and not self._late:
            return
        self._take(wait_s=0.0)
        for load in self._loads:
            self._submit(load)
        running = len(self._loads)
        states = [self._state(load) for load in self._loads] + [int(self._is_over(load)) for load in self._late]
        agreed = self._ranks.least_of(states)
        loads, late = self._loads, self._late
        self._loads, self._late = [], []
        for load, state in zip(loads, agreed[:running], strict=True):
            if state == RUNNING:
                self._loads.append(load)
            else:
                self._end(load, state)
        for load, over in zip(late, agreed[running:], strict=True):
            if over:
                self._guard.let_go(load.pages)
            else:
                self._late.append(load)

    def rest(self) -> None:
        """Leave the processor to the pulls for a moment, if anybody waits for one."""
        if self._loads:
            self._take(wait_s=REST_S)

    def drain(self) -> None:
        """Free what loads hold, whatever has landed; wait for those that run until the last one's deadline at most.

        Pages in the tree would be locked until they are published. To be called by every rank.
        """
        while any(load.submitted and self._state(load) == RUNNING for load in self._loads):
            self._take(wait_s=REST_S)
        self.void()
        self.settle()

    def forget(self, rid: str) -> None:
        """A request is over: what is pulled for it alone is wanted no more."""
        load = self._waits.pop(rid, None)
        if load is not None and load.tracked.request_id == rid and load in self._loads:
            self._give_up(load)

    def void(self) -> None:
        """What is being pulled is not to be used any more."""
        for load in tuple(self._loads):
            self._give_up(load)

    # -- one load --------------------------------------------------------------------------------------------------

    def _plan(self, tracked: Tracked | None, keys: Sequence[str]) -> PullPlan | None:
        """Return the plan, cut to what SGLang made room for; None when it is of other pages by now."""
        plan = tracked.plan if tracked is not None else None
        count = len(keys)
        if tracked is None or plan is None or count > plan.block_count:
            return None
        if common_pages(tracked, plan.first_block, keys) < count:
            return None
        return replace(plan, block_count=count, sources=plan.sources_of(count))

    def _choice(self, tracked: Tracked | None, plan: PullPlan | None, before: Load | None, page_count: int) -> int:
        """Return what this rank would do with a load of so many pages. before: the load that has to end first."""
        if tracked is None or plan is None or self._hangs():
            return REFUSED
        if before is not None:
            return REFUSED if tracked.followed else FOLLOW
        return BEGIN if self._has_room(page_count) else REFUSED

    def _before(self, keys: Sequence[str], page_count: int) -> Load | None:
        """Return the load that has to end before one of these pages may begin: it brings them, or leaves no room."""
        for load in self._loads:
            if keys[0] in load.keys:
                return load
        return self._loads[0] if self._loads and not self._has_room(page_count) else None

    def _has_room(self, page_count: int) -> bool:
        return sum(len(load.pages) for load in (*self._loads, *self._late)) + page_count <= self._pages_max

    def _hangs(self) -> bool:
        """Say whether READs that were given up hold every thread: nobody would carry another pull out."""
        running = {load.job_id for load in self._loads}
        given_up = len(self._submitted.keys() - running) - self._puller.quarantined_count
        return given_up >= self._settings.pull_threads

    def _begin(
        self,
        tracked: Tracked,
        plan: PullPlan,
        keys: Sequence[str],
        pages: Slots,
        token_indexes: torch.Tensor,
        events: Sequence[Any],
    ) -> None:
        self._number += 1
        began = self._clock()
        deadline = began + self._wait_budget_s(plan)
        load = Load(
            f"load-{self._number}", tracked, frozenset(keys), plan, pages, token_indexes, events, began, deadline
        )
        self._guard.hold(pages)
        self._loads.append(load)
        self._waits[tracked.request_id] = load
        tracked.phase = Phase.LOADING
        self._submit(load)

    def _wait_budget_s(self, plan: PullPlan) -> float:
        if self._settings.pull == "always":
            return self._settings.pull_timeout_s
        compute_s = self._forecaster.compute_s(plan.block_count * self._page_tokens)
        return min(self._settings.pull_timeout_s, max(WAIT_MIN_S, compute_s))

    def _submit(self, load: Load) -> None:
        """Begin the pull, unless it has begun or something else may still write to the pages."""
        if load.submitted or not all(event.query() for event in load.events):
            return
        load.submitted = True
        self._submitted[load.job_id] = load.plan.sources
        self._puller.submit(PullJob(load.job_id, load.pages, load.plan.sources, load.deadline))

    def _take(self, *, wait_s: float) -> None:
        """Take the results of pulls that have ended."""
        running = {load.job_id: load for load in self._loads}
        for result in self._puller.poll(wait_s=wait_s):
            sources = self._submitted.pop(result.job_id)
            if result.job_id in running:
                running[result.job_id].result = result
            else:
                self._records.late(result, sources)

    def _state(self, load: Load) -> int:
        """Return what a load is on this rank."""
        if load.result is not None:
            return int(np.logical_and.accumulate(load.result.valid).sum())
        if self._clock() < load.deadline:
            return RUNNING
        # One that no thread has taken yet ends here and now; one that runs goes on without us.
        return 0 if not load.submitted or self._puller.cancel(load.job_id) else IN_FLIGHT

    def _is_over(self, load: Load) -> bool:
        return load.job_id not in self._submitted

    def _end(self, load: Load, state: int) -> None:
        """The ranks have agreed: a load is in flight for longer than anybody waits, or has brought so many pages."""
        self._wait_no_longer(load)
        usable = 0
        if state == IN_FLIGHT:
            logger.warning("a pull of %d pages was given up; they are held until its READ is over", len(load.pages))
            self._late.append(load)
        else:
            self._guard.let_go(load.pages[state:])
            if state and self._use(load, state):
                usable = state
        self._records.ended(load.tracked, load.job_id, load.plan, load.result, load.began, usable=usable)

    def _use(self, load: Load, page_count: int) -> bool:
        """Enter the first pages of a load into SGLang's tree."""
        self._guard.hand_over(load.pages[:page_count])
        tokens = load.token_indexes[: page_count * self._page_tokens]
        return self._enter(load.tracked, load.plan.first_block * self._page_tokens, tokens)

    def _give_up(self, load: Load) -> None:
        """Have nobody wait for a load, and its pages free once nothing can be written to them."""
        self._loads.remove(load)
        self._late.append(load)
        if load.submitted:
            self._puller.cancel(load.job_id)
        self._wait_no_longer(load)
        self._records.ended(load.tracked, load.job_id, load.plan, load.result, load.began, usable=0, wanted=False)

    def _wait_no_longer(self, load: Load) -> None:
        load.tracked.phase = Phase.SETTLED
        self._waits = {rid: other for rid, other in self._waits.items() if other is not load}
