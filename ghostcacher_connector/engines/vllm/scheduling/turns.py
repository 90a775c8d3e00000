"""Has a pull wait while more workers pull the same than there are holders: it is soon to be had from more of them.

A holder's link carries one pull after the other, or several of them slowly. Seven readers of one holder that begin at
once end together, after seven times as long as one alone takes. In turn the first one is a holder after one time, two
more after the second, and the others after the third.

Whoever looks up a prefix is told who was about to pull it before (`BlockIndex.line_up`). While there are as many of
them as holders, or more, the request waits, and looks again; no longer than all of them at once would keep it waiting.
Who says that it pulls, and does not, costs others that time, and no more.

Here it is also judged whether a prefix is worth more copies than one: it is *contended* when others pull it right now,
or when the pulls of it, even one after the other, take more of its holders' links than `LINK_SHARE`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from math import ceil

from ghostcacher_connector.config import Settings
from ghostcacher_connector.engines.vllm.scheduling.requests import Tracked
from ghostcacher_connector.metrics import Recorder
from ghostcacher_connector.pull.forecast import Forecaster
from ghostcacher_connector.pull.planner import PullPlan

PULL_S_MIN = 0.02
"""Shorter pulls are over before a wait would have been of use: it takes a few steps of the scheduler, and as long as it
takes a new holder to be found in the index."""

LOOKS_PER_PULL = 4
"""How often a request that waits looks again while one pull takes."""
LOOK_S_MAX = 0.25
"""But at least as often as this."""


LINK_SHARE = 0.25
"""Of the time of its holders' links the pulls of one prefix may take so much, before whoever pulls it is to keep it.
The links are there for all other prefixes, too."""


class Turns:
    """Whose turn it is. Driven by the scheduler's thread alone."""

    def __init__(
        self,
        settings: Settings,
        forecaster: Forecaster,
        recorder: Recorder,
        *,
        block_tokens: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._forecaster, self._recorder = settings, forecaster, recorder
        self._block_tokens, self._clock = block_tokens, clock

    def awaits(self, tracked: Tracked) -> bool:
        """Say whether a request's pull from peers, which is planned, is to wait."""
        plan = tracked.plan
        assert plan is not None
        end = plan.first_block + plan.block_count
        holders = {hit.worker for hit in tracked.hits if hit.length >= end}
        pulling = [worker for worker in tracked.ahead if worker not in holders]
        tracked.contended = tracked.contended or bool(pulling) or self._crowds_links(tracked, plan, len(holders))
        if len(pulling) < max(1, len(holders)):
            return False
        now = self._clock()
        if tracked.turn_by is None:
            rounds = ceil(len(pulling) / max(1, len(holders)))
            wait_s = self._wait_s(plan.pull_s, plan.block_count, rounds)
            tracked.turn_by = now + wait_s
            if wait_s > 0:
                self._recorder.inc("gc_pull_turns_total", 1)
        return now < tracked.turn_by

    def _crowds_links(self, tracked: Tracked, plan: PullPlan, holders: int) -> bool:
        """Say whether the pulls of this prefix take more than their share of its holders' links.

        As many have pulled it as have lined up within `pull_timeout_s`, each for as long as this one is to take by the
        measured rate of its first source.
        """
        link_s = (1 + len(tracked.ahead)) * plan.pull_s / max(1, holders)
        return bool(tracked.ahead) and link_s > LINK_SHARE * self._settings.pull_timeout_s

    def looks_again(self, tracked: Tracked) -> bool:
        """Say whether a request that waits is to ask the index once more."""
        now, plan = self._clock(), tracked.plan
        assert plan is not None
        return now >= tracked.asked_at + min(LOOK_S_MAX, max(PULL_S_MIN, plan.pull_s) / LOOKS_PER_PULL)

    def _wait_s(self, pull_s: float, blocks: int, rounds: int) -> float:
        """Return how long a pull may wait: no longer than those before it take, nor until computing is faster."""
        if pull_s < PULL_S_MIN:
            return 0.0
        if self._settings.pull == "always":
            return min(rounds * pull_s, self._settings.pull_timeout_s)
        gain_s = self._forecaster.compute_s(blocks * self._block_tokens) - pull_s
        return max(0.0, min(rounds * pull_s, gain_s, self._settings.pull_timeout_s))
