"""The supervisor of a router in several processes: it serves no request, and holds what outlives them.

Start: the first child alone, so that what is wrong is said once: when it cannot start, the supervisor ends with its
exit status. Then the others, side by side.
A child that dies, or hangs, is started again, with a growing pause while its successors die, too. When that has
happened to every slot some times in a row, the supervisor gives up, so that whoever looks after it sees that.
SIGHUP: settings are read again. When they are good, children are replaced, one by one: the successor accepts
connections before its predecessor ceases to; and the next one's turn comes when that has ended, so there is one child
too many at most. When a successor does not start, the others stay as they are.
SIGTERM, SIGINT: all end in order. The second one ends them at once.

Children get their settings from here: one that takes a dead one's place has the same as the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.settings import parse_listen
from ghostcacher_router.config import RouterSettings
from ghostcacher_router.ghostlock.sibling_locks import shared_file
from ghostcacher_router.processes.child import Child
from ghostcacher_router.processes.ended_counts import EndedCounts
from ghostcacher_router.processes.ended_history import EndedHistory
from ghostcacher_router.processes.feed import FeedProcess
from ghostcacher_router.processes.listeners import Listeners
from ghostcacher_router.processes.seat import Seat, Start
from ghostcacher_router.processes.slots import Slot, Slots

logger = logging.getLogger(__name__)

READY_S_MAX = 120.0
"""A child that accepts no connections after so long is ended: on a busy machine it takes some seconds."""
END_S = 15.0
"""What a child may need to end beyond `drain_timeout_s`. Then it is killed."""
FAILURES_MAX = 5
"""Children of each slot in a row that were never ready, until the supervisor gives up."""
SILENCE_S_MAX = 30.0
"""A child whose event loop has not turned for so long is killed, and another one takes its place: a probe from outside
would meet it now and then only."""
STABLE_S = 60.0
"""A child that was ready for so long did not fail for how it was started."""
SIGNAL_STATUS_BASE = 128
FAILED = 1
KEPT = ("listen", "processes")
"""Settings that are the supervisor's own, and stay until it is started again."""


def supervise(settings: RouterSettings, read_again: Callable[[], RouterSettings]) -> int:
    """Run a router in `settings.processes` processes until a signal ends it; return the exit status.

    read_again: returns the settings as they are given now. It and this raise ConfigError.
    """
    return asyncio.run(_supervise(settings, read_again))


async def _supervise(settings: RouterSettings, read_again: Callable[[], RouterSettings]) -> int:
    listeners = Listeners(parse_listen(settings.listen, "listen"), settings.processes)
    folder = Path(tempfile.mkdtemp(prefix="gc-router-"))
    try:
        return await Supervisor(settings, read_again, listeners, folder).run()
    finally:
        listeners.close()
        shutil.rmtree(folder, ignore_errors=True)


class Supervisor:
    """Starts, keeps, replaces and ends the children of all slots. On the event loop only; `run` once."""

    def __init__(
        self, settings: RouterSettings, read_again: Callable[[], RouterSettings], listeners: Listeners, folder: Path
    ) -> None:
        """folder: for the children's unix sockets, this user's alone."""
        self._settings, self._read_again, self._listeners, self._folder = settings, read_again, listeners, folder
        self._router = secrets.token_hex(4)
        self._slots = Slots(settings.processes)
        self._locks = _memory_of_locks()
        self._generation = self._feeds = 0
        self._feed = self._new_feed()
        self._alive: set[Child] = set()
        self._ended, self._history = EndedCounts(), EndedHistory()
        self._tasks: list[asyncio.Task[None]] = []
        self._roll_wanted = asyncio.Event()
        self._over: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        """The exit status, once the children are to end."""
        self._last_status = FAILED
        self._signalled = 0

    def __repr__(self) -> str:
        return f"Supervisor({self._router}, {self._slots!r})"

    @property
    def pids(self) -> list[int]:
        """The process ids of the children that are ready."""
        return [child.pid for child in self._slots.children]

    async def run(self) -> int:
        """Return the exit status when all children have ended."""
        self._install_signals()
        first = next(iter(self._slots))
        if not self._settings.redis and self._settings.workers:
            logger.warning(
                "%d processes without Redis share nothing, but by hash which worker gets which prompt: sessions and "
                "the ids of stored answers are known to the process that served them",
                self._settings.processes,
            )
        starting = asyncio.create_task(self._start(first))
        await _any_of(starting, self._over)
        if starting.done() and starting.result() is None:
            self._finish(self._last_status)
        starting.cancel()
        if not self._over.done():
            self._feed.begin()
            self._tasks = [asyncio.create_task(self._keep(slot)) for slot in self._slots]
            self._tasks.append(asyncio.create_task(self._roll_when_wanted()))
            await _any_of(self._over, *self._tasks)
        for task in self._tasks:
            if task.done():
                logger.error("unexpected error: ending", exc_info=task.exception())
                self._finish(FAILED)
        return await self._end(self._over.result())

    # One slot

    async def _keep(self, slot: Slot) -> None:
        """See to it that a slot has a child, for ever."""
        while True:
            child = slot.child
            if child is None:
                async with slot.changing:
                    if slot.child is None:
                        await self._start(slot)
                if slot.child is None:
                    self._give_up_if_hopeless()
                    await asyncio.sleep(slot.backoff.failed(self._now()))
                continue
            since = self._now()
            status = await child.end_or_silence(SILENCE_S_MAX)
            self._alive.discard(child)
            if slot.child is not child:
                continue
            logger.error(
                "process %s (pid %d) has ended (%s), and is started again", child.name, child.pid, _text(status)
            )
            self._slots.put(slot, None)
            self._forget(child)
            if self._now() - since >= STABLE_S:
                slot.backoff.succeeded()
            await asyncio.sleep(slot.backoff.failed(self._now()))

    async def _start(self, slot: Slot) -> Child | None:
        """Start a child, and let it have its slot once it is ready; None when it does not come to that."""
        self._generation += 1
        seat = Seat(
            slot.index,
            self._generation,
            self._settings.processes,
            self._router,
            str(self._folder),
            self._listeners.numbers(),
            replaces=slot.child is not None,
            feed=self._feed.path,
            locks=self._locks,
        )
        try:
            child = await Child.started(Start(seat, self._settings))
        except OSError as exc:
            logger.error("process %s cannot be started: %s", seat.name, exc)
            slot.failures += 1
            return None
        self._alive.add(child)
        self._tell_ended(child)
        if await child.wait_until_ready(READY_S_MAX):
            slot.failures = 0
            self._slots.put(slot, child)
            return child
        late = not child.ended.done()
        status = await child.end_within(0.0)
        self._alive.discard(child)
        self._forget(child)
        self._last_status = _exit_status(status)
        slot.failures += 1
        why = f"was not ready after {READY_S_MAX:g} s" if late else f"has ended ({_text(status)}) before it was ready"
        logger.error("process %s %s", seat.name, why)
        return None

    def _new_feed(self) -> FeedProcess:
        self._feeds += 1
        return FeedProcess(self._folder, self._feeds, self._settings)

    def _forget(self, child: Child) -> None:
        """Let go of a child that has ended, or has said all, but not of what it has counted."""
        counted, child.counted = child.counted, b""
        if counted and self._keep_counts(child, counted):
            # Itself the last: it answers until it is told.
            for other in sorted(self._alive, key=lambda other: other is child):
                self._tell_ended(other)
        (self._folder / child.name).unlink(missing_ok=True)

    def _keep_counts(self, child: Child, counted: bytes) -> bool:
        """Add what a child has counted to that of all, and say whether it is understood."""
        # It may have run other code. Nobody's request is to fail for sums that lack something.
        errors = (msgspec.MsgspecError, TypeError, ValueError, LookupError)
        try:
            self._ended.add(child.name, counted)
        except errors as exc:
            logger.error("what process %s had counted is lost: %s", child.name, exc)
            return False
        try:
            self._history.add(child.points, time.time())
        except errors as exc:
            logger.error("how process %s had fared is lost: %s", child.name, exc)
        return True

    def _tell_ended(self, child: Child) -> None:
        if self._history:
            child.tell(f"history {self._history.encoded().decode()}")
        if self._ended:
            child.tell(f"ended {self._ended.encoded().decode()}")

    def _give_up_if_hopeless(self) -> None:
        if not self._slots.children and all(slot.failures >= FAILURES_MAX for slot in self._slots):
            logger.error("no process can be started any more: ending")
            self._finish(self._last_status)

    # All of them

    async def _roll_when_wanted(self) -> None:
        while True:
            await self._roll_wanted.wait()
            self._roll_wanted.clear()
            # Those of the settings before have one that reads the Redis of these.
            before, self._feed = self._feed, self._new_feed()
            self._feed.begin()
            replaced = 0
            for slot in self._slots:
                if not await self._replace(slot):
                    logger.error("the rolling restart has stopped: the other processes stay as they are")
                    break
                replaced += 1
            else:
                logger.info("the rolling restart is done")
            if not replaced:
                before, self._feed = self._feed, before
            await before.end()

    async def _replace(self, slot: Slot) -> bool:
        """Put a new child in a slot, and return when the old one has ended; False when the new one does not start."""
        async with slot.changing:
            old = slot.child
            if old is None:
                return True  # Whoever comes next has the new settings.
            successor = await self._start(slot)
        if successor is None:
            return False
        logger.info("process %s takes the place of %s (pid %d)", successor.name, old.name, old.pid)
        old.tell("leave")
        within_s = self._settings.drain_timeout_s + END_S
        until = self._now() + within_s
        if await old.has_said_all(within_s):
            # Ending takes a while yet, in which nobody else would know of it.
            self._forget(old)
        await old.end_within(max(0.0, until - self._now()))
        self._alive.discard(old)
        self._forget(old)
        return True

    async def _end(self, status: int) -> int:
        """End every child in order, in bounded time; return the exit status."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._listeners.close()
        for child in self._alive:
            child.signal(signal.SIGTERM)
        within_s = self._settings.drain_timeout_s + END_S
        statuses = await asyncio.gather(*(child.end_within(within_s) for child in self._alive))
        await self._feed.end()
        if self._locks is not None:
            os.close(self._locks)
        killed = sum(each == -signal.SIGKILL for each in statuses)
        if killed:
            logger.error("%d processes did not end, and were killed", killed)
        return self._signalled or status

    # Signals

    def _install_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop, number)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        if hasattr(os, "waitid"):
            loop.add_signal_handler(signal.SIGCHLD, self._reap)
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            loop.add_signal_handler(number, logger.info, "%s: nothing to do", number.name)

    def _stop(self, number: signal.Signals) -> None:
        if not self._over.done():
            logger.info("%s: %d processes end", number.name, len(self._alive))
            self._finish(0)
            return
        logger.warning("%s again: ending at once", number.name)
        self._signalled = SIGNAL_STATUS_BASE + number
        for child in self._alive:
            child.signal(number)

    def _reload(self) -> None:
        try:
            found = self._read_again()
        except ConfigError as exc:
            logger.error("SIGHUP: the settings stay as they are: %s", exc)
            return
        kept = {name: getattr(self._settings, name) for name in KEPT}
        if later := [name for name in KEPT if getattr(found, name) != kept[name]]:
            logger.warning("SIGHUP: these settings have changed, and need a restart: %s", ", ".join(later))
        self._settings = msgspec.structs.replace(found, **kept)
        logging.getLogger().setLevel(found.log_level.upper())
        logger.info("SIGHUP: settings read again; the processes are replaced one by one")
        self._roll_wanted.set()

    def _finish(self, status: int) -> None:
        if not self._over.done():
            self._over.set_result(status)

    def _reap(self) -> None:
        """Let go of processes that have become ours since their parents died: this may be process 1 of a container."""
        with contextlib.suppress(ChildProcessError, ProcessLookupError):
            while (found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                if os.getsid(found.si_pid) == found.si_pid:
                    return  # A child of ours, which is awaited elsewhere: they begin sessions, and theirs do not.
                os.waitpid(found.si_pid, os.WNOHANG)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _memory_of_locks() -> int | None:
    """Return the number of a file for ghost locks; None where the system allows none."""
    try:
        return shared_file()
    except OSError as exc:
        logger.warning("the processes agree on ghost locks through Redis: expected a file in memory, got: %s", exc)
        return None


async def _any_of(*futures: asyncio.Future[Any]) -> None:
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


def _text(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"


def _exit_status(status: int) -> int:
    return SIGNAL_STATUS_BASE - status if status < 0 else status or FAILED
