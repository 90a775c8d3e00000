"""The spans of requests in the HTTP proxy, and what workers are told of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ghostcacher_router.types import Forecast
from tests.support.mock_engine import MockEngine, content, says
from tests.support.proxy_rig import Rig, eventually, on_loop, post, proxy_rig
from tests.support.spans import Recorded

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01".encode()
HEADERS = (b"TraceParent: " + TRACEPARENT, b"tracestate: a=b", b"X-Request-Id: mine")


@asynccontextmanager
async def traced_rig(*engines: MockEngine) -> AsyncIterator[tuple[Rig, Recorded]]:
    async with proxy_rig(*engines) as rig:
        recorded = Recorded(rig.clock)
        rig.state.tracer = recorded.tracer
        yield rig, recorded


@on_loop
async def test_trace_is_passed_on_as_it_came_where_the_router_does_not_trace() -> None:
    """It is nothing to it but two headers."""
    async with proxy_rig() as rig:
        await rig.ask(post(b"{}", *HEADERS))
        headers = rig.engine.received[0].headers
        assert (headers[b"traceparent"], headers[b"tracestate"]) == (TRACEPARENT, b"a=b")


@on_loop
async def test_worker_is_told_of_the_span_that_it_works_for() -> None:
    """The client's trace goes on through the router to the worker, each under the one before it."""
    async with traced_rig() as (rig, recorded):
        rig.dispatcher.forecast = Forecast("w0", 30.0, 5.0, 0.0, 0.0, 7.0, 0.0, 8.0, 9.0, 64, 16, 20)
        await rig.ask(post(b"{}", *HEADERS))
        received, raw = rig.engine.received[0].headers, rig.engine.received[0].head
        await eventually(lambda: recorded.named("request"))
    (request,), (route,), (upstream,) = map(recorded.named, ("request", "route", "upstream"))
    assert received[b"traceparent"] == f"00-{TRACE}-{upstream.id}-01".encode()
    assert raw.lower().count(b"traceparent:") == 1
    assert received[b"tracestate"] == b"a=b"
    assert {span.trace for span in recorded.spans} == {TRACE}
    assert (request.parent, route.parent, upstream.parent) == (PARENT, request.id, request.id)
    assert request.attributes == {"method": "POST", "path": "/v1/chat/completions", "request_id": "mine", "status": 200}
    assert route.attributes == {"worker": "w0", "reason": "only", "forecast_ms": 13.0, "cached_tokens": 80}
    assert upstream.attributes == {"worker": "w0", "outcome": "done", "status": 200}
    assert {span.error for span in recorded.spans} == {None}


@on_loop
async def test_each_attempt_is_a_span_of_its_own() -> None:
    """Of the worker that turns a request away and of the one that answers it."""
    busy, fine = MockEngine("busy", says(content(b"{}", status=503))), MockEngine("fine")
    async with traced_rig(busy, fine) as (rig, recorded):
        head, _ = await rig.ask(post(b"{}"))
        assert head.startswith(b"HTTP/1.1 200")
        await eventually(lambda: recorded.named("request"))
    first, second = recorded.named("upstream")
    assert (first.attributes["worker"], first.attributes["status"]) == ("busy", 503)
    assert first.error == "done, status 503"
    assert (second.attributes["worker"], second.error) == ("fine", None)
    assert [span.attributes["worker"] for span in recorded.named("route")] == ["busy", "fine"]
    (request,) = recorded.named("request")
    assert (request.attributes["status"], request.error, request.parent) == (200, None, None)


@on_loop
async def test_request_that_nobody_takes_ends_with_its_error() -> None:
    """Every span that has begun ends, also that of a decision that found no worker."""
    async with traced_rig(MockEngine("gone", lambda peer, _: peer.abort())) as (rig, recorded):
        head, _ = await rig.ask(post(b"{}"))
        assert head.startswith(b"HTTP/1.1 502")
        await rig.ask(post(b"bad body"))
        await eventually(lambda: len(recorded.named("request")) == 2)
    first, second = recorded.named("request")
    assert (first.attributes["status"], first.error) == (502, "no worker took the request; tried 1")
    assert [span.error for span in recorded.named("upstream")] == ["broke, status None"]
    assert [span.error for span in recorded.named("route")] == [None, "no worker took the request; tried 1"]
    assert (second.attributes["status"], second.error) == (400, None)


@on_loop
async def test_client_that_leaves_ends_its_spans() -> None:
    """While a worker has its request, and while one is looked for."""
    async with traced_rig(MockEngine("slow", lambda *_: None)) as (rig, recorded):
        client = await rig.client()
        client.send(post(b"{}"))
        await eventually(lambda: rig.engine.received)
        client.abort()
        await eventually(lambda: recorded.named("request"))
        rig.dispatcher.slow = asyncio.Event()
        client = await rig.client()
        client.send(post(b"{}"))
        await eventually(lambda: rig.dispatcher.waiting)
        client.abort()
        await eventually(lambda: len(recorded.named("request")) == 2)
    assert [span.attributes["status"] for span in recorded.named("request")] == [499, 499]
    (upstream,) = recorded.named("upstream")
    assert (upstream.attributes["outcome"], upstream.error) == ("cancelled", None)
    assert len(recorded.named("route")) == 2
