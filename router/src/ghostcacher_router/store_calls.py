"""Bounds calls to the store beyond the client's own time-outs.

Each wait for Redis is bounded by `redis_timeout_s`, but a name that cannot be resolved holds up a thread for as long as
the resolver of the system likes. Whoever waits for such a call gives up, as if Redis did not answer; the thread itself
comes back when it can.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
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


async def bounded(call: Awaitable[T], limit_s: float) -> T:
    """Return what a call returns. Raises IndexUnavailable when it has not ended within `limit_s`."""
    try:
        async with asyncio.timeout(limit_s):
            return await call
    except TimeoutError:
        raise IndexUnavailable(f"a call has not ended within {limit_s:g} s: is the name of Redis resolved?") from None
