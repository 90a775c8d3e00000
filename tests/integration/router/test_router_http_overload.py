"""The HTTP proxy at its own limits: what it lacks is no worker's fault, and a long head that is sent ahead is read."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import resource

import pytest

from ghostcacher_router.http.protocol.limits import Limits
from ghostcacher_router.http.rare_lines import INTERVAL_S
from ghostcacher_router.types import Endpoint, Outcome
from tests.support.mock_engine import MockEngine, Peer, Received, echo
from tests.support.proxy_rig import Rig, eventually, on_loop, post, proxy_rig


async def overloaded(rig: Rig, answer: tuple[bytes, bytes]) -> None:
    """Assert that the client is to come again, and that no worker is blamed or asked instead."""
    head, body = answer
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 1\r\n" in head
    assert json.loads(body)["error"]["code"] == "router_overloaded"
    assert [(place.worker, place.outcome) for place in rig.placements] == [("w0", Outcome.FAILED)]
    assert rig.meter.reasons == []


@on_loop
async def test_router_without_descriptors_blames_no_worker() -> None:
    """The request fails, its client may go on, and so may the next request."""
    async with proxy_rig(MockEngine("w0"), MockEngine("w1")) as rig:
        client = await rig.client()
        await client.ask(post(b"first"))
        await rig.state.pools.close()
        rig.placements.clear()
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest_free = os.dup(0)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
        try:
            answer = await client.ask(post(b"second"))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        await overloaded(rig, answer)
        assert (await client.ask(post(b"third")))[1] == b"third"


@on_loop
async def test_last_descriptors_are_not_for_connections_to_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients could not be told any more why they are refused; nor could workers be probed."""
    async with proxy_rig(MockEngine("w0"), MockEngine("w1")) as rig:
        client = await rig.client()
        await client.ask(post(b"first"))
        await rig.state.pools.close()
        rig.placements.clear()
        with monkeypatch.context() as patch:
            patch.setattr(resource, "getrlimit", lambda _: (1, 1))
            answer = await client.ask(post(b"second"))
        await overloaded(rig, answer)
        await eventually(lambda: rig.state.pools.open_count == 0)
        assert (await client.ask(post(b"third")))[1] == b"third"


@pytest.mark.interpreted
@on_loop
async def test_what_the_router_lacks_is_not_logged_for_each_request(caplog: pytest.LogCaptureFixture) -> None:
    """Once in a while, with how often it was."""

    async def lacking(endpoint: Endpoint) -> object:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async with proxy_rig() as rig:
        rig.state.pools.connect = lacking  # type: ignore[method-assign, assignment]
        client = await rig.client()
        for _ in range(20):
            await client.ask(post(b"{}"))
        rig.pass_time(INTERVAL_S + 1)
        await client.ask(post(b"{}"))
        lines = [message for message in caplog.messages if "cannot connect" in message]
        assert ["1 requests" in lines[0], "21 requests" in lines[1], len(lines)] == [True, True, 2]


@pytest.mark.interpreted
@pytest.mark.parametrize("number", [errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM])
@on_loop
async def test_what_the_router_lacks_blames_no_worker(number: int) -> None:
    """Ports and memory, as descriptors."""

    async def lacking(endpoint: Endpoint) -> object:
        raise OSError(number, os.strerror(number))

    async with proxy_rig(MockEngine("w0"), MockEngine("w1")) as rig:
        rig.state.pools.connect = lacking  # type: ignore[method-assign, assignment]
        await overloaded(rig, await rig.ask(post(b"{}")))


@on_loop
async def test_long_head_that_is_sent_ahead_is_read_to_its_end() -> None:
    """Longer than what is read while an answer is under way."""
    gate = asyncio.Event()

    async def wait(peer: Peer, request: Received) -> None:
        await gate.wait()
        echo(peer, request)

    limits = Limits(head_bytes_max=1 << 20, pipelined_bytes_max=1 << 16)
    async with proxy_rig(MockEngine("w0", wait), limits=limits) as rig:
        client = await rig.client()
        client.send(post(b"one") + post(b"two", b"X: " + b"a" * 900_000))
        await eventually(lambda: rig.engine.received and all(one._read_paused for one in rig.state.clients))
        gate.set()
        assert [(await client.answer())[1] for _ in range(2)] == [b"one", b"two"]
