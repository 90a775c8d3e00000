"""Lookups beside the engine's scheduler: asked in one call, answered in a later one, never waited for.

Life of a lookup: `start` puts it in a bounded queue, a thread asks the index, and `poll` returns the answer, again and
again until `forget`. An engine's scheduler takes it by `take_answer`: there, not yet, or not in time. When the index
fails, lookups are misses at once for `BREAKER_S`, so that requests do not wait for one time-out after another.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Final, Literal, NamedTuple

from ghostcacher_connector.core.breaker import BREAKER_S, Breaker
from ghostcacher_connector.core.errors import IndexUnavailable
from ghostcacher_connector.core.index.base import DEPTHS_MAX, BlockIndex, WorkerRef
from ghostcacher_connector.core.threads import daemon_thread
from ghostcacher_connector.core.types import BlockHash, Location, MissReason, PrefixHit
from ghostcacher_connector.metrics import Recorder
from ghostcacher_connector.pull.cache_groups import ONE_GROUP, CacheGroups, group_key

logger = logging.getLogger(__name__)

THREADS = 2
"""One for a lookup that takes long, one for the others: a lookup takes Redis less than a millisecond."""

QUEUE_MAX = 512
"""Lookups that wait for a thread: as many as an engine's scheduler can ask for in one step. More count as misses."""

ANSWERS_PER_QUEUE = 8
"""Answers kept for requests that were never forgotten, as a multiple of the queue: then the oldest goes."""

WINDOW_LOOKUPS_MAX = 8
"""How often a holder's windows are looked for at an earlier end of one prefix. Each time takes two calls."""

GAP_BLOCKS_MAX = 512
"""How far back from a missing window one call of the index looks for the next one: vLLM keeps those at the ends of
prompts, and an answer and the next question lie between two of them."""


class Pending(Enum):
    """The answer is not there yet."""

    PENDING = "pending"


PENDING: Final = Pending.PENDING


class LookupAnswer(NamedTuple):
    """What the index said."""

    hits: list[PrefixHit]
    """The workers that hold a prefix, the longest one first."""
    seconds: float
    """From `start` to the answer."""
    reason: MissReason | None
    """Why there is no hit; None when there is one."""
    detail: str = ""
    """The reason in words, for logs."""
    ahead: tuple[str, ...] = ()
    """Workers that were about to pull the same before this one; by now they may hold it."""
    longest: int = 0
    """With several KV cache groups: the longest prefix that anybody holds in the first one, with a window or without,
    in blocks."""


class _Asked(NamedTuple):
    """A lookup in the queue."""

    request_id: str
    blocks: Sequence[BlockHash]
    since: float
    """When `start` was called, on the service's clock."""
    held: int | None
    """See `LookupService.start`."""


class LookupService:
    """Asks the index for prefixes, on its own threads.

    candidates: returns the workers that may be asked for; called on these threads, so it must be thread-safe, as must:
    line_up: puts this worker last in the line of those that pull a prefix, which its last block names, and returns who
    is before it. None: it stands in no line.
    groups: of the engine; of several, a holder has what a hit needs in each.
    """

    def __init__(
        self,
        index: BlockIndex,
        candidates: Callable[[], Sequence[WorkerRef]],
        *,
        threads: int = THREADS,
        queue_max: int = QUEUE_MAX,
        locations_for: int = 4,
        line_up: Callable[[BlockHash], Sequence[str]] | None = None,
        groups: CacheGroups = ONE_GROUP,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._index = index
        self.groups = groups
        self._candidates = candidates
        self._queue_max = queue_max
        self._locations_for = locations_for
        self._line_up = line_up
        self._clock = clock
        self._lock = threading.Lock()
        self._asked = threading.Condition(self._lock)
        self._answered = threading.Condition(self._lock)
        self._queue: deque[_Asked] = deque()
        self._answers: dict[str, LookupAnswer | Literal[Pending.PENDING]] = {}
        self._breaker = Breaker(clock)
        self._stopping = False
        self._threads = [daemon_thread("gc-lookup", self._run) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def __repr__(self) -> str:
        return f"LookupService(queued={len(self._queue)}, answers={len(self._answers)})"

    def start(self, request_id: str, blocks: Sequence[BlockHash], *, held: int | None = None) -> None:
        """Ask for the longest prefixes of `blocks`. Never blocks; asking twice changes nothing.

        held: how many leading ones need no pull: where somebody has more, the worker lines up for it. None: it does
        not.
        """
        now = self._clock()
        with self._lock:
            if request_id in self._answers:
                return
            if self._breaker.open:
                self._put(request_id, _unavailable("the index failed a moment ago", 0.0))
            elif self._stopping or len(self._queue) >= self._queue_max:
                self._put(request_id, _unavailable(f"queue full at {self._queue_max}", 0.0))
            else:
                self._put(request_id, PENDING)
                self._queue.append(_Asked(request_id, blocks, now, held))
                self._asked.notify()

    def poll(self, request_id: str, *, wait_s: float = 0.0) -> LookupAnswer | Literal[Pending.PENDING]:
        """Return the answer, or PENDING. Blocks for `wait_s` at most. A request that was never asked for is a miss."""
        with self._lock:
            if wait_s > 0:
                self._answered.wait_for(lambda: self._answers.get(request_id) is not PENDING, wait_s)
            return self._answers.get(request_id) or _unavailable("not asked for, or forgotten", 0.0)

    def forget(self, request_id: str) -> None:
        """Drop a lookup and its answer, whatever its state."""
        with self._lock:
            self._answers.pop(request_id, None)

    def stop(self, timeout_s: float = 1.0) -> None:
        """End the threads, within `timeout_s` each. What is still queued stays pending. Idempotent."""
        with self._lock:
            self._stopping = True
            self._asked.notify_all()
        for thread in self._threads:
            thread.join(timeout_s)

    def _put(self, request_id: str, answer: LookupAnswer | Literal[Pending.PENDING]) -> None:
        while len(self._answers) >= ANSWERS_PER_QUEUE * self._queue_max:
            del self._answers[next(iter(self._answers))]
        self._answers[request_id] = answer

    def _run(self) -> None:
        while (asked := self._next()) is not None:
            try:
                answer = self._answer(asked)
            except Exception:
                # A bug, ours or the client's, must not end the lookups of this worker for good.
                logger.exception("a lookup failed: unexpected error")
                answer = _unavailable("unexpected error", self._clock() - asked.since)
            with self._lock:
                if asked.request_id in self._answers:
                    self._answers[asked.request_id] = answer
                    self._answered.notify_all()

    def _next(self) -> _Asked | None:
        with self._lock:
            while True:
                while self._queue:
                    asked = self._queue.popleft()
                    if asked.request_id in self._answers:
                        return asked
                if self._stopping:
                    return None
                self._asked.wait()

    def _answer(self, asked: _Asked) -> LookupAnswer:
        if self._breaker.open:
            return _unavailable("the index failed a moment ago", self._clock() - asked.since)
        try:
            hits, longest = self._hits(self._candidates(), asked.blocks)
        except IndexUnavailable as exc:
            now = self._clock()
            # Once for each time that it breaks: those that wait in the queue do not get here.
            logger.debug("lookup of request %s: %s; no lookups for %g s", asked.request_id, exc, BREAKER_S)
            self._breaker.trip()
            return _unavailable(str(exc), now - asked.since)
        reason = None if hits else MissReason.NOT_INDEXED
        return LookupAnswer(hits, self._clock() - asked.since, reason, ahead=self._ahead(asked, hits), longest=longest)

    def _hits(self, candidates: Sequence[WorkerRef], blocks: Sequence[BlockHash]) -> tuple[list[PrefixHit], int]:
        """Return who holds a prefix: with several KV cache groups those who have the longest one in all of them.

        With them comes the length of the longest one in the first group.
        """
        hits = self._index.lookup(candidates, blocks, locations_for=self._locations_for)
        if not self.groups.others:
            return hits, 0
        longest = max((hit.length for hit in hits if hit.locations), default=0)
        ends = {hit.incarnation: hit.length for hit in hits if hit.locations}
        for _ in range(WINDOW_LOOKUPS_MAX):
            end = max(ends.values(), default=0)
            holders = {ref.incarnation: ref for ref in candidates if end and ends.get(ref.incarnation) == end}
            if not holders:
                break
            windows = self._windows(list(holders.values()), blocks[:end])
            whole = [
                hit._replace(length=end, locations=hit.locations[:end], windows=found)
                for hit in hits
                if hit.incarnation in holders and not isinstance(found := windows[hit.incarnation], int)
            ]
            if whole:
                return whole, longest
            gaps = {ref: gap for name, ref in holders.items() if isinstance(gap := windows[name], int)}
            ends.update(self._ends_before(gaps, blocks))
        return [], longest

    def _windows(
        self, holders: Sequence[WorkerRef], blocks: Sequence[BlockHash]
    ) -> dict[bytes, tuple[tuple[int, Location], ...] | int]:
        """Return what each holder has in the other groups for a hit of these very blocks, as `PrefixHit` has it.

        Of one that lacks a block, the number of the last such block: it may have a hit of the blocks before that.
        """
        needed = self.groups.needed(len(blocks))
        backwards = sorted(needed, reverse=True)
        keys = [group_key(blocks[index], number) for index, number in backwards]
        found = self._index.lookup(holders, keys, locations_for=len(holders), root=blocks[0])
        at = {hit.incarnation: dict(zip(backwards, hit.locations, strict=False)) for hit in found}
        windows: dict[bytes, tuple[tuple[int, Location], ...] | int] = {}
        for holder in holders:
            held = at.get(holder.incarnation, {})
            if len(held) == len(needed):
                windows[holder.incarnation] = tuple((block, held[block, number]) for block, number in needed)
            else:
                windows[holder.incarnation] = backwards[len(held)][0]
        return windows

    def _ends_before(self, gaps: Mapping[WorkerRef, int], blocks: Sequence[BlockHash]) -> dict[bytes, int]:
        """Return the last end before each holder's gap at which it has a window, going by one group that has windows.

        Whether the other groups have theirs, too, is seen when that end is looked up.
        """
        group = next((group for group in self.groups.others if group.window_blocks), None)
        if group is None or group.window_blocks is None:
            return {ref.incarnation: gap for ref, gap in gaps.items()}
        top = max(gaps.values())
        first = max(0, top - min(GAP_BLOCKS_MAX, DEPTHS_MAX // len(gaps)))
        keys = [[group_key(block, group.number)] for block in blocks[first:top]]
        held = self._index.depths(list(gaps), keys, root=blocks[0])
        ends: dict[bytes, int] = {}
        for place, (ref, gap) in enumerate(gaps.items()):
            end = run = min(first, gap)  # what lies before it is not known, and may be there
            for index, row in enumerate(held[: max(0, gap - first)], first):
                run = run + 1 if row[place] else 0
                if run >= min(index + 1, group.window_blocks):
                    end = index + 1
            ends[ref.incarnation] = end
        return ends

    def _ahead(self, asked: _Asked, hits: Sequence[PrefixHit]) -> tuple[str, ...]:
        """Line up for what the hits promise; return who is before this worker, as far as can be known."""
        if self._line_up is None or asked.held is None or not hits or hits[0].length <= asked.held:
            return ()
        try:
            return tuple(self._line_up(asked.blocks[hits[0].length - 1]))
        except IndexUnavailable as exc:
            logger.debug("lookup of request %s: in no line: %s", asked.request_id, exc)
            return ()


def take_answer(
    lookups: LookupService, recorder: Recorder, request_id: str, *, left_s: float, wait_s: float
) -> LookupAnswer | MissReason | None:
    """Return the answer to a request's lookup if it has hits, why not, or None while it may still come in time.

    left_s: time until the request's deadline. wait_s: how long the caller can wait here; never beyond the deadline.
    """
    answer = lookups.poll(request_id, wait_s=max(0.0, min(wait_s, left_s)))
    if answer is PENDING:
        if left_s > wait_s:
            return None
        lookups.forget(request_id)
        return MissReason.LOOKUP_DEADLINE
    recorder.observe("gc_lookup_seconds", answer.seconds)
    return answer if answer.reason is None else answer.reason


def _unavailable(detail: str, seconds: float) -> LookupAnswer:
    return LookupAnswer([], seconds, MissReason.INDEX_UNAVAILABLE, detail)
