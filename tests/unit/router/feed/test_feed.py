"""A feed that reads a store, and routers that are told by it, over a real socket."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from ghostcacher_connector.core.coordination.memory import MemoryCoordinationStore
from ghostcacher_router.feed import server as server_module
from ghostcacher_router.feed import subscription as subscription_module
from ghostcacher_router.feed.messages import SIZE, Folded, framed
from ghostcacher_router.feed.server import FeedServer
from ghostcacher_router.feed.subscription import Subscription
from ghostcacher_simulator.text import text_of
from tests.support.coordination_parts import make_update
from tests.support.mock_engine import until
from tests.support.proxy_rig import on_loop
from tests.support.routing_sim import Router, Sim


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscription_module, "JOIN_S", 0.02)
    monkeypatch.setattr(server_module, "READ_BLOCK_S", 0.02)


async def in_thread(call: Callable[[], Any], /) -> Any:
    return await asyncio.to_thread(call)


@asynccontextmanager
async def feeding(store: MemoryCoordinationStore, path: Path) -> AsyncIterator[FeedServer]:
    """A feed that runs."""
    feed = FeedServer(store, in_thread, path, asyncio.get_running_loop().time)
    running = asyncio.create_task(feed.run())
    try:
        await until(lambda: feed._warm, "a feed that is warm")
        yield feed
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


class Told:
    """A router that listens to a feed. reads: how often it has read the store itself."""

    def __init__(self, router: Router, path: Path) -> None:
        assert router.store is not None
        assert router.routing.sync is not None
        self.sync, self.text, self.store, self.reads = router.routing.sync, router.text, router.store, 0
        self.may_read = asyncio.Event()
        self.may_read.set()
        read = self.sync._read_offload

        async def counted(call: Callable[[], Any], /) -> Any:
            await self.may_read.wait()
            self.reads += 1
            return await read(call)

        self.sync._read_offload = counted
        self.subscription = Subscription(path, asyncio.get_running_loop().time)

    def listen(self) -> None:
        self.sync.feed = self.subscription

    @property
    def joined(self) -> bool:
        return "joined=True" in repr(self.subscription)


@on_loop
async def test_routers_that_are_told_read_nothing_themselves(tmp_path: Path) -> None:
    """What one sends, and its engine reports, both know; what others publish, too."""
    sim = Sim(1, routers=2)
    path = tmp_path / "feed"
    async with feeding(sim.store.client(), path):
        one, two = (Told(router, path) for router in sim.routers)
        for each in (one, two):
            each.listen()
        await until(lambda: all(map(is_told, (one, two))), "both are told")
        reads = one.reads, two.reads
        await sim.routers[0].send(text_of("text", 100))
        sim.store.append_updates([make_update(count=3)])
        await until(lambda: len(two.text) == len(one.text) > 3, "both know")
        assert (one.reads, two.reads) == reads
        await sim.routers[0].routing.stop()
        await sim.routers[1].routing.stop()


def is_told(router: Told) -> bool:
    """Whether it has taken in something from the feed."""
    return router.subscription._wished is not None


@on_loop
async def test_no_item_is_lost_where_a_feed_begins_and_ends(tmp_path: Path) -> None:
    """A router that lags behind the feed first reads what lies between; one that loses it goes on from there."""
    sim = Sim(1)
    path, router = tmp_path / "feed", Told(sim.routers[0], tmp_path / "feed")
    await until(lambda: router.sync.warm, "a warm router")
    router.may_read.clear()
    count = 0

    def publish(items: int) -> None:
        nonlocal count
        sim.store.append_updates([make_update(seed=count + number, count=1) for number in range(items)])
        count += items

    publish(600)
    async with feeding(sim.store.client(), path) as feed:
        router.listen()
        router.may_read.set()
        await until(lambda: is_told(router) or len(router.text) == 600, "told")
        publish(5)
        await until(lambda: len(router.text) == count, "all of them")
        await until(lambda: bool(feed._listeners), "a listener")
    publish(5)
    await until(lambda: len(router.text) == count, "what the router reads itself")
    async with feeding(sim.store.client(), path):
        publish(5)
        await until(lambda: router.joined and len(router.text) == count, "told again")
        await sim.routers[0].routing.stop()


@on_loop
async def test_feed_whose_store_is_away_lets_routers_read_themselves(tmp_path: Path) -> None:
    """And takes them again when it is back."""
    sim = Sim(1)
    store, path = sim.store.client(), tmp_path / "feed"
    async with feeding(store, path):
        router = Told(sim.routers[0], path)
        router.listen()
        await until(lambda: router.joined, "joined")
        store.reachable = False
        await until(lambda: not router.joined, "left")
        sim.store.append_updates([make_update(count=3)])
        await until(lambda: len(router.text) == 3, "what it has read itself")
        assert not router.joined
        store.reachable = True
        await until(lambda: router.joined, "joined again")
        await sim.routers[0].routing.stop()


@on_loop
async def test_listener_that_does_not_keep_up_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for it is bounded; the others are told all."""
    monkeypatch.setattr(server_module, "BACKLOG_BYTES_MAX", 1000)
    sim = Sim(1)
    path = tmp_path / "feed"
    async with feeding(sim.store.client(), path) as feed:
        router = Told(sim.routers[0], path)
        router.listen()
        reader, writer = await asyncio.open_unix_connection(path, limit=1000)
        await until(lambda: len(feed._listeners) == 2, "two listeners")
        for _ in range(200):
            before = feed._cursor
            sim.store.append_updates([make_update(count=4000)])
            await until(lambda before=before: feed._cursor != before, "a message")  # type: ignore[misc]
            if len(feed._listeners) == 1:
                break
        assert len(feed._listeners) == 1
        writer.close()
        sim.store.append_updates([make_update(seed=1, count=3)])
        await until(lambda: len(router.text) == 4003, "all of it")
        await sim.routers[0].routing.stop()
    del reader


@pytest.mark.parametrize("said", [SIZE.pack((64 << 20) + 1), SIZE.pack(3) + b"abc", SIZE.pack(9) + b"ab"])
@on_loop
async def test_feed_that_tells_what_is_no_message_is_left(tmp_path: Path, said: bytes) -> None:
    """Too long, not understood, or cut off."""

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        writer.close()

    server = await asyncio.start_unix_server(answer, tmp_path / "feed")
    subscription = Subscription(tmp_path / "feed", asyncio.get_running_loop().time)
    assert await subscription.join() is None
    assert repr(subscription) == "Subscription(feed, joined=False)"
    assert await subscription.next() is None
    server.close()


@on_loop
async def test_log_says_when_a_feed_begins_and_ends_to_tell(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A feed that has just started closes what comes: nothing is lost by that, and nothing is said of it."""
    answers = iter([b"", framed(Folded(*MemoryCoordinationStore().start_cursor()))])

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(next(answers))
        writer.close()

    server = await asyncio.start_unix_server(answer, tmp_path / "feed")
    subscription = Subscription(tmp_path / "feed", count(0.0, 10.0).__next__)
    caplog.set_level(logging.INFO)
    assert await subscription.join() is None
    assert caplog.messages == []
    assert await subscription.join() is not None
    assert await subscription.next() is None
    assert caplog.messages == [
        "feed tells what routers and workers publish",
        "feed tells no more: it has closed the connection",
    ]
    server.close()


@on_loop
async def test_feed_that_tells_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It tells that it is there, however little there is to tell."""
    monkeypatch.setattr(subscription_module, "SILENCE_S", 0.01)
    hold = asyncio.Event()

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await hold.wait()
        writer.close()

    server = await asyncio.start_unix_server(answer, tmp_path / "feed")
    subscription = Subscription(tmp_path / "feed", asyncio.get_running_loop().time)
    assert await subscription.join() is None
    hold.set()
    server.close()
