"""What one engine keeps in its memory is asked for there: answers, files and batches. Real routers and Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from benchmarks.harness.redis_server import RedisServer
from ghostcacher_connector.core.index.base import ref_of
from ghostcacher_connector.core.open import open_index
from ghostcacher_router.app import Router
from tests.support.index_parts import make_record
from tests.support.proxy_rig import on_loop
from tests.support.stored_engine import KeepingEngine, ask, routers

ANSWERS = "/v1/responses"
FORM = {"content-type": "multipart/form-data; boundary=XX"}
FILE = b'--XX\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n{}\r\n--XX--\r\n'


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    with RedisServer(tcp=True) as server:
        yield server


@asynccontextmanager
async def three_engines() -> AsyncIterator[tuple[Router, list[KeepingEngine]]]:
    """Run a router in front of three engines."""
    engines = [KeepingEngine(name) for name in "abc"]
    async with engines[0], engines[1], engines[2], routers(1, *engines) as (only,):
        yield only, engines


@on_loop
async def test_stored_answer_is_found_by_whatever_names_it() -> None:
    """Retrieving, cancelling, deleting, listing the input, and the next turn: each goes to the engine that has it."""
    async with three_engines() as (only, engines):
        # Which engine gets a short text is chance: each has some among so many.
        made = [(await ask(only, "POST", ANSWERS, {"model": "m", "input": f"{n}"})).json for n in range(64)]
        assert {one["engine"] for one in made} == {engine.name for engine in engines}
        for one in made[:12]:
            path = f"{ANSWERS}/{one['id']}"
            for method, target in (("GET", path), ("POST", f"{path}/cancel"), ("GET", f"{path}/input_items?limit=1")):
                assert (await ask(only, method, target)).json == one
            turn = {"model": "m", "input": "more", "previous_response_id": one["id"]}
            assert (await ask(only, "POST", ANSWERS, turn)).json["engine"] == one["engine"]
            assert (await ask(only, "DELETE", path)).json == one
            assert (await ask(only, "GET", path)).status == 404


@on_loop
async def test_files_and_batches_are_found() -> None:
    """A batch goes to the engine that has its file; both are found by their ids."""
    async with three_engines() as (only, _):
        for _ in range(6):
            file = (await ask(only, "POST", "/v1/files", FILE, FORM)).json
            assert (await ask(only, "GET", f"/v1/files/{file['id']}/content")).json == file
            batch = (await ask(only, "POST", "/v1/batches", {"input_file_id": file["id"]})).json
            assert batch["engine"] == file["engine"]
            assert (await ask(only, "POST", f"/v1/batches/{batch['id']}/cancel")).json == batch


@on_loop
async def test_id_of_a_stream_is_known_before_its_end() -> None:
    """The client can cancel a stream by the id in its first event."""
    async with KeepingEngine("a") as a, KeepingEngine("b") as b, routers(1, a, b) as (only,):
        for engine in (a, b):
            engine.gate.clear()
        stream = asyncio.create_task(ask(only, "POST", ANSWERS, {"model": "m", "input": "x", "stream": True}))
        async with asyncio.timeout(60):
            while not (kept := a.kept | b.kept):
                await asyncio.sleep(0.001)
        (made,) = kept.values()
        for _ in range(4):
            assert (await ask(only, "POST", f"{ANSWERS}/{made['id']}/cancel")).json == made
        assert not stream.done()
        for engine in (a, b):
            engine.gate.set()
        assert (await stream).body.count(b"event: ") == 2


@on_loop
async def test_other_replica_finds_it_at_once(redis_server: RedisServer) -> None:
    """An id that one router has just seen is used at another, which asks the store for it."""
    engines = [KeepingEngine(name) for name in "abc"]
    async with engines[0], engines[1], engines[2], routers(2, *engines, redis_url=redis_server.url) as (first, second):
        for number in range(12):
            one = (await ask(first, "POST", ANSWERS, {"model": "m", "input": f"{number}"})).json
            assert (await ask(second, "GET", f"{ANSWERS}/{one['id']}")).json == one


@on_loop
async def test_what_nobody_has_is_the_engines_own_404(redis_server: RedisServer) -> None:
    """An id that no router knows, and one that the client asked not to store."""
    async with (
        KeepingEngine("a") as a,
        KeepingEngine("b") as b,
        routers(1, a, b, redis_url=redis_server.url) as (only,),
    ):
        missing = await ask(only, "GET", f"{ANSWERS}/resp_nobody")
        assert (missing.status, missing.json["error"]["message"]) == (404, "Response with id 'resp_nobody' not found.")
        one = (await ask(only, "POST", ANSWERS, {"model": "m", "input": "x", "store": False})).json
        assert (await ask(only, "GET", f"{ANSWERS}/{one['id']}")).status == 404
        page = (await ask(only, "GET", "/metrics")).body
        assert b'gc_router_stored_total{result="unknown"} 2.0' in page


@on_loop
async def test_answer_of_an_engine_that_was_known_by_its_url_is_found_by_its_name(redis_server: RedisServer) -> None:
    """It joins with its connector later, under a name of its own; a router that comes then asks it, too."""
    a, b = KeepingEngine("a"), KeepingEngine("b")
    index = open_index(redis_server.url, timeout_s=5.0, key=b"")
    async with a, b, routers(1, a, b, redis_url=redis_server.url) as (only,):
        made = [(await ask(only, "POST", ANSWERS, {"model": "m", "input": f"{n}"})).json for n in range(6)]
        records = [msgspec.structs.replace(make_record(engine.name), http=engine.url) for engine in (a, b)]
        for record in records:
            index.join(record, lease_ttl_s=600.0)
        async with asyncio.timeout(60):
            while {each["id"] for each in (await ask(only, "GET", "/gc/workers")).json["workers"]} != {"a", "b"}:
                await asyncio.sleep(0.01)
        async with routers(1, a, b, redis_url=redis_server.url) as (later,):
            for router in (only, later):
                for one in made:
                    assert (await ask(router, "GET", f"{ANSWERS}/{one['id']}")).json == one
                page = (await ask(router, "GET", "/metrics")).body
                assert b'gc_router_stored_total{result="gone"} 0.0' in page
        for record in records:
            index.leave(ref_of(record))
    index.close()


@on_loop
async def test_engine_that_is_down_is_waited_for() -> None:
    """While the engine that holds an answer is down, the client is told to come back, and not that it is gone."""
    async with KeepingEngine("a") as a, KeepingEngine("b") as b, routers(1, a, b) as (only,):
        one = (await ask(only, "POST", ANSWERS, {"model": "m", "input": "x"})).json
        holder = a if one["engine"] == "a" else b
        await holder.refuse()
        for _ in range(3):
            refused = await ask(only, "GET", f"{ANSWERS}/{one['id']}")
            assert refused.status in (502, 503)
            assert b"retry-after: " in refused.head
        await holder.start()
        async with asyncio.timeout(60):
            while (await ask(only, "GET", f"{ANSWERS}/{one['id']}")).status != 200:
                await asyncio.sleep(0.05)


@on_loop
async def test_session_of_sglang_stays_where_it_was_opened() -> None:
    """Its requests, and its end."""
    async with three_engines() as (only, engines):
        for number in range(6):
            session = (await ask(only, "POST", "/open_session", {"capacity_of_str_len": 1000})).json
            for turn in range(3):
                body = {"text": f"{number} {turn}", "session_params": {"id": session}}
                assert (await ask(only, "POST", "/generate", body)).status == 200
            assert (await ask(only, "POST", "/close_session", {"session_id": session})).status == 200
        assert [engine.kept for engine in engines] == [{}, {}, {}]
