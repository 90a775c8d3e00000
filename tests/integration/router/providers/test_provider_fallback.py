"""A provider answers for own workers that cannot, where the settings and the request allow it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from ghostcacher_simulator.http_server import Peer as WorkerPeer
from ghostcacher_simulator.http_server import Received, content
from tests.support.mock_engine import MockEngine, until
from tests.support.providers.routed import Routed, routed
from tests.support.providers.server import Asked, Authority, Peer, ProviderServer
from tests.support.proxy_rig import on_loop

OWN, KEY = "Authorization: Bearer own-engines-key", "sk-of-the-provider"
BODY = b'{ "model":"m" , "n": 1.0, "messages": [{"role": "user", "content": "q"}] }'
FALLBACKS = ("m=openai:gpt-5.2", "c=anthropic:claude-sonnet-5")
TOKEN = "token-that-nobody-may-see-token"


async def says(peer: Peer, asked: Asked) -> None:
    await peer.answer(200, b'{"usage": {"prompt_tokens": 3}}')


def worker(answer: bytes) -> MockEngine:
    """A worker that is well, serves "m", and gives every request this answer."""

    def script(peer: WorkerPeer, request: Received) -> None:
        models = json.dumps({"object": "list", "data": [{"id": "m", "object": "model"}]}).encode()
        peer.send(content(models) if request.method == "GET" else answer)

    return MockEngine("w", script)


async def ask(router: Routed, *lines: str, path: str = "/v1/chat/completions", body: Any = BODY) -> tuple[int, str]:
    """Return the status, and who has answered."""
    status, headers, _ = await router.post(path, body, OWN, *lines)
    return status, headers.get("x-gc-worker", "nobody")


@on_loop
async def test_provider_answers_what_no_worker_takes(authority: Authority) -> None:
    """Busy workers, then none at all. The body names the provider's model, and is otherwise the client's."""
    engine = worker(b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\nRetry-After: 3\r\n\r\nbusy")
    await engine.start()
    async with ProviderServer(authority, says) as server:
        given = {"workers": (engine.endpoint.url,), "provider_fallbacks": FALLBACKS}
        async with routed(authority, ("openai", server), ("anthropic", server), **given) as router:
            assert await ask(router) == (503, engine.endpoint.name)
            assert server.asked == []
            assert await ask(router, f"X-GC-Upstream-Key: {KEY}") == (200, "openai")
            await engine.stop()
            await until(lambda: not router.router._fleet.serving("m"), "the worker is away")
            assert await ask(router, f"X-GC-Upstream-Key: {KEY}") == (200, "openai")
            assert (await ask(router))[0] == 503
            for one in server.asked:
                assert one.body == BODY.replace(b'"m"', b'"gpt-5.2"')
                assert one.headers["authorization"] == f"Bearer {KEY}"
            assert "own-engines-key" not in str(server.asked)
            assert await router.metric('gc_provider_fallbacks_total{provider="openai"}') == len(server.asked) == 2


@on_loop
async def test_provider_takes_what_overflows_the_queue(authority: Authority) -> None:
    """With flow control: the only place is taken, and the only place in the queue; the others wait, or are refused."""
    gate = asyncio.Event()
    engine = worker(content(b"{}"))
    answer = engine.script

    async def held(peer: WorkerPeer, request: Received) -> None:
        if request.method == "POST":
            await gate.wait()
        answer(peer, request)

    engine.script = held
    await engine.start()
    async with ProviderServer(authority, says) as server:
        given = {"workers": (engine.endpoint.url,), "provider_fallbacks": FALLBACKS[:1]}
        flow = {"flow_queue_max": 1, "flow_worker_requests_max": 1}
        async with routed(authority, ("openai", server), **given, **flow) as router:
            control = router.router._routing.flow
            assert control is not None
            key = f"X-GC-Upstream-Key: {KEY}"
            runs = asyncio.create_task(ask(router, key))
            await until(lambda: router.router.in_flight == 1, "the place is taken")
            waits = asyncio.create_task(ask(router, key))
            await until(lambda: len(control.queue) == 1, "the queue is full")
            assert await ask(router, key) == (200, "openai")
            assert (await ask(router))[0] == 429
            gate.set()
            assert await asyncio.gather(runs, waits) == [(200, engine.endpoint.name)] * 2
    await engine.stop()


@on_loop
async def test_anthropic_gets_the_key_in_its_own_header(authority: Authority) -> None:
    async with ProviderServer(authority, says) as server:
        given = {"provider_fallbacks": FALLBACKS, "workers": ("http://127.0.0.1:1",)}
        async with routed(authority, ("openai", server), ("anthropic", server), **given) as router:
            body = {"model": "c", "max_tokens": 1, "messages": []}
            line = f"X-GC-Upstream-Key: {KEY}"
            assert await ask(router, line, "X-Api-Key: own", path="/v1/messages", body=body) == (200, "anthropic")
            (one,) = server.asked
            assert (one.headers["x-api-key"], one.headers["anthropic-version"]) == (KEY, "2023-06-01")
            assert "authorization" not in one.headers
            assert json.loads(one.body) == body | {"model": "claude-sonnet-5"}


@pytest.mark.parametrize("settings", [{}, {"provider_fallbacks": FALLBACKS}])
@on_loop
async def test_nothing_leaves_that_was_not_allowed(authority: Authority, settings: dict[str, Any]) -> None:
    """Without the setting, or the header; another model; a path that the provider has not; the router's own token."""
    async with ProviderServer(authority, says) as server:
        given = settings | {"workers": ("http://127.0.0.1:1",), "admin_token": TOKEN}
        async with routed(authority, ("openai", server), ("anthropic", server), **given) as router:
            line = f"X-GC-Upstream-Key: {KEY}"
            if not settings:
                assert (await ask(router, line))[0] == 503
            assert (await ask(router))[0] == 503
            assert (await ask(router, "X-GC-Upstream-Key: "))[0] == 503
            assert (await ask(router, f"X-GC-Upstream-Key: {TOKEN}"))[0] == 503
            assert (await ask(router, line, body=BODY.replace(b'"m"', b'"other"')))[0] == 503
            assert (await ask(router, line, path="/v1/messages"))[0] == 503
            assert (await ask(router, line, path="/tokenize"))[0] == 503
            assert server.asked == []


@on_loop
async def test_error_of_a_worker_is_no_reason_to_leave(authority: Authority) -> None:
    """It is an answer, and may be the request's own fault."""
    engine = worker(b"HTTP/1.1 400 Bad\r\nContent-Length: 3\r\n\r\nbad")
    await engine.start()
    async with ProviderServer(authority, says) as server:
        given = {"workers": (engine.endpoint.url,), "provider_fallbacks": FALLBACKS}
        async with routed(authority, ("openai", server), ("anthropic", server), **given) as router:
            assert await ask(router, f"X-GC-Upstream-Key: {KEY}") == (400, engine.endpoint.name)
            engine.script = worker(b"HTTP/1.1 500 Bug\r\nContent-Length: 3\r\n\r\nbug").script
            assert await ask(router, f"X-GC-Upstream-Key: {KEY}") == (500, engine.endpoint.name)
            assert server.asked == []
    await engine.stop()


@on_loop
async def test_provider_that_fails_too_ends_it(authority: Authority) -> None:
    """Its answer is passed on, also when the body is so long that it is written beside the loop."""

    async def busy(peer: Peer, asked: Asked) -> None:
        await peer.answer(529, b"{}", "retry-after: 9")

    async with ProviderServer(authority, busy) as server:
        given = {"workers": ("http://127.0.0.1:1",), "provider_fallbacks": FALLBACKS}
        async with routed(authority, ("openai", server), ("anthropic", server), **given) as router:
            for size in (1, 1_000_000):
                body = BODY.replace(b'"q"', b'"%b"' % (b"q" * size))
                assert await ask(router, f"X-GC-Upstream-Key: {KEY}", body=body) == (529, "openai")
                assert server.asked[-1].body == body.replace(b'"m"', b'"gpt-5.2"')
