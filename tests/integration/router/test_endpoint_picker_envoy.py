"""A real Envoy asks the endpoint picker, and sends requests where it says."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

pytest.importorskip("grpc", reason="needs the extra [epp]")
pytest.importorskip("tests.support.envoy_protos")

from ghostcacher_router.endpoint_picker import EndpointPicker
from tests.integration.router.test_endpoint_picker import address, chat, count, in_flight, picker_of
from tests.support.envoy_proxy import CONFIG, START_S_MAX, envoy, envoy_program, without_picker
from tests.support.mock_engine import ChatEngine, MiniEngine, until
from tests.support.proxy_rig import on_loop

PATH = "/v1/chat/completions"
MODES = ["FULL_DUPLEX_STREAMED", "BUFFERED"]


class Gateway(NamedTuple):
    client: httpx.AsyncClient
    picker: EndpointPicker


@asynccontextmanager
async def gateway_of(
    folder: Path, engines: Sequence[MiniEngine], body_mode: str, response_mode: str | None = None
) -> AsyncIterator[Gateway]:
    async with (
        # Who does not answer is found out by the gateway here, and not by a probe.
        picker_of(engines, health_interval_s=60.0) as picker,
        envoy(
            folder,
            [engine.endpoint for engine in engines],
            picker.server.port,
            body_mode=body_mode,
            response_mode=response_mode,
        ) as url,
        httpx.AsyncClient(base_url=url, timeout=60) as client,
    ):
        yield Gateway(client, picker)


def test_envoy_takes_the_configuration_as_it_is() -> None:
    """With the names that it has, which other tests replace by addresses."""
    words = [envoy_program(), "--mode", "validate", "--config-path", str(CONFIG)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=START_S_MAX, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("body_mode", MODES)
@on_loop
async def test_envoy_sends_each_request_where_the_picker_says(tmp_path: Path, body_mode: str) -> None:
    """Bodies arrive as they were sent, answers stream back, and one prefix stays at one worker."""
    engines = [ChatEngine() for _ in range(3)]
    async with gateway_of(tmp_path, engines, body_mode) as (client, picker):
        for document in range(3):
            served = set()
            for turn in range(2):
                body = chat(f"document {document} " * 8000 + f"question {turn}")
                answer = await client.post(PATH, content=body)
                assert (answer.status_code, answer.text[-14:]) == (200, "data: [DONE]\n\n"), answer.text
                port = int(answer.text.split()[1])
                assert answer.headers["x-gc-worker"] == f"127.0.0.1:{port}"
                engine = next(engine for engine in engines if engine.port == port)
                assert engine.chats[-1].body == body
                assert engine.chats[-1].headers[b"x-gateway-destination-endpoint"].startswith(address(engine).encode())
                served.add(port)
            assert len(served) == 1
        await until(lambda: in_flight(picker) == 0 and picker.server.streams == 0)
        assert count(picker, "prompt") == 6
        assert picker.router.parts().metrics.requests_by_status() == {"200": 6.0}


@on_loop
async def test_envoy_passes_the_first_tokens_on_and_tells_when_a_client_leaves(tmp_path: Path) -> None:
    """The answer is not held until its end; whoever leaves in it is no longer in flight."""
    engine = ChatEngine()
    engine.held = True
    async with gateway_of(tmp_path, [engine], MODES[0]) as (client, picker):
        async with client.stream("POST", PATH, content=chat()) as answer:
            first = await anext(answer.aiter_bytes())
            assert first == b"data: %d\n\n" % engine.port
            assert picker.router.parts().metrics.ttft_ms.count == 1
            assert in_flight(picker) == 1
        await until(lambda: in_flight(picker) == 0 and picker.server.streams == 0)
        assert picker.router.parts().metrics.requests_by_status() == {"499": 1.0}


@pytest.mark.parametrize("leaves", [False, True])
@on_loop
async def test_envoy_need_not_send_answers_to_the_picker(tmp_path: Path, leaves: bool) -> None:
    """Each piece would cost an exchange of messages. Where it is to send trailers, it tells of the answer's end."""
    engine = ChatEngine()
    engine.held = True
    async with gateway_of(tmp_path, [engine], MODES[0], "NONE") as (client, picker):
        for number in range(1, 3):
            async with client.stream("POST", PATH, content=chat(f"{number}")) as answer:
                pieces = answer.aiter_bytes()
                assert await anext(pieces) == b"data: %d\n\n" % engine.port
                assert in_flight(picker) == 1, "the answer goes on"
                if not leaves:
                    engine.end_held()
                    assert b"".join([piece async for piece in pieces]) == b"data: [DONE]\n\n"
            await until(lambda: in_flight(picker) == 0 and picker.server.streams == 0)
            assert picker.router.parts().metrics.requests_by_status() == {"200": float(number)}


@on_loop
async def test_envoy_goes_down_the_list_of_endpoints(tmp_path: Path) -> None:
    """The worker that is picked takes no connection any more: the next one of the list answers."""
    engines = [ChatEngine(), ChatEngine()]
    async with gateway_of(tmp_path, engines, MODES[0]) as (client, picker):
        body = chat("document " * 4000)
        answer = await client.post(PATH, content=body)
        first = next(engine for engine in engines if engine.chats)
        await first.stop()
        answer = await client.post(PATH, content=body)
        other = next(engine for engine in engines if engine is not first)
        assert (answer.status_code, len(other.chats)) == (200, 1)
        assert answer.headers["x-gc-worker"] == address(other), "the gateway tells who has answered"
        assert picker.router.parts().metrics.picker.moved.total == 1
        listed = other.chats[0].headers[b"x-gateway-destination-endpoint"].decode().split(",")
        assert listed == [address(first), address(other)]
        await until(lambda: in_flight(picker) == 0)


@on_loop
async def test_envoy_chooses_for_itself_without_a_picker(tmp_path: Path) -> None:
    """And not as the client says, whose own words for where it goes, and who computes for it, reach no engine."""
    engines = [ChatEngine() for _ in range(3)]
    async with gateway_of(tmp_path, engines, MODES[0]) as (client, picker):
        await picker.server.stop(0)
        await without_picker(tmp_path)
        own = {"x-gateway-destination-endpoint": address(engines[0]), "x-prefiller-host-port": "10.0.0.1:22"}
        for _ in range(6):
            answer = await client.post(PATH, content=chat(), headers=own)
            assert (answer.status_code, answer.text[-14:]) == (200, "data: [DONE]\n\n"), answer.text
        assert [len(engine.chats) for engine in engines] == [2, 2, 2]
        for engine in engines:
            assert not {name.encode() for name in own} & {name for each in engine.chats for name in each.headers}


@on_loop
async def test_picker_that_ends_in_good_order_costs_no_request(tmp_path: Path) -> None:
    """Envoy hears from the health service that it ends while it still takes streams, and then chooses for itself."""
    engine = ChatEngine()
    async with gateway_of(tmp_path, [engine], MODES[0]) as (client, picker):
        found: list[int] = []

        async def ask() -> None:
            while True:
                found.append((await client.post(PATH, content=chat())).status_code)

        asking = asyncio.create_task(ask())
        await until(lambda: len(found) > 1)
        await picker.server.give_notice()
        await picker.server.stop(0)
        after = len(found)
        await until(lambda: len(found) > after + 10)
        asking.cancel()
        assert set(found) == {200}
        assert picker.router.parts().metrics.requests_by_status()["200"] > 1


@on_loop
async def test_envoy_gives_the_client_the_pickers_own_answer(tmp_path: Path) -> None:
    """Without a worker: 503, in the API's own form."""
    engine = ChatEngine()
    async with gateway_of(tmp_path, [engine], MODES[0]) as (client, picker):
        name = address(engine)
        picker.router.parts().fleet.drain(name, True)
        answer = await client.post(PATH, content=chat())
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        assert answer.headers["content-type"] == "application/json"
        assert json.loads(answer.content)["error"]["code"] == "no_worker"
        picker.router.parts().fleet.drain(name, False)
        assert (await client.get("/v1/models")).status_code == 200
