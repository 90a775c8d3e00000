"""Releases ghost locks in the store, those of one moment together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial

from ghostcacher_connector.core.coordination.base import CoordinationStore
from ghostcacher_connector.core.errors import IndexUnavailable
from ghostcacher_router.ports import Offload

logger = logging.getLogger(__name__)

UNLOCK_PAUSE_S = 0.01
"""From one release in the store to the next: what is over meanwhile is released together. Who waits at another router
looks less often."""


class Unlocks:
    """The keys that are to be released. On the event loop only; the store is asked in threads."""

    def __init__(self, store: CoordinationStore, offload: Offload) -> None:
        self._store, self._offload = store, offload
        self._tokens: dict[bytes, int] = {}
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"Unlocks({len(self._tokens)})"

    def add(self, keys: Sequence[bytes], token: int) -> None:
        """Have keys released: now, or with others a moment later."""
        self._tokens |= dict.fromkeys(keys, token)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._release_all())

    def pop(self, keys: Sequence[bytes]) -> dict[bytes, int]:
        """Return the tokens of those keys that are to be released still, and leave that to the caller."""
        return {key: self._tokens.pop(key) for key in keys if key in self._tokens}

    async def drain(self) -> None:
        """Wait until all are released, or cannot be. Bounded by the store's time-out."""
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    async def _release_all(self) -> None:
        while tokens := self._tokens:
            self._tokens = {}
            try:
                await self._offload(partial(self._store.unlock, tokens))
            except IndexUnavailable as exc:
                logger.debug("ghost locks expire by themselves: %s", exc)
            await asyncio.sleep(UNLOCK_PAUSE_S)
