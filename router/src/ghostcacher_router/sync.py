"""What the routers share, coming in and going out: news of workers, learned texts, sessions, locks; and hello.

    store --read--> news  -> what the sender of a prompt learns -> texts --append--> store
                          -> which prompts are computed -> Picker
                 -> texts -> the learned map, as every replica has it
    Picker's sessions, locks --write, renew--> store

A reader asks for more only when it has handled what came. While the store is away everything waits and tries again;
what should have been told meanwhile is dropped, oldest first, when there is too much.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from ghostcacher_connector.core.coordination.base import (
    Batch,
    CoordinationStore,
    Cursor,
    Flush,
    HeartbeatReply,
    PrefixMapUpdate,
    WorkerEvents,
)
from ghostcacher_connector.core.errors import IndexUnavailable
from ghostcacher_router.ghostlock.single_flight import RENEW_S
from ghostcacher_router.placement.context import Dependencies, RoutingState
from ghostcacher_router.placement.picker import Picker

logger = logging.getLogger(__name__)

T = TypeVar("T")

HELLO_S = 2.0
HELLO_TTL_S = 10.0
WRITE_S = 0.5
"""Between two writes of sessions: another replica may see one so much later."""

READ_ITEMS = 256
READ_BLOCK_S = 0.5
APPEND_ITEMS = 64
UNTOLD_MAX = 4096
BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.05, 2.0
AWAY_S = 0.5
"""For so long beyond the next try the store counts as away: the try takes time."""

YIELD_ITEMS = 8
"""Items handled before others get their turn: a learned text of a long prompt takes a fraction of a millisecond."""


class RouterSync:
    """Keeps one router in step with the others. Start it once, on the loop; stop it once. greeted: takes each hello."""

    def __init__(
        self,
        store: CoordinationStore,
        picker: Picker,
        dependencies: Dependencies,
        state: RoutingState,
        *,
        offset: ServerOffset,
        router: str,
        greeted: Callable[[HeartbeatReply], None],
        read_block_s: float = READ_BLOCK_S,
    ) -> None:
        self._store, self._picker, self._text, self._pending = store, picker, dependencies.text, dependencies.pending
        self._sessions, self._locks, self._offset, self._router = state.sessions, state.locks, offset, router
        self._offload, self._read_offload, self._clock = (
            dependencies.offload,
            dependencies.read_offload,
            dependencies.clock,
        )
        self._metrics = dependencies.metrics
        self._greeted, self._read_block_s = greeted, read_block_s
        self._untold: deque[PrefixMapUpdate | Flush] = deque(maxlen=UNTOLD_MAX)
        self._has_untold = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.warm = False

    def __repr__(self) -> str:
        return f"RouterSync({self._router}, warm={self.warm}, untold={len(self._untold)})"

    def start(self) -> None:
        """Begin. `warm` is True once all that was learned before has been read."""
        assert not self._tasks, "a feed starts once"
        steps: Sequence[tuple[Callable[[], Awaitable[None]], float]] = (
            (self._greet, HELLO_S),
            (self._locks.renew, RENEW_S),
            (self._sessions.write, WRITE_S),
            (self._append, 0.0),
        )
        self._tasks = [asyncio.create_task(self._forever(step, pause_s)) for step, pause_s in steps]
        self._tasks.append(asyncio.create_task(self._read_all()))

    async def stop(self) -> None:
        """Say goodbye: locks are free, sessions written, and workers need not tell this router any more. Bounded."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._locks.stop()
        await self._locks.drain()
        await self._sessions.write()
        try:
            await self._offload(lambda: self._store.deregister(self._router))
        except IndexUnavailable as exc:
            logger.debug("no goodbye: %s", exc)

    def tell(self, item: PrefixMapUpdate | Flush) -> None:
        """Have something appended to what every router reads, this one included."""
        self._untold.append(item)
        self._has_untold.set()

    async def _forever(self, step: Callable[[], Awaitable[None]], pause_s: float) -> None:
        backoff_s = BACKOFF_FIRST_S
        while True:
            try:
                await step()
                backoff_s = BACKOFF_FIRST_S
                await asyncio.sleep(pause_s)
            except IndexUnavailable as exc:
                logger.debug("the store is away: %s", exc)
                self._locks.away(backoff_s + AWAY_S)
                await asyncio.sleep(backoff_s)
                backoff_s = min(BACKOFF_MAX_S, 2 * backoff_s)
            except Exception:
                # A bug must not cut this router off from the others for the rest of its life.
                logger.exception("keeping in step failed in an unforeseen way")
                await asyncio.sleep(BACKOFF_MAX_S)

    async def _greet(self) -> None:
        asked_at = self._clock()
        hello = await self._offload(lambda: self._store.heartbeat(self._router, ttl_s=HELLO_TTL_S))
        self._offset.set((asked_at + self._clock()) / 2 - hello.now)
        self._greeted(hello)

    async def _append(self) -> None:
        await self._has_untold.wait()
        items = [self._untold.popleft() for _ in range(min(len(self._untold), APPEND_ITEMS))]
        if not self._untold:
            self._has_untold.clear()
        try:
            await self._offload(lambda: self._store.append_updates(items))
        except IndexUnavailable:
            # In front again, as far as there is room: what came later is worth no less.
            self._untold.extendleft(reversed(items[: UNTOLD_MAX - len(self._untold)]))
            self._has_untold.set()
            raise

    async def _read_all(self) -> None:
        cursor: Cursor | None = None

        async def step() -> None:
            nonlocal cursor
            if cursor is None:
                cursor = await self._read_offload(self._store.start_cursor)
            after = cursor
            batch = await self._read_offload(
                lambda: self._store.read(after, count=READ_ITEMS, block_s=self._read_block_s if self.warm else 0.0)
            )
            # First: what cannot be handled must not be read for ever.
            cursor = batch.cursor
            await self._take(batch)
            self.warm |= len(batch.updates) < READ_ITEMS

        await self._forever(step, 0.0)

    async def _take(self, batch: Batch) -> None:
        for number, text in enumerate(batch.updates):
            self._try(self._apply, text)
            if number % YIELD_ITEMS == YIELD_ITEMS - 1:
                await asyncio.sleep(0)
        for news in batch.events:
            self._try(self._learn, news)
            self._try(self._picker.on_news, news)
            await asyncio.sleep(0)

    def _try(self, take: Callable[[T], None], item: T) -> None:
        """Take an item. One that cannot be taken, for a bug, costs itself only."""
        try:
            take(item)
        except Exception:
            self._metrics.bad_items.inc()
            logger.exception("an item from the other routers or a worker cannot be taken")

    def _apply(self, text: PrefixMapUpdate | Flush) -> None:
        if isinstance(text, Flush):
            self._text.flush(text)
            self._picker.on_flush(text)
        else:
            self._text.apply(text)

    def _learn(self, news: WorkerEvents) -> None:
        for chain in news.chains:
            prompt = self._pending.get(chain.request)
            if prompt is not None and (text := self._text.learn(prompt, chain, news.namespace)) is not None:
                self.tell(text)


class ServerOffset:
    """The loop's clock less the store's, s; 0.0 before the first hello."""

    def __init__(self) -> None:
        self._offset_s = 0.0

    def __call__(self) -> float:
        return self._offset_s

    def set(self, offset_s: float) -> None:
        self._offset_s = offset_s
