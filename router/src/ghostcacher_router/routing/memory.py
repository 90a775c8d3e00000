"""Where this router sent which text: all that it knows of plain engines, and of others until they report."""

from __future__ import annotations

from collections import OrderedDict
from math import inf
from typing import NamedTuple

from ghostcacher_router.types import Prompt

ENTRIES_MAX = 1 << 17
"""Boundaries remembered: some 30 MB."""

PER_PROMPT_MAX = 64
"""Of a longer prompt only some boundaries are remembered, the ends of its typed blocks among them."""

TTL_S = 600.0
"""A plain engine's cache is a few minutes of its traffic; what was sent before has likely been evicted."""

WORKERS_MAX = 4096

SETTLED = 0
"""No placement: what has ended well is not undone by whoever was sent the same."""

OTHERS_MAX = 3
"""A text that one worker cannot serve alone overflows to a few more."""


class Sent(NamedTuple):
    """A worker that a text was sent to. at: loop clock, s. done_at: since when it has computed it; inf: not yet.

    others: that it was sent to before, latest first. by: the number of the placement that this can be withdrawn by.
    """

    worker: str
    at: float
    done_at: float
    others: tuple[str, ...] = ()
    by: int = SETTLED


class Remembered(NamedTuple):
    """boundary: index of the deepest one of a prompt that was sent before."""

    boundary: int
    sent: Sent


class Memory:
    """Boundary digest -> the worker that last got a prompt with it, least recently used forgotten first."""

    def __init__(self, entries_max: int = ENTRIES_MAX) -> None:
        self._entries_max = entries_max
        self._sent: OrderedDict[bytes, Sent] = OrderedDict()
        self._gone_at: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"Memory(boundaries={len(self._sent)})"

    def find(self, prompt: Prompt, now: float) -> Remembered | None:
        """Return the deepest boundary of the prompt that was sent somewhere, not too long ago."""
        sent = self._sent
        if not sent:
            return None
        digests = prompt.digests
        for index in range(len(digests) - 1, -1, -1):
            found = sent.get(digests[index])
            if found is not None and self._holds(found, now):
                sent.move_to_end(digests[index])
                return Remembered(index, found)
        return None

    def record(self, prompt: Prompt, worker: str, now: float, *, done_at: float = inf, by: int = SETTLED) -> None:
        """Note that the prompt goes to a worker, or (done_at) since when this one has it computed.

        by: number of the placement, as long as it can still fail.
        """
        sent, entry = self._sent, Sent(worker, now, done_at, by=by)
        for digest in reversed(_some(prompt)):
            known = sent.get(digest)
            # What one worker has computed stays true when the text is sent once more. Whoever recorded a boundary has
            # recorded those before it, too: a hot prefix ends this at once.
            if known is not None and now - known.at <= TTL_S / 2 and self._holds(known, now) and _says(known, entry):
                break
            others = () if known is None or not self._holds(known, now) else _others(known, worker)
            sent[digest] = entry._replace(others=others) if others else entry
            sent.move_to_end(digest)
        while len(sent) > self._entries_max:
            sent.popitem(last=False)

    def withdraw(self, prompt: Prompt, *, by: int) -> None:
        """Take back what `record` noted for a placement, and no other has confirmed: it has failed."""
        for digest in _some(prompt):
            known = self._sent.get(digest)
            if known is not None and known.by == by:
                del self._sent[digest]

    def forget_worker(self, worker: str, now: float) -> None:
        """Forget what a worker was sent before now: its cache is gone."""
        self._gone_at.pop(worker, None)
        self._gone_at[worker] = now
        if len(self._gone_at) > WORKERS_MAX:
            del self._gone_at[next(iter(self._gone_at))]

    def clear(self) -> None:
        self._sent.clear()

    def _holds(self, sent: Sent, now: float) -> bool:
        return now - sent.at <= TTL_S and self._gone_at.get(sent.worker, -inf) <= sent.at


def _others(known: Sent, worker: str) -> tuple[str, ...]:
    before = (known.worker, *known.others)
    return tuple(name for name in before if name != worker)[:OTHERS_MAX]


def _says(known: Sent, new: Sent) -> bool:
    """Say whether what is known is as good as what is new."""
    if known.worker == new.worker:
        # What a second request shows to be true must outlive the failure of the first.
        return known.done_at <= new.done_at and (known.by in (SETTLED, new.by) or new.done_at == inf)
    return known.done_at < inf and new.done_at == inf


def _some(prompt: Prompt) -> list[bytes]:
    digests = prompt.digests
    if len(digests) <= PER_PROMPT_MAX:
        return list(digests)
    stride = -(-len(digests) // PER_PROMPT_MAX)
    chosen = {*range(stride - 1, len(digests), stride), *(index for _, index in prompt.block_ends[-PER_PROMPT_MAX:])}
    return [digests[index] for index in sorted(chosen)]
