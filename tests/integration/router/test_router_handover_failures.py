"""What becomes of a request whose prompt another worker computes, when that one hangs, is gone, or takes too long."""

from __future__ import annotations

import asyncio
import json

from ghostcacher_router.types import Outcome
from tests.support.black_hole import swallow
from tests.support.handover_rig import (
    COMPUTED,
    CONVERSATION,
    PARAMS,
    SHORT,
    asked,
    bodies,
    breaks,
    never,
    request,
    steps,
    two_steps,
)
from tests.support.mock_engine import MockEngine, Peer, Received, content, says
from tests.support.prompts import say
from tests.support.proxy_rig import Rig, eventually, on_loop, proxy_rig


def hangs(rig: Rig, engine: MockEngine) -> None:
    rig.proxy.worker_hangs(engine.name, engine.endpoint, rig.clock())


@on_loop
async def test_another_worker_computes_when_the_first_hangs() -> None:
    """As its probes show; it is to blame, since another worker has answered. Who hangs elsewhere holds up nobody."""
    p1, p2, d = MockEngine("p1", never), MockEngine("p2", says(content(COMPUTED))), MockEngine("d")
    async with proxy_rig(p1, p2, d, limits=SHORT) as rig:
        client = await asked(rig, p1)
        hangs(rig, d)
        hangs(rig, p2)
        hangs(rig, p1)
        await client.answer()
        assert steps(rig) == [
            ("p1", "prefill", Outcome.REFUSED),
            ("p2", "prefill", Outcome.DONE),
            ("d", "decode", Outcome.DONE),
        ]
        assert bodies(d)[0]["kv_transfer_params"] == PARAMS
        assert [place.blamed for place in rig.placements] == [True, None, None]
        assert rig.meter.reasons == ["hung"]


@on_loop
async def test_worker_that_answers_computes_when_the_only_other_hangs() -> None:
    """The client waits no longer than for any other request at a worker that hangs."""
    p, d = MockEngine("p", never), MockEngine("d", says(content(b"answer")))
    async with proxy_rig(p, d, limits=SHORT) as rig:
        client = await asked(rig, p)
        hangs(rig, p)
        assert (await client.answer())[1] == b"answer"
        assert bodies(d) == [CONVERSATION]
        assert rig.placements[0].blamed is True
        assert rig.meter.handovers == [("failed",)]


@on_loop
async def test_request_at_which_workers_of_both_steps_hang_is_tried_no_further() -> None:
    """It may be what makes them hang."""
    p1, p2, d1, d2 = (MockEngine(name, never) for name in ("p1", "p2", "d1", "d2"))
    async with proxy_rig(p1, p2, d1, d2, limits=SHORT) as rig:
        client = await asked(rig, p1)
        for engine, following in ((p1, p2), (p2, d1)):
            hangs(rig, engine)
            await eventually(lambda engine=following: engine.received)
        hangs(rig, d1)
        head, body = await client.answer()
        assert (head[:12], json.loads(body)["error"]["code"]) == (b"HTTP/1.1 502", "closed_unanswered")
        assert d2.received == []


@on_loop
async def test_workers_that_break_off_in_the_first_step_leave_the_second_all_its_tries() -> None:
    """But for one that breaks off, too: a worker that takes no connection is passed over."""
    p1, p2, d1, d2 = MockEngine("p1", breaks), MockEngine("p2", breaks), MockEngine("d1"), MockEngine("d2")
    async with proxy_rig(p1, p2, d1, d2, limits=SHORT) as rig:
        await d1.refuse()
        await two_steps(rig).ask(request(CONVERSATION))
        assert bodies(d2) == [CONVERSATION]


@on_loop
async def test_worker_that_takes_too_long_is_to_blame() -> None:
    """Its probes are fine, but it computes nothing: after some requests in a row it gets no more of them."""
    p1, p2, d = MockEngine("p1", never), MockEngine("p2"), MockEngine("d", says(content(b"answer")))
    async with proxy_rig(p1, p2, d, limits=SHORT._replace(prefill_s=0.02)) as rig:
        assert (await two_steps(rig).ask(request(CONVERSATION)))[1] == b"answer"
        assert steps(rig) == [("p1", "prefill", Outcome.FAILED), ("d", None, Outcome.DONE)]
        assert [place.blamed for place in rig.placements] == [True, None]


@on_loop
async def test_second_worker_has_its_own_time_to_be_silent() -> None:
    """However long the first one has taken: the client's request ends by what comes of both."""
    go_on = asyncio.Event()

    async def late(peer: Peer, request: Received) -> None:
        await go_on.wait()
        peer.send(content(COMPUTED))

    p, d = MockEngine("p", late), MockEngine("d", never)
    async with proxy_rig(p, d, limits=SHORT._replace(worker_silence_s=100.0)) as rig:
        client = await asked(rig, p)
        rig.pass_time(101.0)
        rig.pass_time(1.0)
        go_on.set()
        await eventually(lambda: d.received)
        rig.pass_time(1.0)
        rig.pass_time(98.0)
        assert rig.placements[-1].outcome is None
        rig.pass_time(3.0)
        assert (await client.head()).startswith(b"HTTP/1.1 504 ")


@on_loop
async def test_worker_whose_host_vanishes_leaves_it_to_another() -> None:
    """Long before any time-out: what it was sent is not acknowledged."""

    async def vanish(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        swallow(peer.writer.get_extra_info("socket"))
        await asyncio.Event().wait()

    p1, p2, d = MockEngine("p1"), MockEngine("p2", says(content(COMPUTED))), MockEngine("d")
    p1.before = vanish
    async with proxy_rig(p1, p2, d, limits=SHORT._replace(connect_s=0.5)) as rig:
        client = await two_steps(rig).client()
        long = CONVERSATION | {"messages": [say("user", "hello " * (1 << 19))]}
        client.send(request(long))

        def passed() -> bool:
            rig.pass_time(0.1)
            return len(rig.placements) > 1

        await eventually(passed)
        await client.answer()
        assert bodies(d)[0]["kv_transfer_params"] == PARAMS
        assert rig.meter.reasons == ["unreachable"]
        assert rig.placements[0].outcome is Outcome.REFUSED


@on_loop
async def test_worker_that_takes_no_connection_is_to_blame() -> None:
    """It was not sent the prompt: that is no proof that it breaks off."""
    p1, p2, d = MockEngine("p1"), MockEngine("p2", says(content(COMPUTED))), MockEngine("d")
    async with proxy_rig(p1, p2, d, limits=SHORT) as rig:
        await p1.refuse()
        await two_steps(rig).ask(request(CONVERSATION))
        assert steps(rig)[0] == ("p1", "prefill", Outcome.REFUSED)
        assert [place.blamed for place in rig.placements] == [True, None, None]
