"""Batches blocking reads: what is asked for while one batch is under way goes with the next."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from ghostcacher_connector.core.breaker import Breaker
from ghostcacher_connector.core.errors import IndexUnavailable
from ghostcacher_router.ports import Clock, Offload

logger = logging.getLogger(__name__)

K = TypeVar("K")
V = TypeVar("V")

BATCH_MAX = 64
"""Keys in one batch."""


class Coalescer(Generic[K, V]):
    """Asks for the values of many keys at once, in a thread, one batch at a time.

    After a failure nothing is asked for a moment, and nobody waits.
    """

    def __init__(
        self,
        prepare: Callable[[Sequence[K]], Callable[[], Sequence[V]]],
        received: Callable[[K, V], None],
        offload: Offload,
        *,
        clock: Clock,
        queue_max: int = 1024,
    ) -> None:
        """Make one that is idle.

        prepare: called on the loop; returns the blocking call that returns a value for each key, in order, or raises
            IndexUnavailable.
        received: called on the loop with each key and its value.
        offload: runs the blocking call.
        queue_max: keys that may wait for the next batch; beyond, a key is not asked for.
        """
        self._prepare, self._received, self._offload = prepare, received, offload
        self._queue_max = queue_max
        self._asked: dict[K, asyncio.Future[bool] | None] = {}
        self._under_way: dict[K, asyncio.Future[bool] | None] = {}
        self._task: asyncio.Task[None] | None = None
        self._breaker = Breaker(clock)

    def __repr__(self) -> str:
        return f"Coalescer(asked={len(self._asked)}, broken={self.broken})"

    @property
    def broken(self) -> bool:
        """Whether it failed a moment ago: asking is of no use now."""
        return self._breaker.open

    def refresh(self, key: K) -> None:
        """Ask for a key without waiting."""
        if key not in self._asked and key not in self._under_way and not self.broken:
            self._put(key, None)

    async def wait(self, key: K, timeout_s: float) -> bool:
        """Ask for a key; return whether its value was received in time."""
        if self.broken:
            return False
        future = self._under_way.get(key) or self._asked.get(key)
        if future is None:
            future = asyncio.get_running_loop().create_future()
            if key in self._under_way:
                self._under_way[key] = future
            elif not self._put(key, future):
                return False
        try:
            # Not wait_for: up to Python 3.11 it goes on when it is cancelled while the answer comes.
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(future)
        except TimeoutError:
            return False

    def stop(self) -> None:
        """Ask for nothing more. Whoever waits gets no answer."""
        self._breaker.trip(float("inf"))
        if self._task is not None:
            self._task.cancel()

    def _put(self, key: K, future: asyncio.Future[bool] | None) -> bool:
        if key not in self._asked and len(self._asked) >= self._queue_max:
            return False
        self._asked[key] = future
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())
        return True

    async def _run(self) -> None:
        try:
            while self._asked:
                keys = list(self._asked)[:BATCH_MAX]
                self._under_way = {key: self._asked.pop(key) for key in keys}
                answers = await self._offload(self._prepare(keys))
                for key, answer in zip(keys, answers, strict=True):
                    self._received(key, answer)
                self._resolve(self._under_way, True)
        except IndexUnavailable as exc:
            logger.debug("asking for %d keys: %s", len(self._under_way), exc)
            self._breaker.trip()
        finally:
            # Also when it was cancelled, or a bug ended it: nobody may wait for an answer that never comes.
            self._resolve(self._under_way, False)
            self._resolve(self._asked, False)

    @staticmethod
    def _resolve(asked: dict[K, asyncio.Future[bool] | None], answered: bool) -> None:
        for future in asked.values():
            if future is not None and not future.done():
                future.set_result(answered)
        asked.clear()
