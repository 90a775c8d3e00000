"""The HTTP proxy with more clients than there is room for: who waits goes, who works stays, the log says why."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ghostcacher_router.http import rare_lines
from ghostcacher_router.http.clients import admission
from ghostcacher_router.http.protocol.limits import Limits
from tests.support.mock_engine import MockEngine, Peer, Received, echo
from tests.support.proxy_rig import POST, Client, Rig, eventually, on_loop, post, proxy_rig

OTHER_ADDRESS = "127.0.0.2"


class Gated(MockEngine):
    """Echoes what is posted, once `gate` is set."""

    def __init__(self) -> None:
        super().__init__("w0", self.wait)
        self.gate = asyncio.Event()

    async def wait(self, peer: Peer, request: Received) -> None:
        await self.gate.wait()
        echo(peer, request)


async def connected(rig: Rig, count: int, address: str = "127.0.0.1") -> list[Client]:
    """Return idle clients, of which the router knows, in their order."""
    clients = []
    for _ in range(count):
        before = len(rig.state.clients)
        clients.append(await rig.client(address))
        await eventually(lambda before=before: len(rig.state.clients) == before + 1)
    return clients


async def busy(rig: Rig, count: int, address: str = "127.0.0.1") -> list[Client]:
    """Return clients whose requests are at the worker."""
    clients = await connected(rig, count, address)
    before = len(rig.engine.received)
    for client in clients:
        client.send(post(b"{}"))
    await eventually(lambda: len(rig.engine.received) == before + count)
    return clients


async def refused(client: Client) -> None:
    """Assert that a client gets the reason, although it sends a long request meanwhile, and then the end."""
    client.send(post(b"x" * (16 << 20)))
    await client.writer.drain()
    head, body = await client.answer()
    assert (head[:12], b"retry-after: 1\r\n" in head) == (b"HTTP/1.1 503", True)
    assert json.loads(body)["error"]["code"] == "overloaded"
    client.finish()
    assert await client.rest() == b""


async def is_served(client: Client) -> bool:
    return (await client.ask(post(b"mine")))[1] == b"mine"


@contextmanager
def open_files(soft: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@contextmanager
def files_for(sockets: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if so many sockets of clients and workers fitted below the limit of open files, of which a quarter is kept."""
    soft = sockets * 4 // 3
    with monkeypatch.context() as patch:
        patch.setattr(resource, "getrlimit", lambda _: (soft, soft))
        yield


def lowest_free() -> int:
    number = os.dup(0)
    os.close(number)
    return number


@on_loop
async def test_new_client_takes_the_place_of_the_one_that_has_been_idle_longest() -> None:
    """Whether that one ever sent a request or not; a request makes it young again."""
    async with proxy_rig(limits=Limits(connections_max=3)) as rig:
        first, second, third = await connected(rig, 3)
        assert await is_served(first)
        fourth = await rig.client()
        assert await is_served(fourth)
        assert await second.rest() == b""
        fifth = await rig.client()
        assert await is_served(fifth)
        assert await third.rest() == b""
        for client in (first, fourth, fifth):
            assert await is_served(client)
        assert rig.meter.turned_away == [("connections", "dropped")] * 2


@on_loop
async def test_client_is_refused_when_all_others_are_at_work() -> None:
    """Those who are there go on: with a request at a worker, or a body that is still coming."""
    async with proxy_rig(Gated(), limits=Limits(connections_max=3)) as rig:
        answered = await busy(rig, 2)
        (sending,) = await connected(rig, 1)
        sending.send(POST + b"Content-Length: 2\r\n\r\n{")
        await eventually(lambda: rig.state.buffered_bytes)
        for _ in range(3):
            await refused(await rig.client())
        rig.engine.gate.set()  # type: ignore[attr-defined]
        sending.send(b"}")
        for client in (*answered, sending):
            assert (await client.answer())[1] == b"{}"
        assert rig.meter.turned_away == [("connections", "refused")] * 3
        assert await is_served(await rig.client())


@on_loop
async def test_client_with_half_a_head_is_told_why_it_is_dropped() -> None:
    """It was about to send a request, but holds a place in which another could."""
    async with proxy_rig(limits=Limits(connections_max=1)) as rig:
        (slow,) = await connected(rig, 1)
        slow.send(POST)
        await eventually(lambda: all(one._reader.pending for one in rig.state.clients))
        assert await is_served(await rig.client())
        assert (await slow.head()).startswith(b"HTTP/1.1 503 ")


@pytest.mark.parametrize("sent", [b"", b"POST /v1/completions HTTP/1.1\r\nX: ", post(b"")])
@on_loop
async def test_crowd_that_only_holds_connections_keeps_nobody_out(sent: bytes) -> None:
    """Silent, with half a head, or kept after a request: every client that works is served."""
    async with proxy_rig(limits=Limits(connections_max=50)) as rig:
        for _ in range(4):
            for _ in range(60):
                (await rig.client()).send(sent)
            assert await is_served(await rig.client())
        await eventually(lambda: len(rig.state.clients) <= 50)


@on_loop
async def test_crowd_that_sends_bodies_slowly_keeps_nobody_out() -> None:
    """A body that comes fast enough stays, one that has just begun, too; the others make room, the oldest first."""
    limits = Limits(connections_max=4)
    async with proxy_rig(Gated(), limits=limits) as rig:
        slow = await connected(rig, 2)
        (fast,) = await connected(rig, 1)
        size = int(limits.body_rate_min * 10)
        for client, sent in ((fast, size - 1), (slow[0], 1), (slow[1], 1)):
            client.send(post(b"x" * size)[: sent - size])
        await eventually(lambda: rig.state.buffered_bytes == size + 1)
        rig.clock.now += limits.body_grace_s + 1
        (young,) = await connected(rig, 1)
        young.send(post(b"x" * size)[:-size])
        await eventually(lambda: len(rig.state.admission._sending) == 4)
        rig.clock.now += limits.body_grace_s / 2
        new = []
        for client in slow:
            new.append(await rig.client())
            assert (await client.head()).startswith(b"HTTP/1.1 503 ")
            new[-1].send(post(b"mine"))
            await eventually(lambda: len(rig.engine.received) == len(new))
        await refused(await rig.client())
        rig.engine.gate.set()  # type: ignore[attr-defined]
        for client, rest in ((fast, b"x"), (young, b"x" * size)):
            assert (await client.ask(rest))[1] == b"x" * size
        assert [(await client.answer())[1] for client in new] == [b"mine"] * 2
        assert rig.meter.turned_away == [("connections", "dropped")] * 2 + [("connections", "refused")]


@on_loop
async def test_refused_clients_do_not_pile_up() -> None:
    """They may stay for a moment, to read why; but not however many there are."""
    async with proxy_rig(Gated(), limits=Limits(connections_max=1)) as rig:
        (worked_for,) = await busy(rig, 1)
        crowd = [await rig.client() for _ in range(3 * admission.LINGERING_MAX)]
        await eventually(lambda: len(rig.meter.turned_away) == len(crowd))
        await eventually(lambda: len(rig.state.clients) <= 1 + admission.LINGERING_MAX)
        rig.pass_time(Limits().linger_s + 1)
        await eventually(lambda: len(rig.state.clients) == 1)
        rig.engine.gate.set()  # type: ignore[attr-defined]
        assert (await worked_for.answer())[1] == b"{}"


@on_loop
async def test_limit_of_an_address_is_its_own() -> None:
    """Its idle connections go first, then it is refused, while another address is served and keeps what it has."""
    async with proxy_rig(Gated(), limits=Limits(connections_max=50, connections_per_address_max=3)) as rig:
        (other,) = await connected(rig, 1, OTHER_ADDRESS)
        (idle,) = await connected(rig, 1)
        at_work = await busy(rig, 2)
        at_work.append(await rig.client())
        assert await idle.rest() == b""
        at_work[-1].send(post(b"{}"))
        await eventually(lambda: len(rig.engine.received) == 3)
        await refused(await rig.client())
        await eventually(lambda: len(rig.state.clients) == 4)
        more = await connected(rig, 2, OTHER_ADDRESS)
        rig.engine.gate.set()  # type: ignore[attr-defined]
        assert [await is_served(client) for client in (other, *more)] == [True] * 3
        for client in at_work:
            assert (await client.answer())[1] == b"{}"
        assert rig.meter.turned_away == [("address", "dropped"), ("address", "refused")]


@on_loop
async def test_addresses_have_no_limit_of_their_own_by_default() -> None:
    """Behind a load balancer all clients come from one."""
    assert Limits().connections_per_address_max is None
    async with proxy_rig() as rig:
        for client in await connected(rig, 100):
            assert await is_served(client)
        assert rig.meter.turned_away == []


@on_loop
async def test_last_descriptors_are_not_for_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle clients make room; when all work, the new one is refused with an answer, and those who work go on."""
    async with proxy_rig(Gated(), limits=Limits(connections_max=1000)) as rig:
        (at_work,) = await busy(rig, 1)
        idle = await connected(rig, 2)
        with files_for(sockets=4, monkeypatch=monkeypatch):
            new = await rig.client()
            assert await idle[0].rest() == b""
        assert rig.meter.turned_away == [("descriptors", "dropped")]
        new.send(post(b"{}"))
        idle[1].send(post(b"{}"))
        await eventually(lambda: len(rig.engine.received) == 3)
        with files_for(sockets=6, monkeypatch=monkeypatch):
            await refused(await rig.client())
        assert rig.meter.turned_away[1:] == [("descriptors", "refused")]
        rig.engine.gate.set()  # type: ignore[attr-defined]
        for client in (at_work, new, idle[1]):
            assert (await client.answer())[1] == b"{}"
        assert await is_served(await rig.client())


@on_loop
async def test_router_that_cannot_accept_goes_on_with_those_who_are_there() -> None:
    """Every descriptor is taken, by whomever: it works on, and accepts again once there is one."""
    async with proxy_rig() as rig:
        (there,) = await connected(rig, 1)
        assert await is_served(there)
        clients = [Client(*await asyncio.open_connection(sock=None, host="127.0.0.1", port=rig.engine.port))]
        before = len(rig.state.clients)
        with open_files(lowest_free() + 1):
            late = await rig.client()
            assert await is_served(there)
            assert await late.rest() == b""
        assert len(rig.state.clients) == before
        clients[0].abort()
        assert await is_served(await rig.client())


@on_loop
async def test_shortage_is_logged_with_its_numbers_but_not_for_each_client(caplog: pytest.LogCaptureFixture) -> None:
    """At once, and from then on at most every ten seconds."""
    async with proxy_rig(limits=Limits(connections_max=1)) as rig:
        with caplog.at_level(logging.WARNING, logger=admission.logger.name):
            for count in (5, 20, 3):
                for _ in range(count):
                    assert await is_served(await rig.client())
                rig.pass_time(1)
            rig.pass_time(rare_lines.INTERVAL_S)
            rig.pass_time(rare_lines.INTERVAL_S)
    assert [record.getMessage().partition(" clients are connected")[0] for record in caplog.records] == [
        "connections_max=1"
    ] * 2
    assert ["4 idle" in caplog.messages[0], "23 idle" in caplog.messages[1]] == [True, True]
    assert "127.0.0.1" in caplog.messages[0]
