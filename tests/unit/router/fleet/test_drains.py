"""Drains, as two routers with one store see them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from ghostcacher_connector.core.coordination.base import DrainOrder
from ghostcacher_connector.core.coordination.memory import MemoryCoordinationStore
from ghostcacher_router.fleet.drains import MARK_TTL_S, Drains
from tests.support.index_parts import FakeClock

T = TypeVar("T")

WORKERS = ("w1@00", "w2@00")
TTL_S = 86_400.0
KEY = b"the fleet's secret"


async def at_once(call: Callable[[], T], /) -> T:
    return call()


def drains_of(store: MemoryCoordinationStore, clock: FakeClock) -> Drains:
    drains = Drains(store.client(), ttl_s=TTL_S, offload=at_once, clock=clock)
    drains.follow(WORKERS)
    return drains


def run(main: Callable[[MemoryCoordinationStore, FakeClock, Drains, Drains], Coroutine[Any, Any, None]]) -> None:
    """Run a test in which both routers know that w1 is drained."""
    clock = FakeClock()
    store = MemoryCoordinationStore(clock=clock, key=KEY)
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
    """The later order counts, whoever gave it, and however often the two were given."""

    async def main(_: MemoryCoordinationStore, __: FakeClock, here: Drains, far: Drains) -> None:
        for draining in (False, True, False):
            far.want("w1@00", draining)
            assert await far.exchange()
            assert await here.exchange()
            assert here.hold("w1@00") is far.hold("w1@00") is draining

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
            (order,) = store.drains(["w1@00"])[1]
            assert order is not None
            assert order.draining
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


def test_order_that_a_stranger_takes_away_is_written_again() -> None:
    """Also while everything else in the store, the routers' marks included, stays: missing is not taken back."""

    async def main(store: MemoryCoordinationStore, _: FakeClock, here: Drains, far: Drains) -> None:
        store._drains.pop("w1@00")
        assert await far.exchange()
        assert await here.exchange()
        assert here.hold("w1@00")
        assert far.hold("w1@00")
        assert store.drains(["w1@00"])[1] != [None]

    run(main)


def test_order_of_another_key_drains_nobody_and_is_never_written_back() -> None:
    """What a stranger says of a worker is neither believed nor made our own; nor does it hide our own order."""

    async def main(store: MemoryCoordinationStore, clock: FakeClock, here: Drains, far: Drains) -> None:
        for stranger in (store.client(b""), store.client(b"another secret")):
            stranger.put_drains(
                [DrainOrder(name, name == "w2@00", clock.now + 9, clock.now + TTL_S) for name in WORKERS]
            )
            assert await here.exchange()
            assert await far.exchange()
            assert (here.hold("w1@00"), here.hold("w2@00"), far.hold("w2@00")) == (True, False, False)
            assert store.drains(["w1@00"])[1] != [None]
            store._drains.pop("w2@00")
            assert await here.exchange()
            assert store.drains(["w2@00"])[1] == [None]

    run(main)


def test_earlier_order_that_is_put_back_does_not_count() -> None:
    """An order that was replaced is authentic still: the routers know the later one, and write it again."""

    async def main(store: MemoryCoordinationStore, _: FakeClock, here: Drains, far: Drains) -> None:
        before = store._drains.get("w1@00")
        assert before is not None
        here.want("w1@00", False)
        assert await here.exchange()
        assert await far.exchange()
        store._drains.put("w1@00", before, TTL_S)
        assert await far.exchange()
        assert await here.exchange()
        assert not here.hold("w1@00")
        assert not far.hold("w1@00")
        (order,) = store.drains(["w1@00"])[1]
        assert order is not None
        assert not order.draining

    run(main)


def test_drain_ends_by_itself() -> None:
    """Nobody writes an order again whose time is over."""

    async def main(store: MemoryCoordinationStore, clock: FakeClock, here: Drains, far: Drains) -> None:
        clock.advance(TTL_S + 1)
        for drains in (here, far, here):
            assert await drains.exchange()
            assert not drains.hold("w1@00")
        assert store.drains(["w1@00"])[1] == [None]

    run(main)


def test_router_that_starts_learns_of_those_it_is_about_to_follow() -> None:
    """A new router, or one that meets a worker for the first time, knows the drain before it uses the worker."""

    async def main(store: MemoryCoordinationStore, clock: FakeClock, _: Drains, __: Drains) -> None:
        new = Drains(store.client(), ttl_s=TTL_S, offload=at_once, clock=clock)
        assert await new.exchange(["w1@00"])
        assert new.hold("w1@00")
        new.follow(["w2@00"])
        assert not new.hold("w1@00")

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
    """However long a router runs, it does not take its own mark's end for a loss of everything."""

    async def main(_: MemoryCoordinationStore, clock: FakeClock, here: Drains, far: Drains) -> None:
        for _turn in range(4):
            clock.advance(MARK_TTL_S * 0.6)
            assert await here.exchange()
            assert await far.exchange()
            assert not await here.forgot(5.0)

    run(main)


def test_store_away_changes_nothing() -> None:
    """What was seen last holds while the store is away, and what is wanted meanwhile is told later."""

    async def main(store: MemoryCoordinationStore, clock: FakeClock, here: Drains, far: Drains) -> None:
        away = Drains(store, ttl_s=TTL_S, offload=at_once, clock=clock)
        away.follow(WORKERS)
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
