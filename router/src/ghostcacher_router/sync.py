"""Keeps one router in step with the other routers and the workers, through the store.

    store --read--> worker events --> what the sender of a prompt learns of its blocks --append--> store
                                  --> which prompts are computed                       --> InFlightTracker
                --> updates       --> the prefix map, the same in every router; flushes --> RoutingState
    sessions, ghost locks --write, renew--> store
    heartbeat             <------------>    store: which routers are alive, and the store's clock

More is read only when what came has been handled. Where a router is several processes, its feed reads for all of them,
and each reads for itself while there is none. While the store is away every task waits and tries again; of what is to
be published meanwhile the oldest is dropped when there is too much.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

from ghostcacher_connector.core.backoff import Backoff
from ghostcacher_connector.core.coordination.base import (
    Batch,
    CoordinationStore,
    Cursor,
    Flush,
    HeartbeatReply,
    PrefixMapUpdate,
    PromptChain,
)
from ghostcacher_connector.core.errors import IndexRefused, IndexUnavailable
from ghostcacher_router.feed.messages import Folded, FoldedPrompt, MapPart, has_reached
from ghostcacher_router.feed.subscription import Subscription
from ghostcacher_router.ghostlock.single_flight import RENEW_S
from ghostcacher_router.placement.context import Dependencies, RoutingState
from ghostcacher_router.placement.in_flight import InFlightTracker
from ghostcacher_router.prefix_map import ENGINE_ID, EarlyChains
from ghostcacher_router.types import Prompt

logger = logging.getLogger(__name__)

T = TypeVar("T")

HEARTBEAT_S = 2.0
HEARTBEAT_TTL_S = 10.0
"""A router counts as alive for so long after its last heartbeat."""
WRITE_S = 0.5
"""Between two writes of sessions: another router may learn of one so much later."""

READ_ITEMS = 256
READ_BLOCK_S = 0.5
"""A read waits for so long for something new."""
READ_PAUSE_S = APPEND_PAUSE_S = 0.01
"""Between two reads that find something, and two writes: what comes meanwhile is handled at once. Each costs as much as
some dozens of items."""
APPEND_ITEMS = 256
UNPUBLISHED_MAX = 4096
BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.05, 2.0
AWAY_S = 0.5
"""The store counts as away for so much longer than until the next try: the try takes time."""

YIELD_BOUNDARIES = 1024
"""Boundaries of updates, and hashes of chains, handled before other tasks get their turn: some 2 ms. An item of the
greatest length has sixteen times as many."""

FOLDED_PROMPTS = 256
"""Prompts of a feed that are handled before other tasks get their turn: some 1 ms."""


class RouterSync:
    """The tasks that keep a router in step. Start it once, on the event loop; stop it once."""

    def __init__(
        self,
        store: CoordinationStore,
        tracker: InFlightTracker,
        dependencies: Dependencies,
        state: RoutingState,
        *,
        clock_offset: StoreClockOffset,
        router: str,
        on_heartbeat: Callable[[HeartbeatReply], None],
        read_block_s: float = READ_BLOCK_S,
    ) -> None:
        """Make one that has not begun.

        clock_offset: set at each heartbeat.
        router: this router's name in the fleet.
        on_heartbeat: takes each reply of the store.
        read_block_s: how long a read waits for something new.
        """
        self._store, self._tracker, self._state = store, tracker, state
        self._prefix_map, self._pending = dependencies.prefix_map, dependencies.pending
        self._offload, self._read_offload = dependencies.offload, dependencies.read_offload
        self._clock, self._metrics = dependencies.clock, dependencies.metrics
        self._clock_offset, self._router = clock_offset, router
        self._on_heartbeat, self._read_block_s = on_heartbeat, read_block_s
        self.feed: Subscription | None = None
        """Where one is told what the store has, as one process of several."""
        self._early = EarlyChains(clock=dependencies.clock)
        self._unpublished: deque[PrefixMapUpdate | Flush] = deque(maxlen=UNPUBLISHED_MAX)
        self._has_unpublished = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._refused: dict[Callable[[], Awaitable[None]], str] = {}
        """Why the store refused a step the last time, until it is done."""
        self.warm = False
        """Whether everything has been read that the routers published before this one started."""

    def __repr__(self) -> str:
        return f"RouterSync({self._router}, warm={self.warm}, unpublished={len(self._unpublished)})"

    @property
    def refused(self) -> str | None:
        """Why the store refuses some of what this is to do, for people; None when it does not."""
        return next(iter(self._refused.values()), None)

    def start(self) -> None:
        """Begin to read, write and send heartbeats."""
        assert not self._tasks, "it starts once"
        steps: Sequence[tuple[Callable[[], Awaitable[None]], float]] = (
            (self._heartbeat, HEARTBEAT_S),
            (self._state.locks.renew, RENEW_S),
            (self._state.sessions.write, WRITE_S),
            (self._state.stored.write, 0.0),
            (self._append, APPEND_PAUSE_S),
        )
        self._tasks = [asyncio.create_task(self._repeat(step, pause_s)) for step, pause_s in steps]
        self._tasks.append(asyncio.create_task(self._read_all()))

    async def stop(self) -> None:
        """Release all locks, write all sessions, and deregister this router. Bounded by the store's time-out."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.feed is not None:
            self.feed.leave()
        self._state.locks.stop()
        await self._state.locks.drain()
        await self._state.sessions.write()
        await self._state.stored.flush()
        try:
            await self._offload(lambda: self._store.deregister(self._router))
        except IndexUnavailable as exc:
            logger.debug("the router is not deregistered: %s", exc)

    def publish(self, item: PrefixMapUpdate | Flush) -> None:
        """Have something appended to what every router reads, this one included."""
        self._unpublished.append(item)
        self._has_unpublished.set()

    async def _repeat(self, step: Callable[[], Awaitable[None]], pause_s: float) -> None:
        """Repeat a step for ever, after a pause, or after a growing one while the store is away.

        A task, not a Periodic of core, which is a thread: the steps touch what belongs to the event loop.
        """
        backoff = Backoff(BACKOFF_FIRST_S, BACKOFF_MAX_S)
        while True:
            try:
                await step()
                backoff.succeeded()
                self._refused.pop(step, None)
                await asyncio.sleep(pause_s)
            except IndexUnavailable as exc:
                if isinstance(exc, IndexRefused):
                    self._refused[step] = str(exc)
                # That it is away, the fleet says. A permission may be missing for one step alone.
                warns = isinstance(exc, IndexRefused) and not backoff.failures
                logger.log(logging.WARNING if warns else logging.DEBUG, "not in step with the other routers: %s", exc)
                backoff_s = backoff.failed(self._clock())
                self._state.locks.store_failed(backoff_s + AWAY_S)
                await asyncio.sleep(backoff_s)
            except Exception:
                # A bug must not cut this router off from the others for ever.
                logger.exception("unexpected error while keeping in step with the other routers")
                await asyncio.sleep(BACKOFF_MAX_S)

    async def _heartbeat(self) -> None:
        asked_at = self._clock()
        reply = await self._offload(lambda: self._store.heartbeat(self._router, ttl_s=HEARTBEAT_TTL_S))
        self._clock_offset.set((asked_at + self._clock()) / 2 - reply.now)
        self._on_heartbeat(reply)

    async def _append(self) -> None:
        await self._has_unpublished.wait()
        items = [self._unpublished.popleft() for _ in range(min(len(self._unpublished), APPEND_ITEMS))]
        if not self._unpublished:
            self._has_unpublished.clear()
        try:
            await self._offload(lambda: self._store.append_updates(items))
        except IndexUnavailable:
            # In front again, as far as there is room: what came later is worth no less.
            self._unpublished.extendleft(reversed(items[: UNPUBLISHED_MAX - len(self._unpublished)]))
            self._has_unpublished.set()
            raise

    async def _read_all(self) -> None:
        cursor: Cursor | None = None
        told_from: Cursor | None = None
        """Where what the feed tells begins; None while it is not joined."""

        async def step() -> None:
            nonlocal cursor, told_from
            if cursor is None:
                cursor = await self._read_offload(self._store.start_cursor)
            if self.feed is not None and told_from is not None and has_reached(cursor, told_from):
                told_from = None
                while (folded := await self.feed.next()) is not None:
                    cursor = folded.cursor
                    await self._handle_folded(folded)
                    self.feed.wish(self._state.regret.looked_at_below)
                return
            if self.feed is not None and self.warm and told_from is None:
                told_from = await self.feed.join()
            after = cursor
            block_s = self._read_block_s if self.warm and told_from is None else 0.0
            batch = await self._read_offload(lambda: self._store.read(after, count=READ_ITEMS, block_s=block_s))
            # First: what cannot be handled must not be read for ever.
            cursor = batch.cursor
            await self._handle(batch)
            # Not by how many came: what is not believed is left out of them.
            self.warm |= cursor.updates == after.updates
            if cursor == after:
                # There is nothing between: of a stream that was lost, the feed may have come further.
                told_from = told_from and cursor
            elif self.warm and told_from is None:
                await asyncio.sleep(READ_PAUSE_S)

        await self._repeat(step, 0.0)

    async def _handle_folded(self, folded: Folded) -> None:
        for part in folded.map:
            self._try(self._apply, part)
        for events in folded.events:
            for number, prompt in enumerate(events.prompts):
                if self._pending.get(prompt.request) is not None or prompt.request.startswith(ENGINE_ID):
                    self._try(self._learn_folded, (events.namespace, prompt))
                if number % FOLDED_PROMPTS == FOLDED_PROMPTS - 1:
                    await asyncio.sleep(0)
            self._try(self._tracker.on_folded_events, events)
            if len(events.prompts) > FOLDED_PROMPTS:
                await asyncio.sleep(0)

    async def _handle(self, batch: Batch) -> None:
        handled = 0
        for update in batch.updates:
            for part in _parts(update):
                self._try(self._apply, part)
                handled += YIELD_BOUNDARIES // 8 if isinstance(part, Flush) else max(128, len(part.digests))
                if handled >= YIELD_BOUNDARIES:
                    handled = 0
                    await asyncio.sleep(0)
        for events in batch.events:
            for chain in events.chains:
                self._try(self._learn, (events.namespace, chain))
                handled += len(chain.hashes)
                if handled >= YIELD_BOUNDARIES:
                    handled = 0
                    await asyncio.sleep(0)
            self._try(self._tracker.on_worker_events, events)
            await asyncio.sleep(0)

    def _try(self, handle: Callable[[T], None], item: T) -> None:
        """Handle an item. One that cannot be handled, because of a bug, costs itself only."""
        try:
            handle(item)
        except Exception:
            self._metrics.bad_items.inc()
            logger.exception("unexpected error with an item from another router or a worker")

    def _apply(self, update: PrefixMapUpdate | Flush | MapPart) -> None:
        if isinstance(update, Flush):
            self._prefix_map.flush(update)
            self._state.flush(update)
        elif isinstance(update, MapPart):
            self._prefix_map.put(update.namespace, update.entries, update.bytes_per_token)
        else:
            self._prefix_map.apply(update)

    def _learn_folded(self, reported: tuple[str, FoldedPrompt]) -> None:
        namespace, prompt = reported
        self._learn((namespace, prompt.unpacked()))

    def _learn(self, reported: tuple[str, PromptChain]) -> None:
        """Publish what a worker's chain says of the blocks of a prompt that this router sent.

        reported: the worker's namespace, and the chain.
        """
        namespace, chain = reported
        prompt = self._pending.get(chain.request)
        if prompt is None:
            self._early.put(namespace, chain)
        else:
            self._learn_chain(namespace, prompt, chain)

    def named(self, answer_id: str) -> None:
        """Learn from the chain that an engine has reported under the id of its answer, which has come just now."""
        found, prompt = self._early.pop(answer_id), self._pending.get(answer_id)
        if found is not None and prompt is not None:
            namespace, chain = found
            self._learn_chain(namespace, prompt, chain)

    def _learn_chain(self, namespace: str, prompt: Prompt, chain: PromptChain) -> None:
        if (update := self._prefix_map.learn(prompt, chain, namespace)) is not None:
            self.publish(update)


def _parts(update: PrefixMapUpdate | Flush) -> Iterator[PrefixMapUpdate | Flush]:
    """Yield an update in parts of YIELD_BOUNDARIES at most, each an update of its own."""
    if isinstance(update, Flush) or len(update.digests) <= YIELD_BOUNDARIES:
        yield update
        return
    for first in range(0, len(update.digests), YIELD_BOUNDARIES):
        part = slice(first, first + YIELD_BOUNDARIES)
        digests, counts, hashes = update.digests[part], update.block_counts[part], update.hashes[part]
        yield PrefixMapUpdate(update.namespace, digests, counts, hashes, update.bytes_per_token, update.router)


class StoreClockOffset:
    """The loop's clock less the store's, in seconds; 0.0 before the first heartbeat."""

    def __init__(self) -> None:
        self._offset_s = 0.0

    def __call__(self) -> float:
        return self._offset_s

    def set(self, offset_s: float) -> None:
        """Replace the offset by the last heartbeat's."""
        self._offset_s = offset_s
