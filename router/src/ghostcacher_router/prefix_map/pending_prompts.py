"""Keeps prompts that were sent to workers until their engines report the chains of blocks that they made of them."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from ghostcacher_router.types import Prompt

PROMPTS_MAX = 20_000
"""The most prompts that are kept."""
BOUNDARIES_MAX = 500_000
"""The most boundaries of all kept prompts. Each takes some 100 bytes: prompts of 128 KiB are kept for 4,000 requests at
a time."""

TTL_S = 600.0
"""How long a prompt is kept. An engine reports a chain when the request reaches it, and again when it is computed, so
this is the longest queue that a client waits in."""


class _Sent(NamedTuple):
    prompt: Prompt
    until: float


class PendingPrompts:
    """Maps request ids to prompts, bounded in number; the oldest are forgotten first. On the event loop only."""

    def __init__(
        self,
        *,
        prompts_max: int = PROMPTS_MAX,
        boundaries_max: int = BOUNDARIES_MAX,
        ttl_s: float = TTL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._prompts_max = prompts_max
        self._boundaries_max = boundaries_max
        self._ttl_s = ttl_s
        self._clock = clock
        self._sent: OrderedDict[str, _Sent] = OrderedDict()
        self._ambiguous: OrderedDict[str, float] = OrderedDict()
        self._boundaries = 0

    def __repr__(self) -> str:
        return f"PendingPrompts(prompts={len(self._sent)}, boundaries={self._boundaries})"

    def __len__(self) -> int:
        return len(self._sent)

    def put(self, request_id: str, prompt: Prompt) -> None:
        """Remember a prompt; anew when its request is tried again. One that is too large is not kept.

        Clients choose the ids. An id that another prompt has as well becomes ambiguous, and neither prompt is kept.
        """
        now = self._clock()
        if request_id in self._sent or request_id in self._ambiguous:
            before = self.pop(request_id)
            if self.is_ambiguous(request_id) or (before is not None and before.digests != prompt.digests):
                self.mark_ambiguous(request_id)
                return
        if len(prompt.ends) > self._boundaries_max:
            return
        self._sent[request_id] = _Sent(prompt, now + self._ttl_s)
        self._boundaries += len(prompt.ends)
        self._forget(now)

    def get(self, request_id: str) -> Prompt | None:
        """Return a prompt; None when it was never put, was popped, or is forgotten."""
        sent = self._sent.get(request_id)
        return None if sent is None or sent.until <= self._clock() else sent.prompt

    def pop(self, request_id: str) -> Prompt | None:
        """Return a prompt as `get` does, and forget it."""
        prompt = self.get(request_id)
        sent = self._sent.pop(request_id, None)
        if sent is not None:
            self._boundaries -= len(sent.prompt.ends)
        return prompt

    def mark_ambiguous(self, request_id: str) -> None:
        """Say that several prompts have this id. That holds for as long as a prompt would be kept."""
        self.pop(request_id)
        self._ambiguous[request_id] = self._clock() + self._ttl_s
        self._ambiguous.move_to_end(request_id)
        if len(self._ambiguous) > self._prompts_max:
            self._ambiguous.popitem(last=False)

    def is_ambiguous(self, request_id: str) -> bool:
        """Say whether several prompts have this id."""
        return self._ambiguous.get(request_id, float("-inf")) > self._clock()

    def _forget(self, now: float) -> None:
        while self._sent:
            request_id, oldest = next(iter(self._sent.items()))
            full = len(self._sent) > self._prompts_max or self._boundaries > self._boundaries_max
            if not full and oldest.until > now:
                return
            del self._sent[request_id]
            self._boundaries -= len(oldest.prompt.ends)
