"""Calls the store in threads, and bounds each call beyond the client's own time-outs.

Each wait for Redis is bounded by `redis_timeout_s`, but a name that cannot be resolved holds up a thread for as long as
the resolver of the system likes. Whoever waits for such a call gives up, as if Redis did not answer; the thread itself
comes back when it can.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from ghostcacher_connector.core.errors import IndexUnavailable

T = TypeVar("T")

_WAITS = 8
"""Waits for the network in one call, at most: connecting to a node, to a node that it names, one more try of both."""
_SLACK_S = 3.0
"""For waiting behind other calls of the same threads, on a busy machine."""


def call_s_max(timeout_s: float) -> float:
    """Return how long a call may take in which each wait is bounded by `timeout_s`; what takes longer hangs."""
    return _SLACK_S + _WAITS * timeout_s


class StoreThreads:
    """Runs blocking calls in threads of its own: an `Offload`. On the event loop only."""

    def __init__(self, count: int, name: str, *, limit_s: float) -> None:
        """count: calls that run at a time. name: of the threads. limit_s: a call that takes longer hangs."""
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=name)
        self._name = name
        self._limit_s = limit_s

    def __repr__(self) -> str:
        return f"StoreThreads({self._name}, limit_s={self._limit_s:g})"

    async def __call__(self, call: Callable[[], T], /) -> T:
        """Return what a call returns, or raise what it raises; IndexUnavailable when it has not ended in time."""
        try:
            async with asyncio.timeout(self._limit_s):
                return await asyncio.get_running_loop().run_in_executor(self._pool, call)
        except TimeoutError:
            message = f"a call has not ended within {self._limit_s:g} s: is the name of Redis resolved?"
            raise IndexUnavailable(message) from None

    def close(self) -> None:
        """Take no more calls, and drop those that have not begun; one that is under way ends when it can."""
        self._pool.shutdown(wait=False, cancel_futures=True)
