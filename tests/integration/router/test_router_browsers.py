"""A whole router and what browsers and curious people send: preflights, HEAD and others on the paths of prompts."""

from __future__ import annotations

import pytest

from ghostcacher_router.app import Router
from ghostcacher_router.config import RouterSettings
from ghostcacher_router.http.protocol.headers import HEAD_END
from tests.support.mock_engine import Peer, Received, content
from tests.support.proxy_rig import on_loop
from tests.support.stored_engine import KeepingEngine, ask, routers

PREFLIGHT = {"origin": "https://app.example", "access-control-request-method": "POST"}
PROMPTS = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/messages", "/v1/responses"]


def answers_all(peer: Peer, request: Received) -> None:
    """Answer every method; a preflight as an engine does that allows all origins."""
    if request.method == "HEAD":
        peer.send(content(b"hello").partition(HEAD_END)[0] + HEAD_END)
    else:
        peer.send(content(request.method.encode(), b"access-control-allow-origin: *"))


@pytest.mark.parametrize("path", PROMPTS)
@on_loop
async def test_every_method_on_the_path_of_a_prompt_is_the_engines_to_answer(path: str) -> None:
    """Also with a body, whatever is in it; only a POST brings a prompt, and is refused without one."""
    engine = KeepingEngine("w0")
    async with engine, routers(1, engine) as (router,):
        engine.handler = answers_all
        before = len(engine.received)
        for method in ("OPTIONS", "GET", "DELETE", "PUT"):
            reply = await ask(router, method, path, headers=PREFLIGHT)
            assert (reply.status, reply.body) == (200, method.encode())
            assert b"access-control-allow-origin: *\r\n" in reply.head
            assert (await ask(router, method, path + "?x=y", b"{no json")).status == 200
        head = await ask(router, "HEAD", path)
        assert (head.status, head.body) == (200, b"")
        assert (await ask(router, "POST", path, b"")).status == 400
        asked = [request for request in engine.received[before:] if request.path.partition("?")[0] == path]
        assert len(asked) == 9
        assert asked[0].headers[b"access-control-request-method"] == b"POST"


@pytest.mark.parametrize(
    ("allowed", "says"),
    [((), None), (("*",), b"*"), (("https://app.example",), b"https://app.example"), (("https://b.example",), None)],
)
@on_loop
async def test_router_of_providers_alone_answers_preflights(allowed: tuple[str, ...], says: bytes | None) -> None:
    """A page of an origin that is allowed may send what it asks for; there is no engine that could say so."""
    upstreams = ("openai=http://127.0.0.1:1",)
    router = Router(RouterSettings(listen="127.0.0.1:0", redis=False, upstreams=upstreams, allowed_origins=allowed))
    await router.start()
    try:
        names = PREFLIGHT | {"access-control-request-headers": "authorization,x-stainless-lang"}
        for path in (*PROMPTS, "/v1/models", "/gcx"):
            reply = await ask(router, "OPTIONS", path, headers=names)
            assert reply.status == 200
            lines = reply.head.split(b"\r\n")
            origin = [line for line in lines if line.startswith(b"access-control-allow-origin")]
            assert origin == ([] if says is None else [b"access-control-allow-origin: " + says])
            assert b"access-control-allow-methods: POST" in lines
            assert b"access-control-allow-headers: authorization,x-stainless-lang" in lines
        assert b"access-control" not in (await ask(router, "OPTIONS", "/gc/status", headers=names)).head
    finally:
        await router.stop()


@on_loop
async def test_settings_for_pages_and_addresses_reach_the_proxy() -> None:
    """A page that is allowed reads the router's own errors, and the limit of an address is the one that was set."""
    settings = RouterSettings(
        listen="127.0.0.1:0",
        redis=False,
        workers=("http://127.0.0.1:1",),
        allowed_origins=("https://app.example",),
        connections_per_address_max=7,
    )
    router = Router(settings)
    limits = router._proxy.state.limits
    assert (limits.allowed_origins, limits.connections_per_address_max) == (("https://app.example",), 7)
    await router.stop()
