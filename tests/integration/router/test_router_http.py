"""The HTTP proxy: requests and answers of every form go through whole, over real sockets."""

from __future__ import annotations

import asyncio
import gzip

import pytest

from ghostcacher_router.types import Forecast, Outcome
from tests.support.mock_engine import CHUNKED, MockEngine, Peer, Received, chunks, content, says
from tests.support.proxy_rig import POST, eventually, on_loop, post, proxy_rig

GET = b"GET /v1/models/x HTTP/1.1\r\nHost: router\r\n\r\n"


@on_loop
async def test_request_reaches_the_worker_with_a_head_built_anew() -> None:
    """Kept: what is the client's; replaced: host and framing; added: id and address; gone: hop-by-hop."""
    async with proxy_rig() as rig:
        await rig.ask(
            post(
                b"{}",
                b"Authorization: Bearer k",
                b"Connection: keep-alive, X-Private",
                b"X-Private: 1",
                b"Keep-Alive: timeout=5",
                b"TE: trailers",
                b"Upgrade: h2c",
                b"X-Gc-Session: mine",
                b"X-Forwarded-For: 10.0.0.1",
                b"X-Empty:",
            )
        )
        (request,) = rig.engine.received
        assert request.head.splitlines()[0] == b"POST /v1/chat/completions HTTP/1.1"
        assert request.headers == {
            b"host": b"127.0.0.1:%d" % rig.engine.port,
            b"authorization": b"Bearer k",
            b"x-empty": b"",
            b"x-forwarded-for": b"10.0.0.1, 127.0.0.1",
            b"x-request-id": b"gc-t-1",
            b"content-length": b"2",
        }
        assert rig.placements[0].ask.headers[b"x-gc-session"] == b"mine"


@on_loop
async def test_answer_carries_where_it_was_made_and_what_was_forecast() -> None:
    """The worker's own headers of these names do not get through."""
    script = says(content(b"ok", b"X-Request-Id: other", b"X-Gc-Worker: evil", b"Server: e", b"Keep-Alive: timeout=5"))
    async with proxy_rig(MockEngine("w0", script)) as rig:
        rig.dispatcher.forecast = Forecast("w0", 12.34, 1, 2, 3, 4, 0, 0, 0, 100, 28, 10)
        head, body = await rig.ask(post(b"{}", b"X-Request-Id: mine-1"))
        assert body == b"ok"
        assert head.split(b"\r\n") == [
            b"HTTP/1.1 200 OK",
            b"Server: e",
            b"x-request-id: mine-1",
            b"x-gc-worker: w0",
            b"x-gc-forecast-ms: 12.3",
            b"x-gc-cached-tokens: 128",
            b"x-gc-saved-ms: 48.2",
            b"content-length: 2",
            b"",
            b"",
        ]


@on_loop
async def test_answer_without_a_forecast_carries_where_it_was_made_alone() -> None:
    """As without Redis, where no worker reports its load: no number is made up."""
    async with proxy_rig() as rig:
        head, _ = await rig.ask(post(b"{}"))
        assert b"\r\nx-gc-worker: w0\r\n" in head
        assert (b"x-gc-forecast-ms" in head, b"x-gc-cached-tokens" in head, b"x-gc-saved-ms" in head) == (False,) * 3


@pytest.mark.parametrize("given", [b"a b", b"x" * 129, b"a\xe4", b"a,b", b""])
@on_loop
async def test_absurd_request_id_is_replaced(given: bytes) -> None:
    """Ids go into logs and into an engine's own headers."""
    async with proxy_rig() as rig:
        head, _ = await rig.ask(post(b"{}", b"X-Request-Id: " + given))
        assert b"x-request-id: gc-t-1\r\n" in head
        assert rig.engine.received[0].headers[b"x-request-id"] == b"gc-t-1"


@on_loop
async def test_placement_hears_of_each_step() -> None:
    """Sent, first byte, ended; and the time in between is observed."""
    async with proxy_rig() as rig:
        await rig.ask(post(b"{}"))
        (placement,) = rig.placements
        assert (placement.told, placement.outcome, placement.status) == (["sent", "first_byte"], Outcome.DONE, 200)
        assert rig.meter.answers == [("/v1/chat/completions", 200)]
        assert len(rig.meter.latencies_ms) == 1


@on_loop
async def test_connections_are_kept_on_both_sides() -> None:
    """Ten requests of one client need one connection to the worker."""
    async with proxy_rig() as rig:
        client = await rig.client()
        for number in range(10):
            assert (await client.ask(post(b"%d" % number)))[1] == b"%d" % number
        assert len(rig.engine.peers) == 1


ANSWERS = {
    "length": content(b"hello world", b"X-A: b"),
    "empty": content(b""),
    "chunked": CHUNKED + chunks(b"data: 1\n\n", b"data: [DONE]\n\n"),
    "trailers": CHUNKED + chunks(b"x")[:-2] + b"X-Trailer: 1\r\nX-More: 2\r\n\r\n",
    "extension": CHUNKED + b"1;a=b\r\nx\r\n0;c\r\n\r\n",
    "no content": b"HTTP/1.1 204 No Content\r\nX-A: b\r\n\r\n",
    "error": b"HTTP/1.1 422 Unprocessable Entity\r\nContent-Length: 2\r\n\r\n{}",
    "no reason": b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\n{}",
    "interim": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + content(b"ok"),
}


@pytest.mark.parametrize("name", ANSWERS)
@on_loop
async def test_answer_split_at_every_byte_arrives_unchanged(name: str) -> None:
    """Its body, and the framing of it, byte for byte; interim answers are dropped."""
    answer = ANSWERS[name]
    place = 0

    async def script(peer: Peer, request: Received) -> None:
        await peer.send_split(answer, place)

    final = answer[answer.index(b"HTTP/1.1 200") :] if name == "interim" else answer
    async with proxy_rig(MockEngine("w0", script)) as rig:
        client = await rig.client()
        for place in range(1, len(answer)):  # noqa: B007 -- the script reads it
            client.send(post(b"{}"))
            head = await client.head()
            body = await client.reader.readexactly(len(final.partition(b"\r\n\r\n")[2]))
            assert head.splitlines()[0] == final.splitlines()[0]
            assert body == final.partition(b"\r\n\r\n")[2]
        assert len(rig.engine.peers) == 1, "each answer was found to be whole, and its connection kept"


REQUESTS = {
    "length": post(b'{"a": 1}', b"X-Gc-Session: s"),
    "chunked": POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunks(b'{"a"', b": 1}"),
    "trailers": POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunks(b'{"a": 1}')[:-2] + b"X-T: 1\r\n\r\n",
    "empty line first": b"\r\n" + post(b'{"a": 1}'),
}


@pytest.mark.parametrize("name", REQUESTS)
@on_loop
async def test_request_split_at_every_byte_arrives_whole(name: str) -> None:
    """Its body comes with a length, however it was framed."""
    request = REQUESTS[name]
    async with proxy_rig() as rig:
        client = await rig.client()
        for place in range(1, len(request)):
            client.send(request[:place])
            await asyncio.sleep(0.001)
            assert (await client.ask(request[place:]))[1] == b'{"a": 1}'
        assert {seen.headers[b"content-length"] for seen in rig.engine.received} == {b"8"}


@on_loop
async def test_request_byte_by_byte_arrives_whole() -> None:
    """Also when every byte is a packet."""
    async with proxy_rig() as rig:
        client = await rig.client()
        for byte in REQUESTS["chunked"]:
            client.send(bytes([byte]))
            await asyncio.sleep(0.0005)
        assert (await client.answer())[1] == b'{"a": 1}'


@on_loop
async def test_answer_byte_by_byte_arrives_unchanged() -> None:
    """The end of a chunked answer is found wherever packets begin."""
    answer = ANSWERS["trailers"]

    async def script(peer: Peer, request: Received) -> None:
        for byte in answer:
            peer.send(bytes([byte]))
            await asyncio.sleep(0.0005)

    async with proxy_rig(MockEngine("w0", script)) as rig:
        client = await rig.client()
        client.send(post(b"{}"))
        await client.head()
        expected = answer.partition(b"\r\n\r\n")[2]
        assert await client.reader.readexactly(len(expected)) == expected
        await eventually(lambda: rig.placements[0].outcome is Outcome.DONE)


@on_loop
async def test_answer_without_length_ends_with_the_connection() -> None:
    """The client's connection ends with it too."""
    script = says(b"HTTP/1.1 200 OK\r\nX-A: b\r\n\r\nall of it")

    async def closing(peer: Peer, request: Received) -> None:
        script(peer, request)
        peer.close()

    async with proxy_rig(MockEngine("w0", closing)) as rig:
        head, body = await rig.ask(post(b"{}"))
        assert body == b"all of it"
        assert b"connection: close\r\n" in head
        assert rig.placements[0].outcome is Outcome.DONE


@on_loop
async def test_head_is_answered_without_a_body() -> None:
    """Its Content-Length speaks of a body that does not come; the connection is used again."""
    async with proxy_rig(MockEngine("w0", says(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n"))) as rig:
        client = await rig.client()
        for _ in range(3):
            client.send(GET.replace(b"GET", b"HEAD"))
            head, _ = await client.answer(no_body=True)
            assert b"content-length: 99\r\n" in head
        assert len(rig.engine.peers) == 1


@pytest.mark.parametrize("target", [b"/a/b?c=d&e=%2F", b"http://router:80/a?b", b"/", b"/x//y/.hidden/..."])
@on_loop
async def test_any_path_is_forwarded_as_it_is(target: bytes) -> None:
    """Absolute targets in origin form."""
    async with proxy_rig() as rig:
        await rig.ask(GET.replace(b"/v1/models/x", target))
        line = rig.engine.received[0].head.splitlines()[0]
        assert line == b"GET %b HTTP/1.1" % target.removeprefix(b"http://router:80")


@on_loop
async def test_bodies_of_8_mib_go_both_ways() -> None:
    """Compressed bytes and all; nothing is held afterwards."""
    body = gzip.compress(b"x" * 1000) + bytes(range(256)) * (1 << 15)
    async with proxy_rig() as rig:
        for framed in (post(body), POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunks(body[:99], body[99:])):
            assert (await rig.ask(framed))[1] == body
        assert rig.state.buffered_bytes == 0


@on_loop
async def test_pipelined_requests_are_answered_in_order() -> None:
    """One at a time, whatever is sent ahead."""
    async with proxy_rig() as rig:
        client = await rig.client()
        client.send(b"".join(post(b"%d" % number) for number in range(50)) + GET)
        for number in range(50):
            assert (await client.answer())[1] == b"%d" % number
        assert (await client.answer())[1] == b""


@on_loop
async def test_request_that_begins_in_the_packet_that_ends_another_is_answered_next() -> None:
    """Wherever the packets begin."""
    first, second = post(b"first one"), post(b"second one")
    async with proxy_rig() as rig:
        client = await rig.client()
        for place in range(len(first) - 9, len(first) + 9):
            client.send((first + second)[:place])
            await asyncio.sleep(0.001)
            client.send((first + second)[place:])
            assert [(await client.answer())[1] for _ in range(2)] == [b"first one", b"second one"]


@pytest.mark.parametrize("behind", [post(b"lost"), b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", b"\xff"])
@on_loop
async def test_what_is_pipelined_behind_a_chunked_request_is_not_taken(behind: bytes) -> None:
    """The client is told so by the closed connection, and has to send it again."""
    async with proxy_rig() as rig:
        client = await rig.client()
        client.send(REQUESTS["chunked"] + behind)
        head, body = await client.answer()
        assert (b"connection: close\r\n" in head, body) == (True, b'{"a": 1}')
        assert await client.rest() == b""
        assert len(rig.engine.received) == 1


@on_loop
async def test_thousands_of_requests_at_once_are_read_bit_by_bit() -> None:
    """What is sent ahead is bounded: the client is not read from meanwhile."""
    async with proxy_rig() as rig:
        client = await rig.client()
        count = 3000
        client.send(post(b"x" * 1000) * count)
        for _ in range(count):
            assert (await client.answer())[1] == b"x" * 1000


@on_loop
async def test_expect_continue_is_answered_by_the_proxy() -> None:
    """The worker never sees it; other expectations are refused."""
    async with proxy_rig() as rig:
        client = await rig.client()
        client.send(POST + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        assert await client.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert (await client.ask(b"{}"))[1] == b"{}"
        assert b"expect" not in rig.engine.received[0].headers
        assert (await client.ask(post(b"", b"Expect: wonders")))[0].startswith(b"HTTP/1.1 417 ")


@on_loop
async def test_http10_client_gets_no_chunks() -> None:
    """And a closed connection at the end, unless it asked to keep it and the length is known."""
    old = post(b"{}").replace(b"HTTP/1.1", b"HTTP/1.0")
    async with proxy_rig(MockEngine("w0", says(CHUNKED + chunks(b"one ", b"two")))) as rig:
        head, body = await rig.ask(old)
        assert (body, b"ransfer-" in head, b"connection: close" in head) == (b"one two", False, True)
        rig.engine.script = says(content(b"ok"))
        client = await rig.client()
        for _ in range(2):
            head, body = await client.ask(old.replace(b"\r\n\r\n", b"\r\nConnection: keep-alive\r\n\r\n"))
            assert (body, b"connection: keep-alive" in head) == (b"ok", True)


@on_loop
async def test_many_clients_get_their_own_bytes_alone() -> None:
    """With connections to the worker shared between them."""
    async with proxy_rig() as rig:

        async def one(number: int) -> None:
            client = await rig.client()
            for turn in range(20):
                body = b"%d/%d " % (number, turn) * (1 + number * turn)
                assert (await client.ask(post(body)))[1] == body

        await asyncio.gather(*(one(number) for number in range(20)))
        assert len(rig.engine.received) == 400


@on_loop
async def test_local_paths_never_reach_a_worker() -> None:
    """They get the whole request, and the client keeps its connection."""
    async with proxy_rig() as rig:
        client = await rig.client()
        request = post(b"{}").replace(b"/v1/chat/completions", b"/local/page?a=b")
        for _ in range(2):
            head, body = await client.ask(request)
            assert (head[:15], body) == (b"HTTP/1.1 200 OK", b"POST /local/page a=b 127.0.0.1 {}")
        assert (await client.ask(request.replace(b"page", b"bug")))[0].startswith(b"HTTP/1.1 500 ")
        assert rig.engine.received == []


@on_loop
async def test_placement_may_be_awaited() -> None:
    """A dispatcher that has to ask somebody answers later."""
    async with proxy_rig() as rig:
        rig.dispatcher.slow = asyncio.Event()
        client = await rig.client()
        client.send(post(b"{}"))
        await eventually(lambda: rig.dispatcher.waiting)
        rig.dispatcher.slow.set()
        assert (await client.answer())[1] == b"{}"
