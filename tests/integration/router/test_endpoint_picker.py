"""The endpoint picker before real workers, asked by a gateway that is as strict as Envoy."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

pytest.importorskip("grpc", reason="needs the extra [epp]")
pytest.importorskip("tests.support.envoy_protos")

from benchmarks.harness.redis_server import RedisServer
from ghostcacher_router.endpoint_picker import EndpointPicker
from ghostcacher_router.epp import picking as picking_module
from ghostcacher_router.epp.settings import PickerSettings
from tests.support.mock_engine import MiniEngine, until
from tests.support.proxy_rig import on_loop
from tests.support.strict_gateway import (
    ANSWER_S_MAX,
    BUFFERED,
    FULL_DUPLEX,
    NONE,
    STREAMED,
    StrictExchange,
    gateway,
)

MODES = [(FULL_DUPLEX, FULL_DUPLEX), (BUFFERED, FULL_DUPLEX), (BUFFERED, BUFFERED), (STREAMED, STREAMED), (NONE, NONE)]


def chat(text: str = "hello", model: str = "m") -> bytes:
    return json.dumps({"model": model, "stream": True, "messages": [{"role": "user", "content": text}]}).encode()


def address(engine: MiniEngine) -> str:
    return f"127.0.0.1:{engine.port}"


@asynccontextmanager
async def picker_of(engines: Sequence[MiniEngine], **settings: Any) -> AsyncIterator[EndpointPicker]:
    """Start workers, and a picker that knows them by URL."""
    async with AsyncExitStack() as stack:
        for engine in engines:
            await stack.enter_async_context(engine)
        given = {"listen": "127.0.0.1:0", "grpc_listen": "127.0.0.1:0", "redis": False} | settings
        picker = EndpointPicker(PickerSettings(workers=tuple(engine.endpoint.url for engine in engines), **given))
        try:
            await picker.start()
            yield picker
        finally:
            await picker.stop()


def in_flight(picker: EndpointPicker) -> int:
    return sum(map(picker.router.parts().in_flight, picker.router.parts().fleet.workers))


def count(picker: EndpointPicker, how: str) -> float:
    return picker.router.parts().metrics.picker.picks.by("how").get(how, 0.0)


@pytest.mark.parametrize(("request_mode", "response_mode"), MODES)
@on_loop
async def test_request_is_picked_for_and_counted_until_its_end_in_each_body_mode(
    request_mode: int, response_mode: int
) -> None:
    """The strict gateway takes every answer, and nothing is left in flight behind it."""
    engines = [MiniEngine(), MiniEngine()]
    async with (
        picker_of(engines) as picker,
        gateway(picker.server.port, request_mode=request_mode, response_mode=response_mode) as asking,
    ):
        exchange = await asking.ask(chat()[:20], chat()[20:])
        assert exchange.destination[0] in {address(engine) for engine in engines}
        assert in_flight(picker) == 1
        answered = await exchange.respond((b"data: 1\n\n", b"data: [DONE]\n\n"))
        assert answered["x-gc-worker"] == exchange.destination[0]
        await exchange.ended()
        await until(lambda: in_flight(picker) == 0)
        assert picker.router.parts().metrics.requests_by_status() == {"200": 1.0}
        assert count(picker, "prompt" if request_mode in (FULL_DUPLEX, BUFFERED) else "bodyless") == 1


@on_loop
async def test_gateway_that_does_not_say_how_it_sends_bodies_is_asked_for_full_duplex() -> None:
    """It is what the protocol demands, and older gateways do not say it."""
    async with picker_of([MiniEngine()]) as picker, gateway(picker.server.port, says_modes=False) as asking:
        exchange = await asking.ask(chat())
        await exchange.respond()
        await exchange.ended()
        assert count(picker, "prompt") == 1


@on_loop
async def test_same_prefix_goes_to_the_same_worker_and_others_spread() -> None:
    """The picker decides as the router does: by the prompt and by what it has sent where."""
    engines = [MiniEngine(), MiniEngine(), MiniEngine()]
    async with picker_of(engines) as picker, gateway(picker.server.port) as asking:
        homes: dict[int, set[str]] = {document: set() for document in range(12)}
        for turn in range(3):
            for document, found in homes.items():
                exchange = await asking.ask(chat(f"document {document} " * 2000 + f"question {turn}"))
                found.add(exchange.destination[0])
                await exchange.respond()
                await exchange.ended()
        assert all(len(found) == 1 for found in homes.values()), homes
        assert len(set.union(*homes.values())) > 1


@on_loop
async def test_fallbacks_follow_the_picked_endpoint_each_once() -> None:
    """The proxy goes down the list: the first is the pick, and as many others as is set."""
    engines = [MiniEngine() for _ in range(4)]
    for most in (0, 2, 9):
        async with picker_of(engines, fallback_endpoints_max=most) as picker, gateway(picker.server.port) as asking:
            exchange = await asking.ask(chat())
            assert len(exchange.destination) == len(set(exchange.destination)) == 1 + min(most, 3)
            assert set(exchange.destination) <= {address(engine) for engine in engines}


@on_loop
async def test_fallbacks_are_the_least_loaded_also_of_a_large_fleet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which only some are looked at; never the first again, nor one that is drained."""
    engines = [MiniEngine() for _ in range(6)]
    async with picker_of(engines) as picker, gateway(picker.server.port) as asking:
        busy, drained = address(engines[0]), address(engines[1])
        picking, fleet = picker.server._picking, picker.router.parts().fleet
        in_flight_of = {busy: 9}
        picking._parts = picking._parts._replace(in_flight=lambda name: in_flight_of.get(name, 0))
        fleet.drain(drained, True)
        for looked_at, wanted in ((picking_module.STAND_INS_MAX, 3), (3, 1)):
            monkeypatch.setattr(picking_module, "STAND_INS_MAX", looked_at)
            for number in range(8):
                exchange = await asking.ask(chat(f"{looked_at} {number}"))
                first, *others = exchange.destination
                assert len(others) == len({*others} - {first, drained}) == min(2, len(others))
                assert len(others) >= min(2, wanted)
                assert busy not in others or looked_at == 3
                exchange.abort()


@pytest.mark.parametrize("as_text", [False, True])
@on_loop
async def test_subset_of_the_gateway_is_kept_to(as_text: bool) -> None:
    """Neither the pick nor a fallback is outside of it, whether it came as a list or as one text."""
    engines = [MiniEngine() for _ in range(4)]
    async with picker_of(engines) as picker, gateway(picker.server.port) as asking:
        allowed = [address(engine) for engine in engines[2:]]
        for number in range(6):
            exchange = await asking.ask(chat(f"{number}"), subset=", ".join(allowed) if as_text else allowed)
            assert sorted(exchange.destination) == sorted(allowed)
            exchange.abort()


@pytest.mark.parametrize("subset", [[], "", ["127.0.0.1:1"]])
@on_loop
async def test_subset_without_a_ready_endpoint_is_refused(subset: Any) -> None:
    """The protocol: an empty list, or one of which none is eligible, is 503."""
    async with picker_of([MiniEngine()]) as picker, gateway(picker.server.port) as asking:
        exchange = await asking.ask(chat(), subset=subset)
        assert exchange.immediate is not None
        status, headers, body = exchange.immediate
        assert (status, headers["content-type"], headers["retry-after"]) == (503, "application/json", "2")
        assert json.loads(body)["error"]["code"] == "no_worker"
        assert (exchange.destination, count(picker, "refused")) == ([], 1)


@on_loop
async def test_no_ready_worker_is_refused_in_each_body_mode() -> None:
    """With 503, once the request is known; the stream ends behind it."""
    for mode in (FULL_DUPLEX, BUFFERED, NONE):
        settings = PickerSettings(
            listen="127.0.0.1:0", grpc_listen="127.0.0.1:0", redis=False, workers=("http://127.0.0.1:1",)
        )
        picker = EndpointPicker(settings)
        await picker.start()
        try:
            async with gateway(picker.server.port, request_mode=mode) as asking:
                exchange = await asking.ask(chat())
                assert exchange.immediate is not None
                assert exchange.immediate[0] == 503
        finally:
            await picker.stop()


@on_loop
async def test_body_that_cannot_be_read_is_sent_by_load() -> None:
    """The engine tells the client what is wrong with it; so does it of a model that it does not have."""
    async with picker_of([MiniEngine()]) as picker, gateway(picker.server.port) as asking:
        for body in (b"{", b"not json", chat(model="unknown")):
            exchange = await asking.ask(body)
            assert len(exchange.destination) == 1
            assert exchange.body == body
            exchange.abort()
        assert (count(picker, "unread"), count(picker, "prompt")) == (2, 1)


@on_loop
async def test_body_beyond_its_bound_goes_on_unread() -> None:
    """What is held is bounded, and the request is none the worse: its pieces pass as they come."""
    async with (
        picker_of([MiniEngine()], body_bytes_max=4096, buffered_bytes_max=4096) as picker,
        gateway(picker.server.port) as asking,
    ):
        pieces = [b"x" * 1500] * 10
        exchange = await asking.ask(*pieces)
        assert exchange.body == b"".join(pieces)
        assert count(picker, "long") == 1
        assert picker.server._held.size == 0
        await exchange.respond()
        await exchange.ended()


@on_loop
async def test_trailers_of_a_request_and_of_its_response_pass() -> None:
    """A body that trailers follow ends with them, and is read all the same."""
    async with picker_of([MiniEngine()]) as picker, gateway(picker.server.port) as asking:
        exchange = await asking.ask(chat()[:9], chat()[9:], trailers=True)
        await exchange.respond(trailers=True)
        await exchange.ended()
        assert count(picker, "prompt") == 1
        await until(lambda: in_flight(picker) == 0)


@on_loop
async def test_request_without_a_body_is_picked_for_at_once() -> None:
    """As GET of a path that engines answer."""
    async with picker_of([MiniEngine()]) as picker, gateway(picker.server.port) as asking:
        exchange = await asking.ask(method="GET", path="/v1/models")
        assert len(exchange.destination) == 1
        await exchange.respond((b"{}",), content_type="application/json")
        await exchange.ended()


async def leave_before_the_end(exchange: StrictExchange) -> None:
    exchange.abort()


async def leave_in_the_answer(exchange: StrictExchange) -> None:
    await exchange.respond(end=False)
    exchange.abort()


async def close_without_an_answer(exchange: StrictExchange) -> None:
    await exchange.ended()


@pytest.mark.parametrize("end", [leave_before_the_end, leave_in_the_answer, close_without_an_answer])
@on_loop
async def test_client_that_leaves_leaves_nothing_in_flight(end: Any) -> None:
    """However the gateway ends the stream."""
    async with picker_of([MiniEngine()]) as picker, gateway(picker.server.port) as asking:
        exchange = await asking.ask(chat())
        assert in_flight(picker) == 1
        await end(exchange)
        await until(lambda: in_flight(picker) == 0 and picker.server.streams == 0)
        assert picker.router.parts().metrics.requests_by_status() == {"499": 1.0}


@on_loop
async def test_client_that_leaves_in_its_body_leaves_nothing_held() -> None:
    """The pieces that were held go with the stream."""
    async with picker_of([MiniEngine()]) as picker, gateway(picker.server.port) as asking:
        exchange = await asking.ask(b"x" * 1000, end=False)
        await until(lambda: picker.server._held.size == 1000)
        exchange.abort()
        await until(lambda: picker.server._held.size == 0 and picker.server.streams == 0)


@on_loop
async def test_request_that_another_endpoint_served_is_counted_there() -> None:
    """The gateway says who has answered; the first one gave no connection, so it is probed."""
    engines = [MiniEngine(), MiniEngine()]
    async with picker_of(engines) as picker, gateway(picker.server.port) as asking:
        exchange = await asking.ask(chat("long " * 2000))
        first, second = exchange.destination
        answered = await exchange.respond(served=second, end=False)
        parts = picker.router.parts()
        assert answered["x-gc-worker"] == second
        assert (parts.in_flight(first), parts.in_flight(second)) == (0, 1)
        assert parts.metrics.picker.moved.total == 1
        assert parts.fleet.workers[first].refusals == 1
        exchange.abort()
        await until(lambda: in_flight(picker) == 0)


@on_loop
async def test_server_errors_put_a_worker_into_doubt() -> None:
    """A gateway makes 503 of a connection that failed: the picker asks the worker itself, and ejects it in the end."""
    engines = [MiniEngine(), MiniEngine()]
    async with picker_of(engines) as picker, gateway(picker.server.port) as asking:
        parts = picker.router.parts()
        exchange = await asking.ask(chat())
        first = exchange.destination[0]
        await exchange.respond((b"upstream connect error",), status=503, content_type="text/plain")
        await exchange.ended()
        await until(lambda: parts.fleet.doubts(first))


@on_loop
async def test_messages_out_of_order_end_the_stream() -> None:
    """With an error that says what was expected."""
    import grpc
    from envoy.service.ext_proc.v3 import external_processor_pb2 as pb
    from envoy.service.ext_proc.v3.external_processor_pb2_grpc import ExternalProcessorStub

    async with AsyncExitStack() as stack:
        picker = await stack.enter_async_context(picker_of([MiniEngine()]))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{picker.server.port}"))
        call = ExternalProcessorStub(channel).Process()
        await call.write(pb.ProcessingRequest(request_body=pb.HttpBody(body=b"x", end_of_stream=True)))
        async with asyncio.timeout(ANSWER_S_MAX):
            assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "expected request_headers first" in await call.details()


@on_loop
async def test_client_cannot_name_who_computes_its_prompt_nor_where_it_goes() -> None:
    """Headers by which parts of the pool talk to each other are taken from it, or written over."""
    async with picker_of([MiniEngine()]) as picker, gateway(picker.server.port) as asking:
        smuggled = {"x-prefiller-host-port": "10.0.0.1:22", "x-gateway-destination-endpoint": "10.0.0.1:22"}
        exchange = await asking.ask(chat(), headers=smuggled)
        assert exchange.headers["x-gateway-destination-endpoint"] == exchange.destination[0]
        assert "x-prefiller-host-port" not in exchange.headers
        exchange.abort()


@on_loop
async def test_prefill_and_decode_apart_names_the_server_that_computes() -> None:
    """As llm-d's picker: the request goes to one that answers, whose sidecar asks the other."""
    prefill, decode = MiniEngine(), MiniEngine()
    await prefill.start()
    await decode.start()
    roles = (f"{prefill.endpoint.url}=prefill", f"{decode.endpoint.url}=decode")
    await prefill.stop()
    await decode.stop()
    async with picker_of([prefill, decode], roles=roles) as picker, gateway(picker.server.port) as asking:
        long = await asking.ask(chat("document " * 1000))
        assert long.destination == [address(decode)]
        assert long.headers["x-prefiller-host-port"] == address(prefill)
        assert picker.router.parts().in_flight(address(prefill)) == 1
        await long.respond(end=False)
        assert picker.router.parts().in_flight(address(prefill)) == 0
        short = await asking.ask(chat("hi"))
        assert short.destination == [address(decode)]
        assert "x-prefiller-host-port" not in short.headers
        for exchange in (long, short):
            exchange.abort()
        await until(lambda: in_flight(picker) == 0)


@on_loop
async def test_name_of_a_worker_is_looked_up_and_forgotten_with_it() -> None:
    """Gateways get addresses. Fleets change for years, and the names that they had are not kept."""
    async with MiniEngine() as engine, picker_of([MiniEngine()]) as picker, gateway(picker.server.port) as asking:
        fleet = picker.router.parts().fleet
        named = engine.endpoint._replace(host="localhost")
        for endpoint, kept in ((named, ["localhost"]), (engine.endpoint, [])):
            fleet.follow([endpoint], {})
            await until(lambda wanted=endpoint: [each.endpoint for each in fleet.serving(None)] == [wanted])
            exchange = await asking.ask(chat())
            assert exchange.destination[0] in (address(engine), f"[::1]:{engine.port}")
            assert list(picker.server._picking._candidates._resolved) == kept
            exchange.abort()


@on_loop
async def test_redis_that_goes_away_costs_no_request() -> None:
    """Workers that Redis named stay, and are picked by what the picker itself knows."""
    from tests.integration.router.test_router_fleet import Directory

    with RedisServer(tcp=True) as redis, Directory(redis.url) as directory:
        async with MiniEngine() as one, MiniEngine() as two:
            await directory.join("w1", one)
            await directory.join("w2", two)
            settings = PickerSettings(
                listen="127.0.0.1:0", grpc_listen="127.0.0.1:0", redis_url=redis.url, redis_timeout_s=0.1
            )
            picker = EndpointPicker(settings)
            await picker.start()
            try:
                async with gateway(picker.server.port) as asking:
                    await until(lambda: len(picker.router.parts().fleet.serving("m")) == 2)
                    for text in ("with Redis", "without"):
                        exchange = await asking.ask(chat(text * 3000), headers={"x-session-id": text})
                        assert set(exchange.destination) == {address(one), address(two)}
                        await exchange.respond()
                        await exchange.ended()
                        redis.kill()
            finally:
                await picker.stop()
