"""What a provider answers reaches the client as it was said: errors, streams, and what breaks off."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.mock_engine import until
from tests.support.providers.routed import PATIENCE_S, post, read_head, routed
from tests.support.providers.server import Asked, Authority, Peer, ProviderServer
from tests.support.proxy_rig import on_loop


async def echo(peer: Peer, asked: Asked) -> None:
    await peer.answer(200, asked.body)


@pytest.mark.parametrize("status", [400, 401, 404, 413, 429, 500, 503, 529])
@on_loop
async def test_errors_of_a_provider_pass_as_they_are_and_once(authority: Authority, status: int) -> None:
    """With the time after which to come back; the client's library, and not the router, asks again."""
    said = b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"},"request_id":"req_1"}'

    async def answer(peer: Peer, _: Asked) -> None:
        await peer.answer(
            status, said, "retry-after: 7", "anthropic-ratelimit-tokens-remaining: 0", "request-id: req_1"
        )

    async with ProviderServer(authority, answer) as server, routed(authority, ("anthropic", server)) as router:
        found, headers, body = await router.post("/v1/messages", {"model": "claude-x", "messages": []})
        assert (found, body) == (status, said)
        kept = {name: headers[name] for name in ("retry-after", "anthropic-ratelimit-tokens-remaining", "request-id")}
        assert kept == {"retry-after": "7", "anthropic-ratelimit-tokens-remaining": "0", "request-id": "req_1"}
        assert len(server.asked) == 1
        assert 'gc_router_retries_total{reason="429"} 0.0' in await router.metrics()


@on_loop
async def test_stream_passes_event_by_event_and_byte_for_byte(authority: Authority) -> None:
    """Each event is there before the next one is sent, chunks and comments as they came."""
    events = [
        b'event: ping\ndata: {"type": "ping"}\n\n',
        b": comment\n\n",
        b"data: \xe2\x82",
        b"\xac\n\n",
        b"data: end\r\n\r\n",
    ]
    passed = asyncio.Semaphore(0)

    async def answer(peer: Peer, _: Asked) -> None:
        await peer.stream("request-id: req_2")
        for event in events:
            await peer.chunk(event)
            await passed.acquire()
        await peer.end()

    async with ProviderServer(authority, answer) as server, routed(authority, ("anthropic", server)) as router:
        reader, writer = await router.connect()
        async with asyncio.timeout(PATIENCE_S):
            writer.write(post("/v1/messages", {"model": "claude-x", "messages": [], "stream": True}))
            status, headers = await read_head(reader)
            assert (status, headers["request-id"]) == (200, "req_2")
            for event in events:
                expected = b"%x\r\n%b\r\n" % (len(event), event)
                assert await reader.readexactly(len(expected)) == expected
                passed.release()
            assert await reader.readexactly(5) == b"0\r\n\r\n"
        writer.close()


@on_loop
async def test_body_is_let_go_of_once_the_answer_begins(authority: Authority) -> None:
    """Long prompts have long answers, and the router counts the body as gone by then."""
    ends = asyncio.Event()

    async def answer(peer: Peer, _: Asked) -> None:
        await peer.stream()
        await ends.wait()
        await peer.end()

    async with ProviderServer(authority, answer) as server, routed(authority, ("anthropic", server)) as router:
        reader, writer = await router.connect()
        body = {"model": "claude-x", "max_tokens": 1, "system": "x" * 300_000, "messages": []}
        writer.write(post("/v1/messages", body))
        await read_head(reader)
        (client,) = router.router._proxy.state.clients
        exchange = client._exchange  # type: ignore[attr-defined]
        assert (exchange._body, exchange._call.body) == (b"", b"")
        assert len(server.asked[0].body) > 300_000
        ends.set()
        assert await reader.readexactly(5) == b"0\r\n\r\n"
        writer.close()


@on_loop
async def test_name_of_a_request_at_the_provider_is_told(authority: Authority) -> None:
    """Beside the router's own, by which its log is read: the provider's support asks for it."""

    async def answer(peer: Peer, _: Asked) -> None:
        await peer.answer(200, b"{}", "X-Request-ID: req_7")

    async with ProviderServer(authority, answer) as server, routed(authority, ("openai", server)) as router:
        body = {"model": "gpt-5.2", "messages": []}
        _, headers, _ = await router.post("/v1/chat/completions", body, "X-Request-Id: mine")
        assert (headers["x-request-id"], headers["x-upstream-request-id"]) == ("mine", "req_7")


@on_loop
async def test_connection_is_kept_and_one_that_was_closed_is_made_anew(authority: Authority) -> None:
    """A provider closes what is idle whenever it likes: the next request does not fail for it."""
    async with ProviderServer(authority, echo) as server, routed(authority, ("openai", server)) as router:

        async def ask() -> int:
            return (await router.post("/v1/chat/completions", {"model": "gpt-4o", "messages": []}))[0]

        assert [await ask(), await ask()] == [200, 200]
        assert [asked.connection for asked in server.asked] == [1, 1]
        server.close_connections()
        assert await ask() == 200
        assert server.asked[-1].connection == 2


@on_loop
async def test_stream_that_breaks_off_does_not_look_whole(authority: Authority) -> None:
    """The client gets an error in its API's form that names the provider, and the framing stays open."""

    async def answer(peer: Peer, _: Asked) -> None:
        await peer.stream()
        await peer.chunk(b"event: content_block_delta\ndata: {}\n\n")
        peer.abort()

    async with ProviderServer(authority, answer) as server, routed(authority, ("anthropic", server)) as router:
        reader, writer = await router.connect()
        writer.write(post("/v1/messages", {"model": "claude-x", "messages": [], "stream": True}))
        async with asyncio.timeout(PATIENCE_S):
            await read_head(reader)
            rest = await reader.read()
        assert b"event: error\n" in rest
        assert b"the provider anthropic broke off its answer" in rest
        assert b"0\r\n\r\n" not in rest
        writer.close()


@on_loop
async def test_client_that_leaves_ends_the_request_at_the_provider(authority: Authority) -> None:
    """What nobody reads is not paid for."""
    peers: list[Peer] = []

    async def answer(peer: Peer, _: Asked) -> None:
        peers.append(peer)
        await peer.stream()
        await asyncio.Event().wait()

    async with ProviderServer(authority, answer) as server, routed(authority, ("anthropic", server)) as router:
        reader, writer = await router.connect()
        writer.write(post("/v1/messages", {"model": "claude-x", "messages": [], "stream": True}))
        await read_head(reader)
        writer.close()
        await until(peers[0].left.is_set, "the provider sees its client leave")
