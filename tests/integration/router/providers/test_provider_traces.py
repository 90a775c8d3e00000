"""The spans of requests that hosted providers answer, and that no provider is told of a trace."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import patch

from tests.support.providers.routed import Routed, routed
from tests.support.providers.server import Asked, Authority, Peer, ProviderServer
from tests.support.proxy_rig import eventually, on_loop
from tests.support.spans import PREFIX, Recorded

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
LINES = (f"traceparent: 00-{TRACE}-{PARENT}-01", "tracestate: a=b", "X-Request-Id: mine")
BODY = {"model": "gpt-5.2", "messages": [{"role": "user", "content": "q"}]}


async def says(peer: Peer, asked: Asked) -> None:
    await peer.answer(429 if b"busy" in asked.body else 200, b"{}", "retry-after: 1")


@asynccontextmanager
async def traced(
    authority: Authority, server: ProviderServer, **settings: Any
) -> AsyncIterator[tuple[Routed, Recorded]]:
    async with routed(authority, ("openai", server), **settings) as router:
        state = router.router._proxy.state
        recorded = Recorded(state.clock)
        state.tracer = recorded.tracer
        with patch.object(recorded.tracer, "span", side_effect=recorded.tracer.span) as begin:
            yield router, recorded
        begun = [call.args[0].removeprefix(PREFIX) for call in begin.call_args_list]
        assert sorted(begun) == sorted(span.name for span in recorded.spans), "spans that never end"


@on_loop
async def test_request_to_a_provider_has_the_spans_of_one_to_a_worker(authority: Authority) -> None:
    """Under the client's trace, of which the provider hears nothing; also for a body that is written in a thread."""
    async with ProviderServer(authority, says) as server, traced(authority, server) as (router, recorded):
        long = BODY | {"messages": [{"role": "user", "content": "q" * 100_000}]}
        for count, body in enumerate((BODY, long), 1):
            assert (await router.post("/v1/chat/completions", body, *LINES))[0] == 200
            await eventually(lambda count=count: len(recorded.named("request")) == count)  # type: ignore[misc]
        assert [one.headers.keys() & {"traceparent", "tracestate", "x-request-id"} for one in server.asked] == [
            set()
        ] * 2
    for number in range(2):
        request, route, upstream = (recorded.named(name)[number] for name in ("request", "route", "upstream"))
        assert {span.trace for span in (request, route, upstream)} == {TRACE}
        assert (request.parent, route.parent, upstream.parent) == (PARENT, request.id, request.id)
        assert route.attributes == {"worker": "openai", "reason": "only"}
        ttft_ms = upstream.attributes.get("ttft_ms")
        assert upstream.attributes == {"worker": "openai", "outcome": "done", "status": 200, "ttft_ms": ttft_ms}
        assert request.begin_ns <= route.end_ns <= upstream.begin_ns <= upstream.end_ns <= request.end_ns
    assert {span.error for span in recorded.spans} == {None}


@on_loop
async def test_what_a_provider_refuses_and_one_that_is_away_are_said(authority: Authority) -> None:
    """The provider's own status; and that there was no answer at all."""
    async with ProviderServer(authority, says) as server, traced(authority, server) as (router, recorded):
        body = json.dumps(BODY | {"user": "busy"}).encode()
        assert (await router.post("/v1/chat/completions", body))[0] == 429
        server.script = _aborts
        assert (await router.post("/v1/chat/completions", BODY))[0] == 502
        await eventually(lambda: len(recorded.named("request")) == 2)
    busy, *gone = recorded.named("upstream")
    assert (busy.attributes["outcome"], busy.attributes["status"], busy.error) == ("done", 429, None)
    assert gone
    assert all(span.error is not None and "status" not in span.attributes for span in gone)
    failed = recorded.named("request")[1]
    assert (failed.attributes["status"], failed.error is not None) == (502, True)


async def _aborts(peer: Peer, asked: Asked) -> None:
    peer.abort()


@on_loop
async def test_fallback_is_a_decision_of_its_own(authority: Authority) -> None:
    """The one that found no worker ends with the provider as what was found."""
    given = {"provider_fallbacks": ("m=openai:gpt-5.2",), "workers": ("http://127.0.0.1:1",)}
    async with ProviderServer(authority, says) as server, traced(authority, server, **given) as (router, recorded):
        body = BODY | {"model": "m"}
        status, _, _ = await router.post("/v1/chat/completions", body, *LINES, "X-GC-Upstream-Key: sk")
        assert status == 200
        await eventually(lambda: recorded.named("request"))
    assert [span.attributes["worker"] for span in recorded.named("route")] == ["openai"]
    (upstream,) = recorded.named("upstream")
    assert (upstream.attributes["worker"], upstream.parent) == ("openai", recorded.named("request")[0].id)
