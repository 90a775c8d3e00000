"""Keeps chains that engines have reported under ids of their own, until an answer tells whose request that was.

vLLM names a request to /v1/responses by the id of its answer, ``resp_...``, which no router knows before the answer
begins: with a stream that is at once, without one at its end. Every router reads every worker's chains, so most of
these belong to requests of others, and grow old here.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from ghostcacher_connector.core.coordination.base import PromptChain

ENGINE_ID = "resp_"
"""Begins the ids that engines make."""
HASHES_MAX = 100_000
"""The most hashes of all kept chains: some 8 MB, or the prompts of 1,500 requests of 8,000 tokens."""
TTL_S = 600.0
"""As long as a prompt is kept."""


class _Held(NamedTuple):
    namespace: str
    chain: PromptChain | None
    """None when several requests had this id: nobody knows whose chain is whose."""
    until: float


class EarlyChains:
    """Maps ids of answers to chains, bounded; the oldest are forgotten first. On the event loop only."""

    def __init__(
        self, *, hashes_max: int = HASHES_MAX, ttl_s: float = TTL_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._hashes_max, self._ttl_s, self._clock = hashes_max, ttl_s, clock
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._hashes = 0

    def __repr__(self) -> str:
        return f"EarlyChains(chains={len(self._held)}, hashes={self._hashes})"

    def put(self, namespace: str, chain: PromptChain) -> None:
        """Keep a chain, if it is named by an engine."""
        if not chain.request.startswith(ENGINE_ID):
            return
        before = self._held.pop(chain.request, None)
        self._hashes -= _size(before)
        again = before is not None and before.chain == chain
        held = _Held(namespace, chain if before is None or again else None, self._clock() + self._ttl_s)
        self._held[chain.request] = held
        self._hashes += _size(held)
        self._forget()

    def pop(self, answer_id: str) -> tuple[str, PromptChain] | None:
        """Return the namespace and the chain of the request that got this answer, and forget them; None if unknown."""
        held = self._held.pop(answer_id, None)
        self._hashes -= _size(held)
        if held is None or held.chain is None or held.until <= self._clock():
            return None
        return held.namespace, held.chain

    def _forget(self) -> None:
        now = self._clock()
        while self._held:
            oldest = next(iter(self._held.values()))
            if oldest.until > now and self._hashes <= self._hashes_max:
                return
            self._held.popitem(last=False)
            self._hashes -= _size(oldest)


def _size(held: _Held | None) -> int:
    """Return what a held chain counts: its hashes, and one for itself."""
    return 0 if held is None else 1 + (0 if held.chain is None else len(held.chain.hashes))
