"""Finds out what of a prompt is worth pulling: asks the index, weighs, and answers SGLang's `lookup`.

The index is asked when the request enters the queue. SGLang looks for a prefix when it builds a batch, some hundred
microseconds later when it is idle. An answer that is not there yet is waited for on the scheduler's thread for a few
milliseconds, since the next batch may be a long one; then the request waits in the queue (scheduler.py), until the
lookup's deadline at most, while others are computed.

Every rank asks for itself; SGLang takes what all of them can pull. Driven by the scheduler's thread alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile

from ghostcacher_connector.config import Settings
from ghostcacher_connector.core.tracing import Tracer
from ghostcacher_connector.core.types import BlockHash
from ghostcacher_connector.engines.common.prefix_matcher import PrefixMatcher
from ghostcacher_connector.engines.common.pull_state import Phase
from ghostcacher_connector.engines.sglang.scheduling.requests import Tracked
from ghostcacher_connector.metrics import Recorder
from ghostcacher_connector.pull.forecast import Forecaster
from ghostcacher_connector.pull.lookups import LookupService
from ghostcacher_connector.tiers.host_tier import HostTier

PATIENCE_S = 0.005
"""One pass of the scheduler waits no longer for all answers together: an index in good health needs about 1 ms."""


class Matcher(PrefixMatcher):
    """Decides, request by request, what to pull from whom."""

    def __init__(
        self,
        settings: Settings,
        lookups: LookupService,
        forecaster: Forecaster,
        recorder: Recorder,
        *,
        page_tokens: int,
        page_bytes: int,
        pages_max: int,
        holds: Callable[[BlockHash], bool],
        tier: HostTier | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        """Prepare for one rank's requests.

        page_bytes: bytes of one page on one rank. pages_max: pages of one pull at most. holds: says whether this engine
        has a block. tier, tracer: see `PrefixMatcher`.
        """
        super().__init__(
            settings,
            lookups,
            forecaster,
            recorder,
            block_tokens=page_tokens,
            block_bytes=page_bytes,
            tier=tier,
            tracer=tracer,
        )
        self._pages_max = pages_max
        self._holds = holds
        self._patience_s = PATIENCE_S

    def begin_pass(self) -> None:
        """A pass of the scheduler begins: it has patience anew."""
        self._patience_s = PATIENCE_S

    def ask(self, tracked: Tracked) -> None:
        """Start the lookup for a request that has just arrived, unless there is nothing to look up."""
        self._start_lookup(tracked, tracked.chain[: tracked.pullable], lambda index: self._holds(tracked.chain[index]))

    def match(self, tracked: Tracked, keys: Sequence[str]) -> int | None:
        """Return how many of these pages to pull, or None while the index's answer may still come in time.

        keys: of the pages beyond those in this engine's own cache.
        """
        first = page_of(tracked, keys[0])
        if first is None:
            return 0
        count: int | None = 0
        if tracked.phase is Phase.HELD and first < tracked.pullable:
            self._not_all_held(tracked, tracked.chain[: tracked.pullable], first)
        if tracked.phase is Phase.ASKED:
            count = self._answered_in_time(tracked, first)
        elif tracked.phase is Phase.PLANNED:
            count = self._planned(tracked, first)
        return None if count is None else min(count, common_pages(tracked, first, keys), self._pages_max)

    def _answered_in_time(self, tracked: Tracked, first: int) -> int | None:
        """Wait for the index's answer as long as the pass has patience; return how many pages to pull, once it came."""
        asked = self._clock()
        count = self._answered(tracked, first, wait_s=self._patience_s)
        waited_s = self._clock() - asked
        self._patience_s = max(0.0, self._patience_s - waited_s)
        self._recorder.observe("gc_lookup_wait_seconds", waited_s)
        return count


def page_of(tracked: Tracked, key: str) -> int | None:
    """Return the position of a page in a request's prompt; None when it is not in it."""
    try:
        return tracked.names.index(bytes.fromhex(key))
    except ValueError:
        return None


def common_pages(tracked: Tracked, first: int, keys: Sequence[str]) -> int:
    """Return how many of these pages, from the first one on, are those of a request's prompt from `first` on.

    Names, not numbers, say what a page is to hold: a request may be known under a name that another one has, too.
    """
    expected = tracked.names[first : first + len(keys)]
    same = (bytes.fromhex(key) == block for key, block in zip(keys, expected, strict=False))
    return sum(1 for _ in takewhile(bool, same))
