"""Remembers which prompt this router sent to which worker.

That is all that it knows of plain engines, and all that it knows of others until they report. A placement is one
object, `SentPrompt`, to which all its boundaries refer: that its prompt is computed, or has failed, is noted once,
however long the prompt is. A prompt that was added at one boundary was added at all before it, too, so adding stops at
the first boundary that says as much already: a hot prefix costs one look-up.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from math import inf
from typing import NamedTuple

from ghostcacher_connector.core.index.base import WorkerRef
from ghostcacher_router.types import Prompt

ENTRIES_MAX = 1 << 17
"""Boundaries remembered: 22 to 50 MiB, the more the shorter prompts are."""

PER_PROMPT_MAX = 64
"""Of a longer prompt only some boundaries are remembered, the ends of its sections among them."""

TTL_S = 600.0
"""A plain engine's cache is a few minutes of its traffic; what was sent before has likely been evicted."""

RENEWED_S = TTL_S / 2
"""A placement older than this is replaced by one that says the same, lest it expires while in use."""

ANSWERED_S = 5.0
"""For so long after its answer began a prompt counts as held by its worker, whatever the index says, unless the worker
has reported it: publishing, reporting and looking up take time. The index knows better after that, or after the report.
"""

WORKERS_MAX = 4096

HOLDERS_MAX = 4
"""Workers remembered for one boundary: a prefix that one worker cannot serve alone overflows to a few more."""


class SentPrompt:
    """A prompt that was sent to a worker."""

    __slots__ = (
        "at",
        "computed_at",
        "digests",
        "done_at",
        "due_at",
        "held",
        "left",
        "ref",
        "reported_at",
        "used",
        "worker",
    )

    def __init__(self, worker: str, ref: WorkerRef | None, at: float, digests: Sequence[bytes]) -> None:
        self.worker = worker
        self.ref = ref
        """The worker's incarnation at that time: another one has nothing of it. None of a plain engine."""
        self.at = at
        """When it was placed; loop clock, s."""
        self.computed_at = inf
        """When this router learned that the worker has computed it; loop clock, s. Infinite until then."""
        self.done_at = inf
        """Since when peers can pull it; loop clock, s. Infinite until it is computed."""
        self.reported_at = inf
        """When the worker itself reported that it has computed it; loop clock, s. Infinite until then."""
        self.due_at = inf
        """Until when it can be expected to be computed; loop clock, s. Later than that its worker may have stalled."""
        self.digests = digests
        """The digests of the boundaries at which it is to be remembered."""
        self.held = len(digests)
        """At so many of these boundaries, the first ones, its worker had it already when it was placed."""
        self.left = len(digests)
        """It has been added at all of these boundaries but the first `left`."""
        self.used = 0
        """When a prompt that goes on from it was last sent to the worker, by whatever counts upwards."""

    def __repr__(self) -> str:
        return f"SentPrompt({self.worker}, at={self.at:.3f}, done_at={self.done_at:.3f})"

    @property
    def settled_at(self) -> float:
        """Return from when on the index knows whether the worker holds it; loop clock, s. Infinite before the answer.

        An index that was asked later is right where it says no: the blocks were published, and are evicted.
        """
        answered = self.computed_at + ANSWERED_S
        return self.reported_at if self.reported_at < answered else answered


class HistoryMatch(NamedTuple):
    """The longest part of a prompt that was sent before."""

    boundary: int
    """Index of the boundary at which that part ends."""
    holders: tuple[SentPrompt, ...]
    """The placements that had it, latest first."""


class SentHistory:
    """Boundary digest -> the latest placements of prompts with it. The least recently used are forgotten first."""

    def __init__(self, entries_max: int = ENTRIES_MAX) -> None:
        self._entries_max = entries_max
        self._entries: OrderedDict[bytes, tuple[SentPrompt, ...]] = OrderedDict()
        self._gone_at: dict[str, float] = {}
        """When a worker lost its cache, by name."""

    def __repr__(self) -> str:
        return f"SentHistory(boundaries={len(self._entries)})"

    def find(self, prompt: Prompt, now: float) -> HistoryMatch | None:
        """Return the deepest boundary of the prompt that was sent somewhere, not too long ago."""
        entries = self._entries
        if not entries:
            return None
        digests = prompt.digests
        index = len(digests)
        for found in map(entries.get, reversed(digests)):
            index -= 1
            if found is not None and (holders := self._valid(found, now)):
                entries.move_to_end(digests[index])
                return HistoryMatch(index, holders)
        return None

    def computed_elsewhere(self, prompt: Prompt, worker: str, now: float) -> tuple[int, SentPrompt] | None:
        """Return the index of the deepest boundary that another worker has computed, and its placement."""
        for index in range(len(prompt.digests) - 1, -1, -1):
            for sent in self._valid(self._entries.get(prompt.digests[index], ()), now):
                if sent.worker != worker and sent.computed_at <= now:
                    return index, sent
        return None

    def holders(self, digest: bytes, now: float) -> list[str]:
        """Return the workers that prompts with a boundary were sent to lately, for people: nothing counts as used."""
        return [sent.worker for sent in self._valid(self._entries.get(digest, ()), now)]

    def record(
        self,
        prompt: Prompt,
        worker: str,
        now: float,
        ref: WorkerRef | None = None,
        *,
        held_share: float = 1.0,
        due_at: float = inf,
        used: int = 0,
    ) -> SentPrompt:
        """Note that the prompt goes to a worker; `computed` and `withdraw` say how it went.

        held_share: how much of it, from its beginning, the worker has already.
        due_at: until when it can be expected to be computed; loop clock, s.
        used: counts upwards, so that of two of its holders the one that was used last can be told.
        """
        sent = SentPrompt(worker, ref, now, _sample(prompt))
        sent.held, sent.due_at, sent.used = int(held_share * len(sent.digests)), due_at, used
        self._add(sent, now)
        return sent

    def computed(self, sent: SentPrompt, now: float, done_at: float, *, reported: bool = False) -> None:
        """Note that a worker has computed what it was sent. May be called again: the earliest times count.

        done_at: since when peers can pull it. reported: whether the worker itself says so, and not only its answer.
        """
        sent.computed_at = min(sent.computed_at, now)
        sent.done_at = min(sent.done_at, done_at)
        if reported:
            sent.reported_at = min(sent.reported_at, now)
        if sent.left:
            self._add(sent, now)

    def withdraw(self, sent: SentPrompt) -> None:
        """Take back what was noted of a placement: it has failed."""
        sent.at = -inf

    def ended(self, sent: SentPrompt) -> None:
        """Note that a placement is over: of its prompt no more is kept than where it has been added."""
        sent.digests, sent.left = (), 0

    def forget_worker(self, worker: str, now: float) -> None:
        """Forget what a worker was sent before now: its cache is gone."""
        self._gone_at.pop(worker, None)
        self._gone_at[worker] = now
        if len(self._gone_at) > WORKERS_MAX:
            del self._gone_at[next(iter(self._gone_at))]

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()

    def _add(self, sent: SentPrompt, now: float) -> None:
        """Add a placement at its boundaries, deepest first, down to one that says as much already."""
        entries, digests, left = self._entries, sent.digests, sent.left
        known: tuple[SentPrompt, ...] | None = None
        added: tuple[SentPrompt, ...] = ()
        while left:
            digest = digests[left - 1]
            found = entries.get(digest)
            # Neighbours mostly have one history, and share what comes of it.
            if not added or found is not known or left == sent.held:
                before = () if found is None else self._valid(found, now)
                if _says_as_much(before, sent, now, brought=left > sent.held):
                    if sent.used:
                        _use(before, sent)
                    break
                # Of the same worker's, one that may still come to be computed stays: this one can be withdrawn.
                others = [one for one in before if one.worker != sent.worker or one.done_at == inf]
                known, added = found, (sent, *others[: HOLDERS_MAX - 1])
            entries[digest] = added
            entries.move_to_end(digest)
            left -= 1
        sent.left = left
        while len(entries) > self._entries_max:
            entries.popitem(last=False)

    def _valid(self, found: tuple[SentPrompt, ...], now: float) -> tuple[SentPrompt, ...]:
        """Return the placements that still count."""
        gone_at = self._gone_at
        for sent in found:
            if now - sent.at > TTL_S or (gone_at and gone_at.get(sent.worker, -inf) > sent.at):
                return tuple(one for one in found if now - one.at <= TTL_S and gone_at.get(one.worker, -inf) <= one.at)
        return found


def _use(known: tuple[SentPrompt, ...], by: SentPrompt) -> None:
    """Note that what a worker was sent before is used by a prompt that goes on from it."""
    for sent in known:
        if sent.worker == by.worker and sent.used < by.used:
            sent.used = by.used


def _says_as_much(known: tuple[SentPrompt, ...], new: SentPrompt, now: float, *, brought: bool) -> bool:
    """Return whether what is known of a boundary is as good without the new placement as with it.

    brought: whether the new placement has the text before the boundary computed or pulled.
    """
    # Plain loops: this is asked several times of each request.
    worker, many = new.worker, 0
    if new.done_at == inf:
        if not brought:
            # What one worker has computed stays true when the prompt is sent once more.
            first = known[0] if known else None
            if first is None or now - first.at > RENEWED_S:
                return False
            return first.worker == worker or first.done_at < inf
        # It is brought there now, or again. Where that is known, a second request for it says no more.
        for sent in known:  # noqa: SIM110 -- a generator takes as long again
            if sent.worker == worker and sent.done_at == inf and now - sent.at <= RENEWED_S:
                return True
        return False
    for sent in known:
        if sent.done_at < inf and now - sent.at <= RENEWED_S:
            if sent.worker == worker:
                # An older answer says less than a new one: what was evicted since then has been computed again.
                return now - sent.computed_at <= ANSWERED_S
            many += 1
    return many >= HOLDERS_MAX


def _sample(prompt: Prompt) -> Sequence[bytes]:
    """Return the digests at which a prompt is remembered: of a shared part the same ones for prompts of any length."""
    digests = prompt.digests
    if len(digests) <= PER_PROMPT_MAX:
        return digests
    stride = 1 << (-(-len(digests) // PER_PROMPT_MAX) - 1).bit_length()
    chosen = list(digests[stride - 1 :: stride])
    for index in sorted({index for _, index in prompt.section_ends[-PER_PROMPT_MAX:]}, reverse=True):
        if (index + 1) % stride:
            chosen.insert((index + 1) // stride, digests[index])
    return chosen
