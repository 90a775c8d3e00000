"""A request that goes to every server: what each answered, also where one fails, hangs, or the client leaves."""

from __future__ import annotations

import asyncio
import json

import pytest

from ghostcacher_router.http.exchanges.own_request import BODY_BYTES_MAX
from ghostcacher_router.http.protocol.limits import Limits
from ghostcacher_router.http.proxy_state import FAN_OUTS_MAX
from ghostcacher_simulator.http_server import Peer, Received, content
from tests.support.mock_engine import CHUNKED, MockEngine, chunks, says
from tests.support.proxy_rig import eventually, on_loop, proxy_rig

BODY = b'{"lora_name": "l"}'
ASK = (
    b"POST /v1/load_lora_adapter HTTP/1.1\r\nHost: router\r\nX-GC-Fan-Out: all\r\nAuthorization: Bearer key\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
)


def engines(count: int) -> list[MockEngine]:
    return [MockEngine(f"w{number}") for number in range(count)]


@on_loop
async def test_every_server_gets_the_request_as_it_came() -> None:
    """With the client's key, and without the header that sends it to all."""
    async with proxy_rig(*engines(40)) as rig:
        head, body = await rig.ask(ASK)
        assert head.startswith(b"HTTP/1.1 200 ")
        answer = json.loads(body)
        assert answer["ok"] is True
        assert answer["results"] == [
            {"worker": f"w{number}", "status": 200, "body": {"lora_name": "l"}, "error": None} for number in range(40)
        ]
        for engine in rig.engines:
            (received,) = engine.received
            assert (received.body, received.headers[b"authorization"]) == (BODY, b"Bearer key")
            assert b"x-gc-fan-out" not in received.headers
        assert rig.dispatcher.told == ["/v1/load_lora_adapter"]
        assert rig.meter.answers == [("/v1/load_lora_adapter", 200)]


@on_loop
async def test_each_failure_is_told_of_its_own_server() -> None:
    """One refuses, one closes, one hangs, one sends too much, in chunks: the others count all the same."""

    async def hang(peer: Peer, _: Received) -> None:
        await peer.left()

    group = engines(6)
    async with proxy_rig(*group, limits=Limits(fan_out_s=2.0)) as rig:
        group[1].script = says(content(b"no such file", status=400))
        group[2].script = lambda peer, _: peer.abort()
        group[3].script = hang
        group[4].script = says(CHUNKED + chunks(b"x" * BODY_BYTES_MAX, b"y"))
        await group[5].refuse()
        head, body = await rig.ask(ASK)
        assert head.startswith(b"HTTP/1.1 207 ")
        answer = json.loads(body)
        results = {result.pop("worker"): result for result in answer["results"]}
        assert answer["ok"] is False
        assert [results[f"w{number}"]["status"] for number in range(6)] == [200, 400, None, None, 200, None]
        assert results["w1"]["body"] == "no such file"
        assert results["w4"]["body"] == "x" * BODY_BYTES_MAX
        assert "2 s" in results["w3"]["error"]
        assert all(results[name]["error"] for name in ("w2", "w3", "w5"))


@on_loop
async def test_status_of_all_is_the_answers() -> None:
    async with proxy_rig(*engines(3)) as rig:
        for engine in rig.engines:
            engine.script = says(content(b"{}", status=404))
        head, body = await rig.ask(ASK)
        assert head.startswith(b"HTTP/1.1 404 ")
        assert json.loads(body)["ok"] is False


@pytest.mark.parametrize(
    ("ask", "named"),
    [
        (ASK.replace(b"all", b"any"), b"expected 'all', got 'any'"),
        (ASK.replace(b"/v1/load_lora_adapter", b"/v1/chat/completions"), b"expected one of the paths /abort_request,"),
        (ASK.replace(b"/v1/load_lora_adapter", b"/v1/responses/resp_1/cancel"), b"expected one of the paths"),
    ],
)
@on_loop
async def test_what_is_not_for_all_is_refused(ask: bytes, named: bytes) -> None:
    """Prompts above all: nothing is sent anywhere."""
    async with proxy_rig(*engines(2)) as rig:
        head, body = await rig.ask(ask)
        assert head.startswith(b"HTTP/1.1 400 ")
        assert named in body
        assert [engine.received for engine in rig.engines] == [[], []]


@on_loop
async def test_client_that_leaves_ends_it_everywhere() -> None:
    """No connection is left behind."""
    left = asyncio.Event()

    async def hang(peer: Peer, _: Received) -> None:
        await peer.left()
        left.set()

    async with proxy_rig(*engines(2)) as rig:
        rig.engines[1].script = hang
        client = await rig.client()
        client.send(ASK)
        await eventually(lambda: rig.engines[1].received)
        client.abort()
        await left.wait()


@on_loop
async def test_many_at_once_take_few_connections() -> None:
    """Each client that asks takes one, however many servers hang; the others wait for their turn."""

    async def hang(peer: Peer, _: Received) -> None:
        await peer.left()

    async with proxy_rig(*(MockEngine(f"w{number}", hang) for number in range(8))) as rig:
        for _ in range(2 * FAN_OUTS_MAX // 8):
            (await rig.client()).send(ASK)
        await eventually(lambda: sum(len(engine.received) for engine in rig.engines) >= FAN_OUTS_MAX)
        await eventually(lambda: rig.state.in_flight == len(rig.clients))
        for _ in range(10):
            await asyncio.sleep(0)
        pools = rig.state.pools._pools.values()
        assert sum(len(pool.open) + pool.connecting for pool in pools) == FAN_OUTS_MAX
