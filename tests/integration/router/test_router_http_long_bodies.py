"""Requests whose bodies have to be waited for, until they are parsed elsewhere: they are like any others."""

from __future__ import annotations

import asyncio
import gc
import json
import random
from itertools import pairwise

import pytest

from ghostcacher_router.http.clients.reading_turns import READS_PER_TURN
from ghostcacher_router.http.exchanges.worker_exchange import WorkerExchange
from ghostcacher_router.http.protocol.limits import Limits
from ghostcacher_router.http.protocol.request_reader import JOINED_BYTES_MAX
from ghostcacher_router.prompt.bodies import BadBody
from ghostcacher_router.types import RequestShape
from tests.support.mock_engine import MockEngine
from tests.support.proxy_rig import POST, eventually, on_loop, post, proxy_rig

CHUNKED_POST = POST + b"Transfer-Encoding: chunked\r\n\r\n"
READ_BYTES = 256 << 10
"""What uvloop reads at most at a time."""
SHAPE = RequestShape("m", True, None, "s")


@on_loop
async def test_others_are_answered_while_a_body_is_parsed() -> None:
    """And then it is placed by what was found in it."""
    async with proxy_rig() as rig:
        first = await rig.client()
        first.send(post(b"long one"))
        await eventually(lambda: rig.parser.waiting)
        assert (await rig.ask(post(b"short")))[1] == b"short"
        assert rig.state.buffered_bytes == len(b"long one")
        rig.parser.waiting[0].set_result(SHAPE)
        assert (await first.answer())[1] == b"long one"
        assert [placement.ask.shape for placement in rig.placements][1] == SHAPE
        assert (await first.ask(post(b"short")))[1] == b"short"


@on_loop
async def test_body_that_turns_out_bad_is_refused() -> None:
    """By the name of its field; a bug is a 500. The client may go on."""
    async with proxy_rig() as rig:
        client = await rig.client()
        for error, status in ((BadBody("expected better", "messages"), 400), (RuntimeError("a bug"), 500)):
            client.send(post(b"long one"))
            await eventually(lambda: rig.parser.waiting)
            rig.parser.waiting.pop().set_exception(error)
            head, body = await client.answer()
            assert head.startswith(b"HTTP/1.1 %d " % status)
            assert json.loads(body)["error"]["param"] == getattr(error, "param", None)
        assert rig.placements == []


@on_loop
async def test_client_that_leaves_meanwhile_is_forgotten() -> None:
    """Its body is let go of, and no worker is asked."""
    async with proxy_rig() as rig:
        client = await rig.client()
        client.send(post(b"long one"))
        await eventually(lambda: rig.parser.waiting)
        client.abort()
        await eventually(lambda: rig.meter.answers)
        assert rig.meter.answers == [("/v1/chat/completions", 499)]
        assert rig.parser.waiting[0].cancelled()
        assert rig.placements == []
        assert rig.state.buffered_bytes == 0


@on_loop
async def test_body_that_is_waited_for_waits_for_a_placement_too() -> None:
    """One wait after the other."""
    async with proxy_rig() as rig:
        rig.dispatcher.slow = slow = asyncio.Event()
        client = await rig.client()
        client.send(post(b"long one"))
        await eventually(lambda: rig.parser.waiting)
        rig.parser.waiting[0].set_result(SHAPE)
        await eventually(lambda: rig.dispatcher.waiting)
        slow.set()
        assert (await client.answer())[1] == b"long one"


@on_loop
async def test_body_that_was_refused_is_let_go_of_at_once() -> None:
    """No circle of an error and what was waited for keeps it until the garbage collector runs."""
    gc.collect()
    gc.disable()
    try:
        async with proxy_rig() as rig:
            client = await rig.client()
            client.send(post(b"long one"))
            await eventually(lambda: rig.parser.waiting)
            rig.parser.waiting.pop().set_exception(BadBody("expected better", "messages"))
            await client.answer()
            await asyncio.sleep(0)
            assert [each for each in gc.get_objects() if type(each) is WorkerExchange] == []
    finally:
        gc.enable()


@pytest.mark.parametrize("chunked", [False, True])
@on_loop
async def test_long_body_arrives_whole(chunked: bool) -> None:
    """In pieces of any size, also twice: the second worker gets what the first one did not take."""
    body = random.Random(5).randbytes(JOINED_BYTES_MAX + 300_001)
    head = CHUNKED_POST if chunked else post(b"x" * len(body))[: -len(body)]
    data = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body
    first, second = MockEngine("w0", lambda peer, _: peer.abort()), MockEngine("w1")
    async with proxy_rig(first, second) as rig:
        client = await rig.client()
        client.send(head)
        for start, end in pairwise([0, 1, 2, 100, 70_000, 70_001, 400_000, 500_000, len(data)]):
            client.send(data[start:end])
            await client.writer.drain()
            await asyncio.sleep(0.002)
        assert (await client.answer())[1] == body
        assert first.received[0].body == second.received[0].body == body


@on_loop
async def test_long_bodies_are_read_in_turns() -> None:
    """In one turn of the event loop no more than a few pieces come, but for the first piece of each client."""
    clients, size = 16, 4 << 20
    async with proxy_rig() as rig:
        senders = [await rig.client() for _ in range(clients)]
        for sender in senders:
            sender.send(post(b"x" * size)[:-1])
        surplus_bytes = before = 0
        while rig.state.buffered_bytes < clients * (size - 1):
            await asyncio.sleep(0)
            grown, before = rig.state.buffered_bytes - before, rig.state.buffered_bytes
            surplus_bytes += max(0, grown - READS_PER_TURN * READ_BYTES)
        assert surplus_bytes <= clients * READ_BYTES
        for sender in senders:
            assert (await sender.ask(b"x"))[1] == b"x" * size


@on_loop
async def test_long_bodies_leave_room_for_short_ones() -> None:
    """However many clients hold long bodies that they do not end."""
    limits = Limits(body_bytes_max=15 << 20, buffered_bytes_max=16 << 20)
    async with proxy_rig(limits=limits) as rig:
        holder = await rig.client()
        holder.send(post(b"x" * (15 << 20))[:-1])
        await eventually(lambda: rig.state.buffered_bytes == (15 << 20) - 1)
        head, _ = await rig.ask(post(b"x" * (1 << 20)))
        assert head.startswith(b"HTTP/1.1 503 ")
        assert (await rig.ask(post(b"x" * JOINED_BYTES_MAX)))[1] == b"x" * JOINED_BYTES_MAX
        assert (await holder.ask(b"x"))[1] == b"x" * (15 << 20)
