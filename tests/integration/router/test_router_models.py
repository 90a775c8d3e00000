"""Requests go to the engines that serve their model, however they name it, and whenever it was loaded."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ghostcacher_router.fleet.model_refresh import PAUSE_S
from tests.support.proxy_rig import on_loop
from tests.support.stored_engine import KeepingEngine, ask, routers

FORM = {"content-type": "multipart/form-data; boundary=XX"}
FIELD = b'--XX\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper\r\n'
AUDIO = b'--XX\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n%b\r\n' % (b"RIFF" * 100_000)


@pytest.mark.parametrize("body", [FIELD + AUDIO + b"--XX--\r\n", AUDIO + FIELD + b"--XX--\r\n"])
@on_loop
async def test_transcription_goes_to_the_engine_of_its_model(body: bytes) -> None:
    """The model stands in a form, before or behind the file, which arrives as it was sent."""
    async with KeepingEngine("a", ["llama"]) as a, KeepingEngine("b", ["whisper"]) as b, routers(1, a, b) as (only,):
        for _ in range(8):
            assert (await ask(only, "POST", "/v1/audio/transcriptions", body, FORM)).json["engine"] == "b"
        assert [request.body for request in b.served] == [body] * 8
        unknown = body.replace(b"whisper", b"nothing")
        assert (await ask(only, "POST", "/v1/audio/transcriptions", unknown, FORM)).status == 404


@on_loop
async def test_model_of_the_query_counts() -> None:
    """As in the address of a realtime session."""
    async with KeepingEngine("a", ["llama"]) as a, KeepingEngine("b", ["org/w 1"]) as b, routers(1, a, b) as (only,):
        for _ in range(8):
            reply = await ask(only, "GET", "/v1/realtime?intent=transcription&model=org%2Fw+1")
            assert reply.json == {"engine": "b", "path": "/v1/realtime?intent=transcription&model=org%2Fw+1"}


def completion(model: str) -> dict[str, Any]:
    return {"model": model, "prompt": "x"}


@on_loop
async def test_adapter_loaded_behind_the_routers_back_is_found_by_its_first_request() -> None:
    """Nobody told the router: the request that asks for it does."""
    async with KeepingEngine("a", ["m"]) as a, KeepingEngine("b", ["m"]) as b, routers(1, a, b) as (only,):
        a.models.append("adapter")
        for _ in range(4):
            assert (await ask(only, "POST", "/v1/completions", completion("adapter"))).json["engine"] == "a"


@on_loop
async def test_adapter_loaded_through_the_router_is_known_at_once() -> None:
    """The next request finds it, although models were asked for a moment ago."""
    async with KeepingEngine("a", ["m"]) as a, routers(1, a) as (only,):
        for number in range(3):
            assert (await ask(only, "POST", "/v1/completions", completion(f"adapter{number}"))).status == 404
            a.models.append(f"adapter{number}")
            loaded = await ask(only, "POST", "/v1/load_lora_adapter", {"lora_name": f"adapter{number}"})
            assert loaded.status == 200
            assert (await ask(only, "POST", "/v1/completions", completion(f"adapter{number}"))).status == 200


@on_loop
async def test_adapter_unloaded_behind_the_routers_back_is_noticed_by_the_first_404() -> None:
    """From then on the engines that still have it get the requests; no probe tells of it here."""
    a, b = KeepingEngine("a", ["m", "adapter"]), KeepingEngine("b", ["m", "adapter"])
    async with a, b, routers(1, a, b, health_interval_s=600.0) as (only,):

        async def send(number: int) -> int:
            return (await ask(only, "POST", "/v1/completions", {"model": "adapter", "prompt": f"{number}"})).status

        a.models.remove("adapter")
        async with asyncio.timeout(60):
            while {await send(number) for number in range(16)} == {200}:
                pass
            while {await send(number) for number in range(16)} != {200}:
                pass


@on_loop
async def test_adapter_is_loaded_everywhere() -> None:
    """With one request, which says what each engine answered; then all of them get requests for it."""
    async with KeepingEngine("a", ["m"]) as a, KeepingEngine("b", ["m"]) as b, routers(1, a, b) as (only,):
        assert (await ask(only, "POST", "/v1/completions", completion("adapter"))).status == 404
        for engine in (a, b):
            engine.models.append("adapter")
        reply = await ask(only, "POST", "/v1/load_lora_adapter", {"lora_name": "adapter"}, {"x-gc-fan-out": "all"})
        assert (reply.status, reply.json["ok"]) == (200, True)
        assert {result["body"]["engine"] for result in reply.json["results"]} == {"a", "b"}
        asks = [{"model": "adapter", "prompt": f"{number}"} for number in range(32)]
        assert {(await ask(only, "POST", "/v1/completions", body)).json["engine"] for body in asks} == {"a", "b"}


@on_loop
async def test_models_that_nobody_has_do_not_flood_the_engines() -> None:
    """However many requests name one: engines are asked once in a second at most."""
    async with KeepingEngine("a", ["m"]) as a, routers(1, a, health_interval_s=600.0) as (only,):

        def asked() -> int:
            return sum(request.path == "/v1/models" for request in a.received)

        loop = asyncio.get_running_loop()
        before, began = asked(), loop.time()
        replies = await asyncio.gather(
            *(ask(only, "POST", "/v1/completions", completion(f"none{number}")) for number in range(100))
        )
        assert {reply.status for reply in replies} == {404}
        passed_s = loop.time() - began
        assert asked() - before <= 1 + passed_s / PAUSE_S


@on_loop
async def test_adapter_that_engines_find_by_themselves_goes_to_workers_of_its_model() -> None:
    """Where a setting says so, else nobody is asked. Who has found it gets the next requests, and is listed with it."""
    a, b, other = KeepingEngine("a", ["m"]), KeepingEngine("b", ["m"]), KeepingEngine("c", ["n"])
    for engine in (a, b, other):
        engine.findable = {"org/sql", "org/law"}

    def body(model: str, number: int) -> dict[str, Any]:
        return {"model": model, "prompt": f"{number} of another text"}

    async with a, b, other, routers(1, a, b, other, lazy_adapters=("*=m",), health_interval_s=600.0) as (only,):
        (used,) = {(await ask(only, "POST", "/v1/completions", body("org/sql", n))).json["engine"] for n in range(16)}
        assert used in ("a", "b")
        async with asyncio.timeout(60):  # told by its first answer, and by no probe
            while "org/sql" not in str((await ask(only, "GET", "/v1/models")).json):
                assert (await ask(only, "POST", "/v1/completions", body("org/sql", 16))).json["engine"] == used
        assert (await ask(only, "POST", "/v1/completions", body("org/none", 0))).status == 404
        assert (await ask(only, "POST", "/v1/completions", body("n", 0))).json["engine"] == "c"
        assert [model["id"] for model in (await ask(only, "GET", "/v1/models")).json["data"]] == ["m", "n", "org/sql"]
        assert not other.adapters
    async with a, b, other, routers(1, a, b, other) as (only,):
        assert (await ask(only, "POST", "/v1/completions", body("org/law", 0))).status == 404
        assert "org/law" not in (*a.adapters, *b.adapters)


@on_loop
async def test_adapter_goes_where_its_engine_says_that_it_is_in_use() -> None:
    """And not where others have all slots, though both engines list it and neither was sent anything."""
    a, b = KeepingEngine("a", ["m"]), KeepingEngine("b", ["m"])
    for engine, running in ((a, "law"), (b, "sql")):
        engine.adapters = ["sql", "law"]
        line = f'vllm:lora_requests_info{{max_lora="1",running_lora_adapters="{running}",waiting_lora_adapters=""}}'
        engine.metrics = f"{line} 1.7e+09\n".encode()
    async with a, b, routers(1, a, b) as (only,):
        async with asyncio.timeout(60):
            while not all(any(request.path == "/metrics" for request in engine.received[3:]) for engine in (a, b)):
                await asyncio.sleep(0.01)
        for number in range(16):
            reply = await ask(only, "POST", "/v1/completions", {"model": "sql", "prompt": f"{number} words"})
            assert reply.json["engine"] == "b"
            reply = await ask(only, "POST", "/v1/completions", {"model": "law", "prompt": f"{number} words"})
            assert reply.json["engine"] == "a"
        engines = [
            (await ask(only, "POST", "/v1/completions", {"model": "m", "prompt": f"{number} words"})).json["engine"]
            for number in range(32)
        ]
        assert set(engines) == {"a", "b"}
