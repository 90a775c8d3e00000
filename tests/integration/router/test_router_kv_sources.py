"""A worker without our connector is told from whom to pull, by the router and by the endpoint picker."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from ghostcacher_router.app import Router
from ghostcacher_router.config import RouterSettings
from tests.support.mock_engine import CHAT_PATH, ChatEngine
from tests.support.proxy_rig import on_loop

PORT = 5710


def chat(text: str, **fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": text}], **fields}).encode()


def in_pieces(body: bytes) -> list[bytes]:
    return [body[begin : begin + 30_000] for begin in range(0, len(body), 30_000)]


@asynccontextmanager
async def router_of(*engines: ChatEngine, **settings: Any) -> AsyncIterator[tuple[Router, httpx.AsyncClient]]:
    urls = tuple(engine.endpoint.url for engine in engines)
    router = Router(RouterSettings(listen="127.0.0.1:0", redis=False, workers=urls, **settings))
    try:
        await router.start()
        async with httpx.AsyncClient(base_url=router.url, timeout=60) as client:
            yield router, client
    finally:
        await router.stop()


async def sent(client: httpx.AsyncClient, engines: list[ChatEngine], body: bytes) -> tuple[ChatEngine, dict[str, Any]]:
    """Send a request; return which engine has answered it, and what it got."""
    answer = await client.post(CHAT_PATH, content=body)
    assert answer.status_code == 200, answer.text
    engine = next(engine for engine in engines if engine.port == int(answer.text.split()[1]))
    return engine, json.loads(engine.chats[-1].body)


@on_loop
async def test_worker_that_lacks_a_prefix_is_told_who_has_it() -> None:
    """Not the one that has it itself, not for a short prompt, and not where a client that may has written the field."""
    document = "a document that is long enough to be worth it " * 1000
    async with ChatEngine() as one, ChatEngine() as two:
        engines = [one, two]
        async with router_of(*engines, p2p_port=PORT, kv_transfer_from_clients=True) as (router, client):
            first, body = await sent(client, engines, chat(document))
            assert "kv_transfer_params" not in body
            again, body = await sent(client, engines, chat(document + "and a question"))
            assert (again is first, "kv_transfer_params" in body) == (True, False)
            # Who is drained gets no requests, and still has what it has.
            router.parts().fleet.drain(f"127.0.0.1:{first.port}", True)
            own = {"do_remote_decode": True}
            other, body = await sent(client, engines, chat(document + "and one more", kv_transfer_params=own))
            assert (other is first, body["kv_transfer_params"]) == (False, own)
            other, body = await sent(client, engines, chat(document + "that it has by now"))
            assert (other is first, "kv_transfer_params" in body) == (False, False)
            _, body = await sent(client, engines, chat("a short prompt"))
            assert "kv_transfer_params" not in body


@pytest.mark.parametrize(("port", "told"), [(PORT, True), (None, False)])
@on_loop
async def test_source_is_named_by_its_host_and_the_port_of_the_setting(port: int | None, told: bool) -> None:
    """Nobody is told without the setting."""
    document = "a document that is long enough to be worth it " * 1000
    async with ChatEngine() as one, ChatEngine() as two, router_of(one, two, p2p_port=port) as (router, client):
        first, _ = await sent(client, [one, two], chat(document))
        router.parts().fleet.drain(f"127.0.0.1:{first.port}", True)
        other, body = await sent(client, [one, two], chat(document + "and a question"))
        assert other is not first
        if told:
            source = body["kv_transfer_params"]["remote_kv_source"]
            assert (source["remote_host"], source["remote_port"]) == ("127.0.0.1", PORT)
            assert source["kv_request_id"] == other.chats[-1].headers[b"x-request-id"].decode()
        else:
            assert "kv_transfer_params" not in body


@on_loop
async def test_picker_puts_it_into_the_body_that_goes_on() -> None:
    """In full duplex, where the body comes back from it, in pieces that every gateway takes."""
    pytest.importorskip("grpc", reason="needs the extra [epp]")
    pytest.importorskip("tests.support.envoy_protos")
    from tests.integration.router.test_endpoint_picker import picker_of
    from tests.support.strict_gateway import gateway

    document = "a document that is long enough to be worth it " * 4000
    async with picker_of([ChatEngine(), ChatEngine()], p2p_port=PORT) as picker, gateway(picker.server.port) as asking:
        first = await asking.ask(*in_pieces(chat(document)))
        assert first.body == chat(document)
        await first.respond()
        await first.ended()
        picker.router.parts().fleet.drain(first.destination[0], True)
        second = await asking.ask(*in_pieces(chat(document + "and a question")), body_changes=True)
        assert second.destination[0] != first.destination[0]
        source = json.loads(second.body)["kv_transfer_params"]["remote_kv_source"]
        assert source == {
            "kv_request_id": second.headers["x-request-id"],
            "remote_host": "127.0.0.1",
            "remote_port": PORT,
        }
        second.abort()


@pytest.mark.parametrize("path", [CHAT_PATH, "/inference/v1/generate"])
@on_loop
async def test_client_may_not_name_an_engine_to_connect_to(path: str) -> None:
    """It is told so, in a long body, too; what names nobody passes, and so does all where clients are trusted."""
    named = {"kv_transfer_params": {"do_remote_prefill": True, "remote_host": "10.0.0.9", "remote_port": 1}}
    long = "a long body is read in another process " * 20_000
    async with ChatEngine() as engine:
        async with router_of(engine) as (_, client):
            for text in ("short", long):
                answer = await client.post(path, content=chat(text, **named))
                error = answer.json()["error"]
                assert (answer.status_code, error["param"]) == (400, "kv_transfer_params.do_remote_prefill")
            assert not engine.chats
            own = {"kv_transfer_params": {"gc_pull": False}}
            await client.post(CHAT_PATH, content=chat("own", **own))
            assert json.loads(engine.chats[-1].body)["kv_transfer_params"] == own["kv_transfer_params"]
        async with router_of(engine, kv_transfer_from_clients=True) as (_, client):
            await client.post(CHAT_PATH, content=chat("trusted", **named))
            assert json.loads(engine.chats[-1].body)["kv_transfer_params"] == named["kv_transfer_params"]


@on_loop
async def test_client_of_a_gateway_may_not_name_an_engine_either() -> None:
    """The picker answers it, and the gateway asks no worker."""
    pytest.importorskip("grpc", reason="needs the extra [epp]")
    pytest.importorskip("tests.support.envoy_protos")
    from tests.integration.router.test_endpoint_picker import picker_of
    from tests.support.strict_gateway import gateway

    async with picker_of([ChatEngine()]) as picker, gateway(picker.server.port) as asking:
        answer = await asking.ask(*in_pieces(chat("x", kv_transfer_params={"remote_host": "10.0.0.9"})))
        assert answer.immediate is not None
        status, _, body = answer.immediate
        assert (status, b"kv_transfer_params.remote_host" in body) == (400, True)
