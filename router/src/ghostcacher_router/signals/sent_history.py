"""Where this router sent which text: all that it knows of plain engines, and of others until they report.

A placement is one object, `Sent`, that all its boundaries refer to: that it is computed, or has failed, is noted once,
however long the prompt is. Who entered a boundary has entered those before it, too, so entering stops at the first
boundary of which as much is known already: a hot prefix costs one look.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from math import inf
from typing import NamedTuple

from ghostcacher_router.types import Prompt

ENTRIES_MAX = 1 << 17
"""Boundaries remembered: 22 to 50 MiB, the more the shorter prompts are."""

PER_PROMPT_MAX = 64
"""Of a longer prompt only some boundaries are remembered, the ends of its sections among them."""

TTL_S = 600.0
"""A plain engine's cache is a few minutes of its traffic; what was sent before has likely been evicted."""

WORKERS_MAX = 4096

HOLDERS_MAX = 4
"""A text that one worker cannot serve alone overflows to a few more."""


class Sent:
    """A text that was sent to a worker. at: loop clock, s. done_at: since when it has computed it; inf: not yet.

    digests: of the boundaries at which it is remembered; it is entered at all but the first `left` of them.
    """

    __slots__ = ("at", "digests", "done_at", "left", "worker")

    def __init__(self, worker: str, at: float, digests: Sequence[bytes]) -> None:
        self.worker, self.at, self.done_at = worker, at, inf
        self.digests, self.left = digests, len(digests)

    def __repr__(self) -> str:
        return f"Sent({self.worker}, at={self.at:.3f}, done_at={self.done_at:.3f})"


class Remembered(NamedTuple):
    """boundary: index of the deepest one of a prompt that was sent before. holders: where to, latest first."""

    boundary: int
    holders: tuple[Sent, ...]


class SentHistory:
    """Boundary digest -> the latest placements of prompts with it, least recently used forgotten first."""

    def __init__(self, entries_max: int = ENTRIES_MAX) -> None:
        self._entries_max = entries_max
        self._entries: OrderedDict[bytes, tuple[Sent, ...]] = OrderedDict()
        self._gone_at: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"SentHistory(boundaries={len(self._entries)})"

    def find(self, prompt: Prompt, now: float) -> Remembered | None:
        """Return the deepest boundary of the prompt that was sent somewhere, not too long ago."""
        entries = self._entries
        if not entries:
            return None
        digests = prompt.digests
        for index in range(len(digests) - 1, -1, -1):
            found = entries.get(digests[index])
            if found is not None and (holders := self._holding(found, now)):
                entries.move_to_end(digests[index])
                return Remembered(index, holders)
        return None

    def record(self, prompt: Prompt, worker: str, now: float) -> Sent:
        """Note that the prompt goes to a worker; `computed` and `withdraw` tell how it went."""
        sent = Sent(worker, now, _some(prompt))
        self._enter(sent, now)
        return sent

    def computed(self, sent: Sent, now: float, done_at: float) -> None:
        """Note since when a worker has computed what it was sent. May be called again: the earliest time counts."""
        sent.done_at = min(sent.done_at, done_at)
        if sent.left:
            self._enter(sent, now)

    def withdraw(self, sent: Sent) -> None:
        """Take back what was noted of a placement: it has failed."""
        sent.at = -inf

    def ended(self, sent: Sent) -> None:
        """Nothing more will be told of a placement: keep no more of it than where it is entered."""
        sent.digests, sent.left = (), 0

    def forget_worker(self, worker: str, now: float) -> None:
        """Forget what a worker was sent before now: its cache is gone."""
        self._gone_at.pop(worker, None)
        self._gone_at[worker] = now
        if len(self._gone_at) > WORKERS_MAX:
            del self._gone_at[next(iter(self._gone_at))]

    def clear(self) -> None:
        self._entries.clear()

    def _enter(self, sent: Sent, now: float) -> None:
        """Enter a placement at its boundaries, deepest first, down to where as much is known already."""
        entries, digests, left = self._entries, sent.digests, sent.left
        known: tuple[Sent, ...] | None = None
        entered: tuple[Sent, ...] = ()
        while left:
            digest = digests[left - 1]
            found = entries.get(digest)
            # Neighbours mostly have one history, and share what comes of it.
            if not entered or found is not known:
                before = () if found is None else self._holding(found, now)
                if _says(before, sent, now):
                    break
                # Of the same worker's, one that may still come to be computed stays: this one can be withdrawn.
                others = [one for one in before if one.worker != sent.worker or one.done_at == inf]
                known, entered = found, (sent, *others[: HOLDERS_MAX - 1])
            entries[digest] = entered
            entries.move_to_end(digest)
            left -= 1
        sent.left = left
        while len(entries) > self._entries_max:
            entries.popitem(last=False)

    def _holding(self, found: tuple[Sent, ...], now: float) -> tuple[Sent, ...]:
        """Return the placements that still count."""
        gone_at = self._gone_at
        for sent in found:
            if now - sent.at > TTL_S or gone_at.get(sent.worker, -inf) > sent.at:
                return tuple(one for one in found if now - one.at <= TTL_S and gone_at.get(one.worker, -inf) <= one.at)
        return found


def _says(known: tuple[Sent, ...], new: Sent, now: float) -> bool:
    """Say whether what is known of a boundary is as good with the new placement as without."""
    if new.done_at == inf:
        # What one worker has computed stays true when the text is sent once more.
        return bool(known) and _is_fresh(known[0], now) and (known[0].worker == new.worker or known[0].done_at < inf)
    done = [sent.worker for sent in known if sent.done_at < inf and _is_fresh(sent, now)]
    return new.worker in done or len(done) >= HOLDERS_MAX


def _is_fresh(sent: Sent, now: float) -> bool:
    """Say whether a placement need not be replaced by one that says the same, so that it does not grow old in use."""
    return now - sent.at <= TTL_S / 2


def _some(prompt: Prompt) -> Sequence[bytes]:
    """Return the digests at which a prompt is remembered, the same ones for what prompts of any length share."""
    digests = prompt.digests
    if len(digests) <= PER_PROMPT_MAX:
        return digests
    stride = 1 << (-(-len(digests) // PER_PROMPT_MAX) - 1).bit_length()
    chosen = {*range(stride - 1, len(digests), stride), *(index for _, index in prompt.section_ends[-PER_PROMPT_MAX:])}
    return [digests[index] for index in sorted(chosen)]
