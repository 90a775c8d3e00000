"""The batches in which the store and the index are asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

import pytest

from ghostcacher_connector.core.breaker import BREAKER_S
from ghostcacher_connector.core.errors import IndexUnavailable
from ghostcacher_router.signals.coalescer import Coalescer
from ghostcacher_simulator.virtual_time import run_virtual, soon
from tests.support.routing_sim import all_of

T = TypeVar("T")


class Asked:
    """A blocking question that counts its batches."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.answers: dict[str, str] = {}
        self.failing = False

    def prepare(self, keys: Sequence[str]) -> Callable[[], list[str]]:
        def ask() -> list[str]:
            self.batches.append(list(keys))
            if self.failing:
                raise IndexUnavailable("away")
            return [key.upper() for key in keys]

        return ask

    def told(self, key: str, answer: str) -> None:
        self.answers[key] = answer


def test_coalescer_asks_once_for_many() -> None:
    """What is asked while a batch is under way goes with the next; the same key is asked for once."""

    async def main() -> None:
        asked = Asked()
        coalescer = Coalescer(asked.prepare, asked.told, soon, clock=asyncio.get_running_loop().time)
        waits = [coalescer.wait(key, 1.0) for key in ("a", "b", "a", "c")]
        assert await asyncio.gather(*waits) == [True] * 4
        assert asked.batches == [["a", "b", "c"]]
        assert asked.answers == {"a": "A", "b": "B", "c": "C"}

    run_virtual(main())


def test_coalescer_failure_ends_waits_and_opens_the_breaker() -> None:
    """A failure answers everybody at once; for a while nobody asks, then it tries again."""

    async def main() -> None:
        loop, asked = asyncio.get_running_loop(), Asked()
        coalescer = Coalescer(asked.prepare, asked.told, soon, clock=loop.time)
        asked.failing = True
        assert await all_of([coalescer.wait("a", 1.0), coalescer.wait("b", 1.0)]) == [False, False]
        asked.failing, started = False, loop.time()
        assert not await coalescer.wait("a", 1.0)
        assert loop.time() == started
        await asyncio.sleep(BREAKER_S)
        assert await coalescer.wait("a", 1.0)
        assert len(asked.batches) == 2

    run_virtual(main())


def test_coalescer_wait_is_bounded() -> None:
    """Who waits is told after its time, whatever the thread does; a queue that is full asks for nothing more."""

    async def main() -> None:
        asked, loop = Asked(), asyncio.get_running_loop()

        async def never(_: Callable[[], T], /) -> T:
            await loop.create_future()
            raise AssertionError

        coalescer = Coalescer(asked.prepare, asked.told, never, clock=loop.time, queue_max=2)
        started = loop.time()
        assert not await coalescer.wait("a", 0.005)
        assert loop.time() - started == pytest.approx(0.005)
        for key in "bcdef":
            coalescer.refresh(key)
        assert len(coalescer._asked) == 2
        coalescer.stop()

    run_virtual(main())


def test_wait_that_is_cancelled_as_the_answer_comes_ends() -> None:
    """Whoever waits has left: what follows the wait, such as sending a request, must not happen."""

    async def main() -> None:
        loop, asked = asyncio.get_running_loop(), Asked()
        went_on = []

        def told(key: str, answer: str) -> None:
            loop.call_soon(waits.cancel)

        coalescer = Coalescer(asked.prepare, told, soon, clock=loop.time)

        async def wait() -> None:
            await coalescer.wait("a", 1.0)
            went_on.append("a")

        waits = asyncio.ensure_future(wait())
        await asyncio.wait([waits])
        assert (waits.cancelled(), went_on) == (True, [])

    run_virtual(main())
