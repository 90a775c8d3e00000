"""Anything may happen in any order: nobody is lost, no worker gets more than it has room for, and nobody waits for
nothing."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from ghostcacher_router.types import Ask, NoWorker, Outcome
from ghostcacher_simulator.virtual_time import run_virtual
from tests.unit.router.flow.support import Controlled, settled

STEPS = 120


class Run:
    """Requests and workers that come and go, by a seed."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = Random(seed)
        self.places = rng.randint(1, 3)
        self.rig = Controlled(
            rng.randint(1, 3),
            queue_max=rng.randint(1, 8),
            queue_bytes_max=60,
            worker_requests_max=self.places,
            queue_timeout_s=rng.choice([1.0, 20.0]),
            priorities="client",
            tenants="cache_salt",
            deadlines=True,
        )
        self.asks: dict[str, Ask] = {}

    async def take_steps(self) -> None:
        for number in range(STEPS):
            await self.rng.choices(
                [self.come, self.end, self.turn_away, self.leave, self.pass_time, self.die, self.come_back],
                [6, 4, 1, 1, 2, 0.3, 1],
            )[0](f"r{number}")
            await settled()
            self.check()
        for worker in self.rig.workers:
            self.rig.router.fleet.came_back(worker)
        self.rig.flow.changed()
        await settled()
        await self.rig.finish()
        assert all(task.done() for task in self.rig.tasks.values())
        unexpected = [
            task.exception()
            for task in self.rig.tasks.values()
            if not task.cancelled() and not isinstance(task.exception(), NoWorker | None)
        ]
        assert not unexpected

    def check(self) -> None:
        rig = self.rig
        rig.flow.queue.check_invariants()
        assert not any(map(rig.flow._has_room, rig.flow.queue._needs)), "somebody waits though there is room"
        for worker in rig.workers:
            count = rig.router.routing.state.queues.in_flight(worker.name)
            assert count <= self.places, (worker.name, count)

    async def come(self, name: str) -> None:
        rng, headers = self.rng, []
        if rng.random() < 0.3:
            headers.append((b"x-gc-deadline-ms", b"%d" % rng.choice([0, 300, 3000])))
        given = {"priority": rng.choice([None, 0, 1, 2]), "cache_salt": rng.choice([None, "a", "b"])}
        ask = self.asks[name] = self.rig.ask(name, *headers, size=rng.randint(1, 30), **given)
        await self.rig.send(ask)

    async def end(self, _: str) -> None:
        if self.rig.running:
            await self.rig.end(self.rng.choice(list(self.rig.running)))

    async def turn_away(self, _: str) -> None:
        """A worker answers 503: the request is tried at another one, as the proxy does."""
        if self.rig.running:
            name = self.rng.choice(list(self.rig.running))
            placement = self.rig.running.pop(name)
            placement.ended(Outcome.DONE, 503)
            ask = self.asks[name]
            self.asks[name] = ask._replace(exclude=ask.exclude | {placement.worker})
            await self.rig.send(self.asks[name])

    async def leave(self, _: str) -> None:
        if waiting := [task for task in self.rig.tasks.values() if not task.done()]:
            self.rng.choice(waiting).cancel()

    async def pass_time(self, _: str) -> None:
        await asyncio.sleep(self.rng.choice([0.1, 1.0, 3.0]))

    async def die(self, _: str) -> None:
        self.rig.router.fleet.probe_failed(self.rng.choice(self.rig.workers).name)
        self.rig.flow.changed()

    async def come_back(self, _: str) -> None:
        self.rig.router.fleet.came_back(self.rng.choice(self.rig.workers))
        self.rig.flow.changed()


async def run(seed: int) -> None:
    await Run(seed).take_steps()


@pytest.mark.parametrize("seeds", [range(start, start + 10) for start in range(0, 40, 10)])
def test_whatever_happens_nobody_is_lost(seeds: range) -> None:
    for seed in seeds:
        run_virtual(run(seed))
