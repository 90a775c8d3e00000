"""Has requests wait for their turn while no worker has room, and then has them placed. A Dispatcher before the picker.

    place_now(ask)   somebody has room and nobody waits --> the picker
    place(ask)       FairQueue --its turn--> the picker     `_dispatch` gives turns where something changes:
                        |                                   a request has left a worker, load reports have come, the
                        '-- no turn: NoWorker               fleet has changed, another request was placed or has left

What waits is bound to no worker: its turn comes when any worker has room, and then the picker chooses by prefix, load
and session as ever: also one without room, where waiting there is forecast to be cheaper, but none that is full. A
request that is to be tried at another worker comes before all that have not had their turn, when one has room that it
was not tried at; the second step of one that two workers carry out waits for nothing, since its prompt is computed. A
request that needs a stored object goes to the worker that has it.

How a wait ends, other than by its turn:

    the queue is full, or another request takes the place     429, and when to come back
    `queue_s`                                                 503, the same
    its deadline                                              504; also while it waits for a ghost lock or the index
    its client leaves, the router stops                       its task is cancelled, and its place is free at once
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence
from math import ceil, inf
from typing import NamedTuple

from ghostcacher_connector.core.admin_api import Queue
from ghostcacher_connector.core.types import PdRole
from ghostcacher_router.flow.displacement import Bounds
from ghostcacher_router.flow.fair_queue import FairQueue
from ghostcacher_router.flow.waiting import Waiting
from ghostcacher_router.flow.wishes import WishOptions, deadline_s, priority_of, tenant_of, work_of
from ghostcacher_router.flow.worker_rooms import WorkerRooms
from ghostcacher_router.metrics.flow_metrics import FlowMetrics
from ghostcacher_router.ports import Clock
from ghostcacher_router.types import Ask, Dispatcher, NoWorker, Placement, Server, Turn

AGAIN = -(1 << 31)
"""The band of requests that have had their turn, and are to be tried at another worker."""
TURNS_KEPT = 64
"""Of the last turns the times are kept, for saying when to come back."""
RETRY_S_MAX = 60
TENANTS_SHOWN = 10
LIGHT = frozenset({"/tokenize", "/detokenize"})
"""Paths whose requests take no place in an engine's batch."""


class Needs(NamedTuple):
    """Where a request may go."""

    model: str | None
    exclude: frozenset[str] = frozenset()
    """The workers that it may not go to."""


class FlowOptions(NamedTuple):
    """See the settings of the same names."""

    queue_max: int = 0
    """0: nobody waits for room."""
    queue_bytes_max: int = 256 << 20
    queue_s: float = 60.0
    priority_to_engines: bool = False
    wishes: WishOptions = WishOptions()
    weights: Mapping[str, float] = {}
    """Of tenants, by the names that `tenant_of` gives them."""


class FlowControl:
    """Decides whose turn it is. See types.Dispatcher. On the event loop only."""

    def __init__(
        self, picker: Dispatcher, rooms: WorkerRooms, options: FlowOptions, metrics: FlowMetrics, clock: Clock
    ) -> None:
        self._picker, self._rooms, self._options, self._metrics, self._clock = picker, rooms, options, metrics, clock
        self.queue: FairQueue[asyncio.Future[bool]] = FairQueue(
            Bounds(options.queue_max, options.queue_bytes_max), options.weights
        )
        """Of each request that waits what is set when that is over: whether it has its turn, or lost its place."""
        self._placing: Counter[str | None] = Counter()
        """Requests that have had their turn and have no worker yet, by model."""
        self._turns: deque[float] = deque(maxlen=TURNS_KEPT)
        """When requests that had waited got their turn, since somebody has been waiting; loop clock, s."""
        self._waiting_since = 0.0
        self._looks: asyncio.Handle | None = None

    def __repr__(self) -> str:
        return f"FlowControl({self.queue!r}, {self._rooms!r})"

    # The Dispatcher of types.py

    def place_now(self, ask: Ask) -> Placement | None:
        """Return a placement without waiting, or None when its turn, or anything else, must be awaited.

        Raises NoWorker.
        """
        turn = ask.turn
        if turn is None:
            return self._told_now(self._picker.place_now(ask))
        self._read(ask, turn)
        if self._waits_for_turn(ask, turn):
            self._check_deadline(turn)
            if len(self.queue) or not self._has_room(Needs(ask.shape.model, ask.exclude)):
                return None
            turn.passed = ask.exclude
        return self._place_now(ask)

    async def place(self, ask: Ask) -> Placement:
        """Return a placement, after its turn has come, within bounded time. Raises NoWorker."""
        turn, model = ask.turn, ask.shape.model
        if turn is None:
            return self._told(await self._picker.place(ask))
        self._read(ask, turn)
        if self._waits_for_turn(ask, turn):
            await self._wait(ask, turn)
            turn.passed = ask.exclude
            while not self._rooms.has_room(model, exclude=ask.exclude):
                # The worker that had room for it is gone since.
                self._placing -= Counter({model: 1})
                await self._wait(ask, turn)
        else:
            self._placing[model] += 1
        try:
            left_s = None if turn.deadline is None or ask.step is PdRole.DECODE else turn.deadline - self._clock()
            async with asyncio.timeout(left_s):
                return self._place_now(ask) or await self._place(ask)
        except TimeoutError:
            raise self._refused(turn, "deadline") from None
        finally:
            self._placing -= Counter({model: 1})
            self._dispatch()

    def hands_over(self, model: str | None) -> bool:
        """Say whether one worker computes the prompts of a model's requests and another one answers."""
        return self._picker.hands_over(model)

    def servers(self) -> Sequence[Server]:
        """Return all servers that answer, each once, also those that are drained."""
        return self._picker.servers()

    def told_all(self, path: str) -> None:
        """Note that a request to this path has been sent to all servers."""
        self._picker.told_all(path)

    # What it is told

    def freed(self, worker: str) -> None:
        """Note that a request has left a worker."""
        self._rooms.freed(worker)
        self._dispatch()

    def changed(self) -> None:
        """Note that load reports have come, or that the fleet has changed. It is looked at soon, once for all such."""
        if self._looks is None and self._options.queue_max:
            self._looks = asyncio.get_running_loop().call_soon(self._look_again)

    @property
    def placing(self) -> int:
        """Return how many requests have had their turn and have no worker yet."""
        return self._placing.total()

    @property
    def saturated(self) -> Collection[str]:
        """Return the workers that have no room, by name."""
        return self._rooms.saturated

    def report(self) -> Queue:
        """Return what waits, for people."""
        bands = {"again" if band == AGAIN else str(band): count for band, count in self.queue.by_band().items()}
        tenants = dict(self.queue.largest_tenants(TENANTS_SHOWN))
        saturated = tuple(sorted(self._rooms.saturated))
        counts = len(self.queue), self._options.queue_max, self.queue.size
        return Queue(*counts, bands, tenants, saturated, self._retry_after_s())

    # Turns

    def _waits_for_turn(self, ask: Ask, turn: Turn) -> bool:
        """Say whether a request may not be placed before its turn."""
        if not self._options.queue_max or ask.step is PdRole.DECODE or ask.method != "POST" or ask.path in LIGHT:
            return False
        return turn.passed is None or not ask.exclude <= turn.passed

    def _has_room(self, needs: Needs) -> bool:
        # Adapters, and their base, are models of their own at the same workers.
        model, exclude = needs
        ahead = [n for other, n in self._placing.items() if other == model or self._rooms.shares(other, model)]
        return self._rooms.has_room(model, sum(ahead) + 1, exclude)

    async def _wait(self, ask: Ask, turn: Turn) -> None:
        """Return when a request has its turn; it counts among `_placing` then. Raises NoWorker."""
        self._check_deadline(turn)
        began_at, again = self._clock(), turn.passed is not None
        if turn.until is None:
            turn.until = began_at + self._options.queue_s
        one = Waiting(
            asyncio.get_running_loop().create_future(),
            band=AGAIN if again else turn.priority,
            tenant=tenant_of(ask, self._options.wishes),
            needs=Needs(ask.shape.model, ask.exclude),
            work=work_of(ask),
            size=turn.body_bytes,
        )
        if not len(self.queue):
            self._turns.clear()
            self._waiting_since = began_at
        for displaced in self.queue.push(one, bounded=not again):
            if displaced is one:
                raise self._refused(turn, "full")
            if not displaced.item.done():
                # One that is done has left in this very moment, and was about to take itself out.
                displaced.item.set_result(False)
        self._dispatch()
        has_turn, turn.waits = False, True
        # Timers may be early by a millisecond, so that the time does not tell which of both it was.
        ends_at, reason = min((turn.until, "timeout"), (turn.deadline or inf, "deadline"))
        try:
            async with asyncio.timeout(max(0.0, ends_at - began_at)):
                has_turn = await one.item
        except TimeoutError:
            raise self._refused(turn, reason) from None
        finally:
            turn.queued_s += self._clock() - began_at
            turn.waits = False
            self.queue.remove(one)
            if not has_turn and one.item.done() and not one.item.cancelled() and one.item.result():
                # It got its turn in the moment in which its client left, or its time was over.
                self._placing -= Counter({ask.shape.model: 1})
                self._dispatch()
        if not has_turn:
            raise self._refused(turn, "displaced")
        self._metrics.wait_ms.observe((self._clock() - began_at) * 1e3)

    def _dispatch(self) -> None:
        """Give as many requests their turn as there is room for."""
        while len(self.queue) and (one := self.queue.pop(self._has_room)) is not None:
            if not one.item.done():
                self._placing[one.needs.model] += 1
                self._turns.append(self._clock())
                one.item.set_result(True)

    def _look_again(self) -> None:
        self._looks = None
        self._rooms.look_again()
        self._dispatch()

    # What is asked of the picker

    def _place_now(self, ask: Ask) -> Placement | None:
        spread = self._spread(ask)
        try:
            return self._told_now(self._picker.place_now(spread))
        except NoWorker:
            if spread is ask:
                raise
            return self._told_now(self._picker.place_now(ask))

    async def _place(self, ask: Ask) -> Placement:
        spread = self._spread(ask)
        try:
            return self._told(await self._picker.place(spread))
        except NoWorker:
            if spread is ask:
                raise
            return self._told(await self._picker.place(ask))

    def _spread(self, ask: Ask) -> Ask:
        """Return a request that goes to none of the workers that are full, where any other may take it."""
        full = self._rooms.full
        if not full or not self._options.queue_max or ask.shape.needs_id is not None:
            return ask
        if ask.step is PdRole.DECODE and not self._rooms.has_room(ask.shape.model):
            return ask
        return ask._replace(exclude=ask.exclude | full)

    def _told_now(self, placement: Placement | None) -> Placement | None:
        return None if placement is None else self._told(placement)

    def _told(self, placement: Placement) -> Placement:
        if self._options.queue_max:
            self._rooms.placed(placement.worker)
        return placement

    # What is said to clients

    def _read(self, ask: Ask, turn: Turn) -> None:
        """Note what a request says of its turn. Raises NoWorker."""
        if turn.is_read:
            return
        wishes = self._options.wishes
        turn.priority = priority_of(ask, wishes)
        if self._options.priority_to_engines and turn.priority != (ask.shape.priority or 0):
            turn.tells = turn.priority
        wait_s = deadline_s(ask, wishes)
        if wait_s is not None:
            turn.deadline = turn.received_at + wait_s
        turn.is_read = True

    def _check_deadline(self, turn: Turn) -> None:
        if turn.refusal is not None:
            # The first of two steps was refused: so is the request as a whole.
            raise turn.refusal
        if turn.deadline is not None and turn.deadline <= self._clock():
            raise self._refused(turn, "deadline")

    def _refused(self, turn: Turn, reason: str) -> NoWorker:
        """Return the error for a request that gets no turn, and count it. reason: a label of metrics."""
        turn.refusal = error = self._error(turn, reason)
        self._metrics.refusals.inc(reason)
        return error

    def _error(self, turn: Turn, reason: str) -> NoWorker:
        now, waiting, retry_after_s = self._clock(), len(self.queue), self._retry_after_s()
        if reason == "deadline":
            waited_ms = (now - turn.received_at) * 1e3
            message = f"The deadline of the request passed while it waited for a worker, after {waited_ms:.0f} ms."
            return NoWorker(504, message, kind="deadline_passed")
        if reason == "timeout":
            message = f"No worker had room for the request within {self._options.queue_s:g} s. Please try again later."
            return NoWorker(503, message, kind="queue_timeout", retry_after_s=retry_after_s)
        message = f"All workers are busy, and {waiting} requests wait for them already. Please try again later."
        return NoWorker(429, message, kind="queue_full", retry_after_s=retry_after_s)

    def _retry_after_s(self) -> int:
        """Return when the queue will likely have moved on by all that waits now, in s."""
        turns = self._turns
        since = turns[0] if len(turns) == TURNS_KEPT else self._waiting_since
        took_s = self._clock() - since if len(self.queue) else 0.0
        return max(1, min(RETRY_S_MAX, ceil(len(self.queue) * took_s / max(1, len(turns)))))
