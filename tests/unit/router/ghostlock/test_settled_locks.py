"""Settled ghost locks of a router that is alone: nobody else has to be told when they end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

import pytest

from ghostcacher_router.ghostlock.single_flight import SETTLE_S, SingleFlight
from ghostcacher_simulator.text import text_of
from ghostcacher_simulator.virtual_time import virtual
from tests.support.routing_sim import prompt_of

T = TypeVar("T")
DOC = text_of("document", 4000)
PROMPT, OTHER = prompt_of(DOC + b"question" * 100), prompt_of(DOC + b"another" * 100)


async def _never(call: Callable[[], T], /) -> T:
    raise AssertionError("there is no store")


@virtual
async def test_settled_lock_that_nobody_knows_of_ends_without_a_timer() -> None:
    """Of a router that is alone: it is in nobody's way once its time has come, and goes with the next renewal."""
    loop, timers = asyncio.get_running_loop(), []
    locks = SingleFlight(None, _never, loop.time, router="r", clock_offset=lambda: 0.0, count=lambda _: None)
    lock = locks.take("n", PROMPT, -1, "w1", loop.time() + 1.0)
    assert lock is not None
    call_later = loop.call_later
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop, "call_later", lambda *args: timers.append(args) or call_later(*args))
        locks.settle(lock)
    assert timers == []
    assert locks.find("n", OTHER, -1) is not None
    await asyncio.sleep(SETTLE_S + 0.01)
    assert locks.find("n", OTHER, -1) is None
    assert locks.take("n", PROMPT, -1, "w2", loop.time() + 1.0) is not None
    assert len(locks) == 2
    await locks.renew()
    assert (len(locks), lock.released) == (1, True)
    locks.check_invariants()


@virtual
async def test_who_waits_in_a_router_that_is_alone_is_woken_when_a_settled_lock_runs_out() -> None:
    """Who began to wait before it was settled, and who has come since then."""
    loop = asyncio.get_running_loop()
    locks = SingleFlight(None, _never, loop.time, router="r", clock_offset=lambda: 0.0, count=lambda _: None)
    for waits_before in (True, False):
        lock = locks.take("n", PROMPT, -1, "w1", loop.time() + 1.0)
        assert lock is not None
        waiting = [asyncio.ensure_future(locks.wait(lock, loop.time() + 9))] if waits_before else []
        await asyncio.sleep(0.5)
        locks.settle(lock)
        started = loop.time()
        await (waiting[0] if waiting else locks.wait(lock, started + 9))
        assert loop.time() - started == pytest.approx(SETTLE_S)
        assert (len(locks), lock.released) == (0, True)
