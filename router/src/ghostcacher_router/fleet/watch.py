"""Watches one worker: probes it regularly while it is well, with backoff while it is not, and changes its state.

What requests find is no verdict: a connection that cannot be made, or is closed unanswered, may be the request's own
doing, or one that a busy worker had no time for. It has the worker probed at once, and the probe decides. A worker that
takes no connection, not even a probe's, is DOWN after some in a row.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from math import inf
from typing import NamedTuple

from ghostcacher_connector.core.backoff import doubled_s
from ghostcacher_router.fleet.options import FleetOptions
from ghostcacher_router.fleet.probes import ProbeFailed, Prober
from ghostcacher_router.fleet.worker import Move, Worker
from ghostcacher_router.metrics.catalog import RouterMetrics
from ghostcacher_router.types import WorkerState

logger = logging.getLogger(__name__)

_UP = (WorkerState.READY, WorkerState.DRAINING)


class WatchDependencies(NamedTuple):
    """What all watches share."""

    prober: Prober
    """Asks workers."""
    options: FleetOptions
    """Intervals and limits."""
    metrics: RouterMetrics
    """Counts probes and refusals."""
    clock: Callable[[], float]
    """The loop's clock, in seconds."""
    jitter: Callable[[], float]
    """Returns numbers in [0, 1), which spread the probes."""
    changed: Callable[[], None]
    """Called after a worker's state or models have changed."""
    went_down: Callable[[str], None]
    """Called with a worker's name when it has become DOWN."""
    came_up: Callable[[Worker], None]
    """Called with a worker that answers probes, once after it did not."""
    hangs: Callable[[Worker, float], None]
    """Called when a worker that is DOWN has not answered its last probes, and since when; then after each further one.
    """
    has_listed: Callable[[Worker], None]
    """Called with a worker each time that it has said what it serves."""


class Watch:
    """The health of one worker. `run` is its task; the rest is called by whoever else learns of the worker's health."""

    def __init__(self, worker: Worker, dependencies: WatchDependencies) -> None:
        self.worker = worker
        self._dependencies = dependencies
        self._due = dependencies.clock()
        self._probed_at = -inf
        self._wake = asyncio.Event()
        self.has_probed = False
        """Whether a first probe is over, however it went."""
        self._has_said_joining = False
        self._has_come_up = False
        self._setbacks = 0
        self._silent_since: deque[float] = deque(maxlen=dependencies.options.failures_max)
        """When each of the last probes in a row began that got no answer."""

    def __repr__(self) -> str:
        return f"Watch({self.worker!r}, due={self._due:.3f})"

    async def run(self) -> None:
        """Probe whenever it is due, until cancelled."""
        while True:
            await self._until_due()
            await self.probe()
            self.has_probed = True

    async def probe(self) -> None:
        """Ask the worker once, and change its state as the answer says."""
        worker, dependencies = self.worker, self._dependencies
        setbacks, models = self._setbacks, None
        self._probed_at = dependencies.clock()
        try:
            await dependencies.prober.health(worker.endpoint)
            if self._models_due():
                models = await dependencies.prober.models(worker.endpoint)
        except ProbeFailed as exc:
            dependencies.metrics.probes.inc("failed")
            self._failed(str(exc), certain=exc.certain)
            self._note_silence(silent=exc.silent)
            return
        self._note_silence(silent=False)
        dependencies.metrics.probes.inc("ok")
        if setbacks != self._setbacks:
            # Something went wrong while this probe was under way, and its answer may be older than that.
            self.soon()
            return
        if models is not None and worker.serves(models, dependencies.clock()):
            dependencies.changed()
        if models is not None:
            dependencies.has_listed(worker)
        worker.failures, worker.error = 0, None
        self._move(Move.ANSWERED)
        if not self._has_come_up:
            self._has_come_up = True
            dependencies.came_up(worker)
        self._again_after(self._pause_s())

    async def look_after(self, for_s: float) -> None:
        """Go on probing a worker that has left the fleet, for a time: it may hang, with requests that are still there.

        Ends when it was seen to hang, or that nobody listens there.
        """
        until = self._dependencies.clock() + for_s
        while self._dependencies.clock() < until:
            await self._until_due()
            await self.probe()
            if self._hangs or (self.worker.state is WorkerState.DOWN and not self._silent_since):
                return

    def lost(self, *, refused: bool) -> None:
        """A request got no whole answer. refused: no connection could be made; after some in a row it is DOWN."""
        self.worker.refusals += 1
        self._dependencies.metrics.refusals.inc(self.worker.name)
        if refused and self.worker.state in _UP:
            self._failed("a connection could not be made", certain=False)
        self.doubted()

    def doubted(self) -> None:
        """Something was seen that a worker that is well does seldom: it is probed at once."""
        self._setbacks += 1
        if self.worker.state in _UP:
            self.soon()

    def answered(self) -> None:
        """A request got an answer, so a worker that is slow to answer probes is not down."""
        self._note_silence(silent=False)
        if self.worker.failures and self.worker.state in _UP:
            self.worker.failures = 0

    def soon(self) -> None:
        """Probe at once, since something about the worker has become doubtful; but not faster than with backoff."""
        options, now = self._dependencies.options, self._dependencies.clock()
        self._again_after(max(0.0, self._probed_at + options.backoff_first_s - now))

    def drain(self, draining: bool) -> None:
        """Take the worker out of service for new requests, or back."""
        self._move(Move.DRAIN if draining else Move.UNDRAIN)

    def _failed(self, message: str, *, certain: bool) -> None:
        worker = self.worker
        worker.failures += 1
        worker.error = message
        if certain or worker.failures >= self._dependencies.options.failures_max:
            self._move(Move.FAILED)
        self._say_joining()
        self._again_after(self._pause_s())

    def _say_joining(self) -> None:
        """Say once that a worker has not answered since long: its URL may be wrong, and nothing else would tell."""
        worker, said_s = self.worker, self._dependencies.options.joining_said_s
        waited_s = self._dependencies.clock() - worker.since
        if worker.state is WorkerState.JOINING and waited_s >= said_s and not self._has_said_joining:
            self._has_said_joining = True
            text = "worker %s: still joining after %.0f s, and gets no requests: %s; does it still load, is %s right?"
            logger.warning(text, worker.name, waited_s, worker.error, worker.endpoint.url)

    @property
    def _hangs(self) -> bool:
        return len(self._silent_since) == self._silent_since.maxlen and self.worker.state is WorkerState.DOWN

    def _note_silence(self, *, silent: bool) -> None:
        """Note whether a probe got no answer at all, or the worker has shown that it lives."""
        if not silent:
            self._silent_since.clear()
            return
        self._silent_since.append(self._probed_at)
        if self._hangs:
            self._dependencies.hangs(self.worker, self._silent_since[0])

    def _move(self, move: Move) -> None:
        worker, before = self.worker, self.worker.state
        if not worker.move(move, self._dependencies.clock()):
            return
        level = logging.WARNING if worker.state is WorkerState.DOWN else logging.INFO
        because = f": {worker.error}" if worker.error else ""
        logger.log(level, "worker %s: %s, was %s%s", worker.name, worker.state.value, before.value, because)
        self._dependencies.changed()
        if worker.state is WorkerState.DOWN:
            self._has_come_up = False
            self._dependencies.went_down(worker.name)

    def _models_due(self) -> bool:
        asked_at = self.worker.models_asked_at
        overdue = (
            asked_at is None or self._dependencies.clock() - asked_at >= self._dependencies.options.models_interval_s
        )
        return overdue or self.worker.state not in _UP

    def _pause_s(self) -> float:
        options, worker = self._dependencies.options, self.worker
        if not worker.failures:
            return options.health_interval_s * (0.8 + 0.4 * self._dependencies.jitter())
        most_s = options.joining_max_s if worker.state is WorkerState.JOINING else options.backoff_max_s
        return backoff_s(
            worker.failures, first_s=options.backoff_first_s, max_s=most_s, jitter=self._dependencies.jitter
        )

    def _again_after(self, pause_s: float) -> None:
        self._due = self._dependencies.clock() + pause_s
        self._wake.set()

    async def _until_due(self) -> None:
        """Wait until a probe is due, however often the due time changes meanwhile."""
        while (left_s := self._due - self._dependencies.clock()) > 0.0:
            self._wake.clear()
            try:
                async with asyncio.timeout(left_s):
                    await self._wake.wait()
            except TimeoutError:
                return


def backoff_s(failures: int, *, first_s: float, max_s: float, jitter: Callable[[], float]) -> float:
    """Return the pause after `failures` in a row, 1 or more. jitter: in [0, 1), spreads the pauses over 20%."""
    return doubled_s(first_s, max_s, failures - 1) * (0.9 + 0.2 * jitter())
