"""Ghost locks of two routers in any order of events: the tables stay consistent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ghostcacher_connector.core.coordination.memory import MemoryCoordinationStore
from ghostcacher_connector.core.types import SectionType
from ghostcacher_router.ghostlock.ghost_lock import GhostLock
from ghostcacher_router.ghostlock.single_flight import SingleFlight
from ghostcacher_router.types import Prompt
from ghostcacher_simulator.text import text_of
from tests.support.routing_sim import prompt_of

T = TypeVar("T")
DOC = text_of("document", 4000)
PROMPT = prompt_of(DOC + b"question" * 100, [(SectionType.DOC, len(DOC))])
OTHER = prompt_of(DOC + b"another" * 100, [(SectionType.DOC, len(DOC))])
ALONE = prompt_of(text_of("something else", 4000))


class SingleFlightMachine(RuleBasedStateMachine):
    """Two routers that take, confirm, renew, release and take over in any order, while time passes."""

    @initialize()
    def begin(self) -> None:
        self.now = 0.0
        self.store = MemoryCoordinationStore(clock=lambda: self.now)
        self.runner = asyncio.Runner()
        self.runner.run(asyncio.sleep(0))
        self.routers = [
            SingleFlight(
                self.store, self._at_once, lambda: self.now, router=f"r{n}", clock_offset=float, count=lambda _: None
            )
            for n in range(2)
        ]
        self.taken: list[tuple[SingleFlight, GhostLock]] = []

    async def _at_once(self, call: Callable[[], T], /) -> T:
        return call()

    @rule(router=st.integers(0, 1), prompt=st.sampled_from([PROMPT, OTHER, ALONE]))
    def take(self, router: int, prompt: Prompt) -> None:
        async def step() -> None:
            locks = self.routers[router]
            found, over = locks.find("n", prompt, -1), None
            if found is not None and self.now > found.lock.ready_at:
                locks.take_over(found.lock)
                over = found.lock
            lock = locks.take("n", prompt, -1, f"w{router}", self.now + 1.0)
            if lock is not None and await locks.confirm(lock, over):
                self.taken.append((locks, lock))

        self.runner.run(step())

    @rule(number=st.integers(0, 99))
    def release(self, number: int) -> None:
        async def step() -> None:
            if self.taken:
                locks, lock = self.taken.pop(number % len(self.taken))
                locks.release(lock)
                await locks.drain()

        self.runner.run(step())

    @rule(router=st.integers(0, 1), seconds=st.floats(0, 1.5))
    def renew(self, router: int, seconds: float) -> None:
        self.now += seconds
        self.runner.run(self.routers[router].renew())

    @rule(reachable=st.booleans())
    def reach(self, reachable: bool) -> None:
        self.store.reachable = reachable

    @invariant()
    def sound(self) -> None:
        if not hasattr(self, "routers"):
            return
        for locks in self.routers:
            locks.check_invariants()

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.runner.close()


SingleFlightMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
test_single_flight_machine = SingleFlightMachine.TestCase
