"""Drains, as two routers with one store see them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from ghostcacher_connector.core.coordination.memory import MemoryCoordinationStore
from ghostcacher_router.fleet.drains import MARK_TTL_S, Drains
from tests.support.index_parts import FakeClock


async def at_once(call: Callable[..., object], *args: object, **more: object) -> object:
    return call(*args, **more)


def drains_of(store: MemoryCoordinationStore, clock: FakeClock) -> Drains:
    return Drains(store.client(), ttl_s=86_400.0, in_thread=at_once, clock=clock)


def run(main: Callable[[MemoryCoordinationStore, FakeClock, Drains, Drains], Coroutine[Any, Any, None]]) -> None:
    """Run a test in which both routers know that w1 is drained."""
    clock = FakeClock()
    store = MemoryCoordinationStore(clock=clock)
    here, far = drains_of(store, clock), drains_of(store, clock)

    async def start() -> None:
        here.want("w1@00", True)
        assert await here.exchange()
        assert await far.exchange()
        assert here.hold("w1@00")
        assert far.hold("w1@00")
        await main(store, clock, here, far)

    asyncio.run(start())


def test_drain_taken_back_elsewhere_ends_here() -> None:
    """What is gone from a store that has not forgotten was taken back."""

    async def main(_: MemoryCoordinationStore, __: FakeClock, here: Drains, far: Drains) -> None:
        far.want("w1@00", False)
        assert await far.exchange()
        assert await here.exchange()
        assert not here.hold("w1@00")

    run(main)


def test_drain_in_store_that_forgets_holds_and_is_told_again() -> None:
    """Whichever router looks first: both hold it, the store knows it again, and it can still be taken back."""

    async def main(store: MemoryCoordinationStore, _: FakeClock, here: Drains, far: Drains) -> None:
        for first, second in ((here, far), (far, here)):
            store.flush()
            assert await first.exchange()
            assert await second.exchange()
            assert first.hold("w1@00")
            assert second.hold("w1@00")
            assert "w1@00" in store.drains()
        here.want("w1@00", False)
        assert await here.exchange()
        assert await far.exchange()
        assert not far.hold("w1@00")

    run(main)


def test_drain_that_only_one_router_knows_outlasts_a_flush() -> None:
    """The other router has looked at the empty store before: what it has left there hides nothing."""

    async def main(store: MemoryCoordinationStore, _: FakeClock, here: Drains, far: Drains) -> None:
        here.want("w2@00", True)
        assert await here.exchange()
        store.flush()
        assert await far.exchange()
        assert await here.exchange()
        assert await far.exchange()
        assert here.hold("w2@00")
        assert far.hold("w2@00")

    run(main)


def test_store_that_forgets_is_noticed_once_by_each_router() -> None:
    """Also when the other one has looked before; a store that was never seen full has forgotten nothing."""

    async def main(store: MemoryCoordinationStore, clock: FakeClock, here: Drains, far: Drains) -> None:
        assert not await here.forgot(5.0)
        store.flush()
        assert await here.forgot(5.0)
        assert await far.forgot(5.0)
        assert not await drains_of(store, clock).forgot(5.0)
        clock.advance(5.0)
        assert not await here.forgot(5.0)

    run(main)


def test_mark_is_renewed() -> None:
    """However long a router runs, a drain that is taken back elsewhere ends."""

    async def main(_: MemoryCoordinationStore, clock: FakeClock, here: Drains, far: Drains) -> None:
        for _turn in range(4):
            clock.advance(MARK_TTL_S * 0.6)
            assert await here.exchange()
            assert await far.exchange()
        far.want("w1@00", False)
        assert await far.exchange()
        assert await here.exchange()
        assert not here.hold("w1@00")

    run(main)


def test_store_away_changes_nothing() -> None:
    """What was seen last holds while the store is away, and what is wanted meanwhile is told later."""

    async def main(store: MemoryCoordinationStore, _: FakeClock, here: Drains, far: Drains) -> None:
        away = Drains(store, ttl_s=86_400.0, in_thread=at_once)
        assert await away.exchange()
        store.reachable = False
        away.want("w2@00", True)
        assert not await away.exchange()
        assert away.hold("w1@00")
        store.reachable = True
        assert await away.exchange()
        assert await far.exchange()
        assert far.hold("w2@00")

    run(main)
