"""A worker that fails at once looks idle: how much of the traffic it draws, and when it is used again."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import pytest

from ghostcacher_router.types import Ask, Outcome, Placement, RequestShape
from ghostcacher_simulator.text import text_of
from ghostcacher_simulator.virtual_time import virtual
from tests.support.routing_sim import Router, Sim, make_sim

WORKERS = 4
FAIR = 1 / WORKERS


class Sent(NamedTuple):
    """A request that has ended, when it was placed, and whether it failed."""

    at: float
    worker: str
    failed: bool


class Load:
    """Sends requests. Each that goes to one worker, the first that is picked, fails with a status, until that is None.

    It is tried at another worker where the proxy does so. blames: whether each failure is held against the worker, and
    not against the request. sent: every attempt. error_count: requests whose clients saw an error.
    """

    def __init__(self, router: Router, ask: Callable[[int], tuple[Ask, bytes]], *, blames: bool = True) -> None:
        self.router, self.ask, self.blames = router, ask, blames
        self.status: int | None = 500
        self.bad: str | None = None
        self.sent: list[Sent] = []
        self.error_count = 0
        self._number = 0

    async def one(self) -> None:
        self._number += 1
        ask, text = self.ask(self._number)
        failed = await self._try(ask, text)
        if failed is None:
            return
        sure = self.blames and failed.doubtful
        if sure:
            assert await self._try(ask._replace(exclude=frozenset({failed.worker})), text) is None
        else:
            self.error_count += 1
        if self.blames:
            failed.failed(sure=sure)

    async def _try(self, ask: Ask, text: bytes) -> Placement | None:
        """Have a worker picked and asked; return where the request was if it failed."""
        placed = self.router.picker.place_now(ask) or await self.router.picker.place(ask)
        self.bad = self.bad or placed.worker
        at, failed = self.router.sim.now(), placed.worker == self.bad and self.status is not None
        placed.sent()
        if failed:
            await asyncio.sleep(0.002)
            placed.ended(Outcome.DONE, self.status)
        else:
            engine = self.router.sim.engines[placed.worker]
            prefilled = await engine.prefill(ask.request_id, text)
            placed.first_byte()
            await engine.decode(10)
            engine.release(prefilled)
            placed.ended(Outcome.DONE, 200)
        self.sent.append(Sent(at, placed.worker, failed))
        return placed if failed else None

    async def at_rate(self, per_s: float, seconds: float) -> None:
        """Send so many at even intervals, and wait until all have ended."""
        tasks = []
        for _ in range(int(per_s * seconds)):
            tasks.append(asyncio.ensure_future(self.one()))
            await asyncio.sleep(1 / per_s)
        await asyncio.gather(*tasks)

    async def of_clients(self, count: int, seconds: float) -> None:
        """Have so many clients send one after the other."""
        ends_at = self.router.sim.now() + seconds

        async def client() -> None:
            while self.router.sim.now() < ends_at:
                await self.one()

        await asyncio.gather(*[client() for _ in range(count)])

    def share(self, since: float = 0.0) -> float:
        """Return the part of the requests that failed."""
        failed = [sent.failed for sent in self.sent if sent.at >= since]
        return sum(failed) / len(failed)


Make = Callable[[Router], Callable[[int], tuple[Ask, bytes]]]


def distinct(router: Router) -> Callable[[int], tuple[Ask, bytes]]:
    def ask(number: int) -> tuple[Ask, bytes]:
        text = text_of(f"text {number}", 1000)
        return router.ask(text), text

    return ask


def hot(router: Router) -> Callable[[int], tuple[Ask, bytes]]:
    text = text_of("hot", 2000)
    return lambda _: (router.ask(text), text)


def no_prompt(router: Router) -> Callable[[int], tuple[Ask, bytes]]:
    shape = RequestShape("m", False, None, None)
    return lambda _: (router.ask(b"x" * 64)._replace(shape=shape), b"x" * 64)


Drive = Callable[[Load], Awaitable[None]]
DRIVES: dict[str, Drive] = {
    "20/s": lambda load: load.at_rate(20, 8),
    "3/s": lambda load: load.at_rate(3, 30),
    "16 clients": lambda load: load.of_clients(16, 5),
}


@pytest.mark.parametrize("drive", DRIVES)
@pytest.mark.parametrize("make", [distinct, hot, no_prompt])
@pytest.mark.parametrize("plain", [False, True])
@virtual
async def test_failing_worker_draws_no_more_than_its_share_and_soon_less(plain: bool, make: Make, drive: str) -> None:
    """With loads reported and without, whatever the requests have in common, and however seldom they come.

    One client sees an error: all others are answered by another worker.
    """
    sim = await make_sim(WORKERS, plain=plain)
    load = Load(sim.routers[0], make(sim.routers[0]))
    began = sim.now()
    await DRIVES[drive](load)
    assert 0 < load.share() < FAIR
    assert load.share(began + 3.0) < FAIR / 2
    assert load.error_count == 1


@pytest.mark.parametrize("make", [distinct, hot, no_prompt])
@pytest.mark.parametrize("plain", [False, True])
@virtual
async def test_failing_fast_never_looks_like_speed(plain: bool, make: Make) -> None:
    """Also where nothing is held against a worker, since the request may be the cause.

    What consistent hashing sends to one worker may exceed its share by a quarter.
    """
    sim = await make_sim(WORKERS, plain=plain)
    load = Load(sim.routers[0], make(sim.routers[0]), blames=False)
    await load.of_clients(16, 4)
    assert 0 < load.share() < FAIR * 1.25


@pytest.mark.parametrize("plain", [False, True])
@virtual
async def test_worker_that_is_well_again_is_used_again_within_five_seconds(plain: bool) -> None:
    """As much as any other, and no request of it fails."""
    sim = await make_sim(WORKERS, plain=plain)
    load = Load(sim.routers[0], distinct(sim.routers[0]))
    await load.of_clients(8, 10)
    load.status = None
    well_at = sim.now()
    await load.of_clients(8, 8)
    used = Counter[str | None](sent.worker for sent in load.sent if sent.at >= well_at + 5.0)
    assert not any(sent.failed for sent in load.sent if sent.at >= well_at)
    assert used[load.bad] > used.total() * FAIR * 0.8


@virtual
async def test_fleet_that_fails_as_a_whole_is_used_as_a_whole() -> None:
    """When more than half fail, nobody is left out, and the first that is well has its share at once."""
    sim = await make_sim(WORKERS)
    router = sim.routers[0]
    for name in ("w0", "w1", "w2"):
        for _ in range(5):
            router.fleet.failed(name, "500", "status 500", sure=True)
    assert len(router.fleet.serving("m")) == WORKERS


@virtual
async def test_burst_that_fails_ejects_and_forgets_nobody_for_long() -> None:
    """Every worker answers 503 for a while: seconds later the fleet is as it was."""
    sim: Sim = await make_sim(WORKERS)
    router = sim.routers[0]
    for name in sim.engines:
        for _ in range(50):
            router.fleet.failed(name, "503", "status 503", sure=True)
    await asyncio.sleep(5.0)
    assert (len(router.fleet.serving("m")), router.fleet.outliers.ejected) == (WORKERS, set())
    assert router.fleet.limits() == {}
