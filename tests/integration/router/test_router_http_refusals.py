"""The HTTP proxy: what it refuses. The client gets an error that says why, and no byte of it reaches a worker."""

from __future__ import annotations

import asyncio
import json

import pytest

from ghostcacher_router.http.protocol.limits import Limits
from tests.support.mock_engine import chunks
from tests.support.proxy_rig import POST, Rig, eventually, on_loop, post, proxy_rig

GET = b"GET /x HTTP/1.1\r\nHost: router\r\n\r\n"
CHUNKED_POST = POST + b"Transfer-Encoding: chunked\r\n\r\n"
NO_LIMITS = Limits()


def with_headers(*headers: bytes) -> bytes:
    """Return a request with a body that fits the framing which its headers may be taken to name."""
    body = b"5\r\nhello\r\n" if any(b"Transfer" in header for header in headers) else b"hello"
    return POST + b"".join(b"%b\r\n" % header for header in headers) + b"\r\n" + body


SMUGGLED = {
    "two lengths": with_headers(b"Content-Length: 5", b"Content-Length: 6"),
    "the same length twice": with_headers(b"Content-Length: 5", b"Content-Length: 5"),
    "list of lengths": with_headers(b"Content-Length: 5, 5"),
    "signed length": with_headers(b"Content-Length: +5"),
    "negative length": with_headers(b"Content-Length: -5"),
    "hexadecimal length": with_headers(b"Content-Length: 0x5"),
    "endless length": with_headers(b"Content-Length: 18446744073709551621"),
    "length and coding": with_headers(b"Content-Length: 5", b"Transfer-Encoding: chunked"),
    "coding and length": with_headers(b"Transfer-Encoding: chunked", b"Content-Length: 5"),
    "coding but chunked": with_headers(b"Transfer-Encoding: gzip"),
    "coding before chunked": with_headers(b"Transfer-Encoding: gzip, chunked"),
    "coding after chunked": with_headers(b"Transfer-Encoding: chunked, identity"),
    "two codings": with_headers(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
    "nearly chunked": with_headers(b"Transfer-Encoding: xchunked"),
    "tab before chunked": with_headers(b"Transfer-Encoding:\x0bchunked"),
    "coding in HTTP/1.0": with_headers(b"Transfer-Encoding: chunked").replace(b"HTTP/1.1", b"HTTP/1.0"),
    "space before colon": with_headers(b"Content-Length : 5"),
    "folded line": with_headers(b"X: a", b" b", b"Content-Length: 5"),
    "folded first line": b"POST /x HTTP/1.1\r\n Host: a\r\n\r\n",
    "bare LF in a value": with_headers(b"X: a\nTransfer-Encoding: chunked"),
    "bare CR in a value": with_headers(b"X: a\rTransfer-Encoding: chunked"),
    "NUL in a value": with_headers(b"X: a\0b"),
    "control in a value": with_headers(b"X: a\x01b"),
    "NUL in a name": with_headers(b"X\0: a"),
    "no name": with_headers(b": a"),
    "no colon": with_headers(b"Content-Length"),
    "name beyond ASCII": with_headers(b"X\xe4: a"),
    "name in brackets": with_headers(b"X[a]: a"),
    "two hosts": with_headers(b"Host: other"),
    "no host": b"GET /x HTTP/1.1\r\n\r\n",
    "host of a path": b"GET /x HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "bare LFs": GET.replace(b"\r\n", b"\n"),
    "one bare LF": GET.replace(b"1.1\r\n", b"1.1\n"),
    "tab in the request line": b"GET\t/x\tHTTP/1.1\r\nHost: a\r\n\r\n",
    "version 1.2": GET.replace(b"1.1", b"1.2"),
    "dot segments": GET.replace(b"/x", b"/x/../y"),
    "encoded dot segments": GET.replace(b"/x", b"/x/%2E%2e/y"),
    "target beyond ASCII": GET.replace(b"/x", b"/\xc3\xa4"),
    "fragment": GET.replace(b"/x", b"/x#y"),
    "asterisk": GET.replace(b"GET /x", b"OPTIONS *"),
    "no path": GET.replace(b"/x", b"x"),
    "nonsense": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
}
CHUNKS = {
    "size": b"g\r\nhello\r\n0\r\n\r\n",
    "size with 0x": b"0x5\r\nhello\r\n0\r\n\r\n",
    "size too large": b"fffffffffffffffff\r\n",
    "negative size": b"-5\r\nhello\r\n0\r\n\r\n",
    "space after size": b"5 \r\nhello\r\n0\r\n\r\n",
    "bare LF after size": b"5\nhello\r\n0\r\n\r\n",
    "bare CR after size": b"5\rhello\r\n0\r\n\r\n",
    "bare LF in extension": b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    "bytes after data": b"5\r\nhelloXX\r\n0\r\n\r\n",
    "bare LF after data": b"5\r\nhello\n0\r\n\r\n",
    "length in a trailer": b"0\r\nContent-Length: 5\r\n\r\n",
    "bare LF in a trailer": b"0\r\nX: a\nY: b\r\n\r\n",
}
OTHERS = {
    "method": (GET.replace(b"GET", b"FROB"), 501),
    "CONNECT": (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 501),
    "HTTP/0.9": (b"GET /x\r\n\r\n", 505),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "HTTP/2 version": (GET.replace(b"1.1", b"2.0"), 505),
    "long head": (GET.replace(b"/x", b"/" + b"x" * (64 << 10)), 431),
    "endless head": (b"GET /" + b"x" * (300 << 10), 431),
    "many headers": (GET.replace(b"\r\n\r\n", b"\r\n" + b"a: b\r\n" * 200 + b"\r\n"), 431),
}


async def refused(rig: Rig, request: bytes, status: int) -> dict[str, object]:
    """Send a request, and a good one behind it; assert that the first is refused and the second never seen."""
    client = await rig.client()
    client.send(request + b"0\r\n\r\n" + post(b"smuggled"))
    head, body = await client.answer()
    assert head.startswith(b"HTTP/1.1 %d " % status), head
    assert b"connection: close\r\n" in head
    assert await client.rest() == b""
    assert rig.engine.received == []
    error = json.loads(body)["error"]
    assert isinstance(error, dict)
    return error


@pytest.mark.parametrize("name", SMUGGLED)
@on_loop
async def test_ambiguous_head_is_refused(name: str) -> None:
    """What two servers could read differently goes to no second one."""
    async with proxy_rig() as rig:
        await refused(rig, SMUGGLED[name], 400)


@pytest.mark.parametrize("name", CHUNKS)
@on_loop
async def test_ambiguous_chunk_is_refused(name: str) -> None:
    """The same of a body's framing."""
    async with proxy_rig() as rig:
        await refused(rig, CHUNKED_POST + CHUNKS[name], 400)


@pytest.mark.parametrize("name", OTHERS)
@on_loop
async def test_what_is_not_spoken_is_refused(name: str) -> None:
    """With the status that says so."""
    async with proxy_rig() as rig:
        await refused(rig, *OTHERS[name])


@on_loop
async def test_bare_line_feed_is_refused_wherever_packets_begin() -> None:
    """Also where the end of the head never comes; and right line ends are never taken for bare ones."""
    request = GET.replace(b"1.1\r\n", b"1.1\n")
    async with proxy_rig() as rig:
        for place in range(1, len(request)):
            client = await rig.client()
            client.send(request[:place])
            await asyncio.sleep(0.001)
            client.send(request[place:])
            assert (await client.head()).startswith(b"HTTP/1.1 400 "), place
        assert rig.engine.received == []


@on_loop
async def test_head_with_bare_line_feeds_alone_is_refused_at_once() -> None:
    """Its end, as we know it, would never come."""
    async with proxy_rig() as rig:
        head, _ = await rig.ask(GET.replace(b"\r\n", b"\n"))
        assert head.startswith(b"HTTP/1.1 400 ")


@on_loop
async def test_body_beyond_the_limit_is_refused_in_the_shape_of_its_api() -> None:
    """At once where a length says so, without asking for the body."""
    async with proxy_rig(limits=Limits(body_bytes_max=1000)) as rig:
        head, body = await rig.ask(POST + b"Content-Length: 1001\r\nExpect: 100-continue\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 413 ")
        assert json.loads(body)["error"]["type"] == "invalid_request_error"
        head, body = await rig.ask(CHUNKED_POST.replace(b"/v1/chat/completions", b"/v1/messages") + chunks(b"x" * 1001))
        assert head.startswith(b"HTTP/1.1 413 ")
        assert json.loads(body) == {
            "type": "error",
            "error": {"type": "request_too_large", "message": "expected a body of at most 1000 bytes, got more"},
        }
        assert (await rig.ask(post(b"x" * 1000)))[1] == b"x" * 1000


@on_loop
async def test_bodies_of_all_clients_together_are_bounded() -> None:
    """Beyond the budget: come again. What the refused one held is free at once."""
    async with proxy_rig(limits=Limits(buffered_bytes_max=1000)) as rig:
        first = await rig.client()
        first.send(post(b"x" * 900)[:-1])
        await eventually(lambda: rig.state.buffered_bytes == 899)
        head, _ = await rig.ask(post(b"y" * 200))
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1\r\n" in head
        assert rig.state.buffered_bytes == 899
        assert (await first.ask(b"x"))[1] == b"x" * 900
        assert (await rig.ask(post(b"y" * 200)))[1] == b"y" * 200


@on_loop
async def test_chunks_that_are_all_framing_are_refused() -> None:
    """Extensions and trailers take no memory, but time."""
    async with proxy_rig(limits=Limits(chunking_bytes_max=1000)) as rig:
        for body in (b"1;" + b"a" * 5000, b"0\r\nX: " + b"a" * 5000):
            head, _ = await rig.ask(CHUNKED_POST + body)
            assert head.startswith(b"HTTP/1.1 400 ")


@on_loop
async def test_bad_body_is_an_error_of_the_client_who_may_go_on() -> None:
    """OpenAI's shape names the field; a bug of ours is a 500, not a hung client."""
    async with proxy_rig() as rig:
        client = await rig.client()
        head, body = await client.ask(post(b"bad body"))
        error = json.loads(body)["error"]
        assert (head[:12], error["param"], error["message"]) == (b"HTTP/1.1 400", "messages", "expected better")
        assert (await client.ask(post(b"bug")))[0].startswith(b"HTTP/1.1 500 ")
        assert (await client.ask(post(b"good")))[1] == b"good"
        assert rig.meter.answers == [("/v1/chat/completions", status) for status in (400, 500, 200)]


@on_loop
async def test_no_worker_is_what_the_dispatcher_says() -> None:
    """Its status, code and time to come back; placed at once or later."""
    async with proxy_rig() as rig:
        rig.dispatcher.engines = []
        for _ in range(2):
            head, body = await rig.ask(post(b"{}"))
            assert head.startswith(b"HTTP/1.1 503 ")
            assert b"retry-after: 2\r\n" in head
            assert json.loads(body)["error"]["code"] == "no_worker"
            rig.dispatcher.slow = asyncio.Event()
            rig.dispatcher.slow.set()


@on_loop
async def test_slow_head_is_given_up() -> None:
    """However often another byte comes."""
    async with proxy_rig() as rig:
        client = await rig.client()
        for byte in GET[:-1]:
            client.send(bytes([byte]))
            await asyncio.sleep(0.001)
        rig.pass_time(NO_LIMITS.client_header_s - 1)
        client.send(b"\r")
        rig.pass_time(2)
        assert (await client.head()).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("start", [CHUNKED_POST, post(b"x" * (1 << 20))[: -1 << 19]])
@on_loop
async def test_slow_body_is_given_up(start: bytes) -> None:
    """A trickle is no body."""
    async with proxy_rig() as rig:
        client = await rig.client()
        client.send(start)
        await eventually(lambda: len(start) < 1000 or rig.state.buffered_bytes == 1 << 19)
        await eventually(lambda: "BODY" in repr(rig.state.clients))
        rig.pass_time(NO_LIMITS.client_body_s - 1)
        client.send(b"1")
        rig.pass_time(2)
        assert (await client.head()).startswith(b"HTTP/1.1 408 ")


@on_loop
async def test_body_that_came_fast_earns_no_time_to_be_silent() -> None:
    """Each span of time has to bring its share: else a few clients would hold all the memory there is for bodies."""
    size, share = 8 << 20, int(NO_LIMITS.client_body_s * NO_LIMITS.body_rate_min)
    async with proxy_rig() as rig:
        client = await rig.client()
        request = post(b"x" * size)
        client.send(request[: -size // 2])
        await eventually(lambda: rig.state.buffered_bytes == size // 2)
        rig.pass_time(NO_LIMITS.client_body_s + 1)
        client.send(b"x" * share)
        await eventually(lambda: rig.state.buffered_bytes == size // 2 + share)
        rig.pass_time(NO_LIMITS.client_body_s + 1)
        assert rig.state.buffered_bytes == size // 2 + share
        rig.pass_time(NO_LIMITS.client_body_s + 1)
        assert (await client.head()).startswith(b"HTTP/1.1 408 ")
        assert rig.state.buffered_bytes == 0


@on_loop
async def test_idle_connection_is_closed() -> None:
    """Empty lines do not prolong it; a request does."""
    async with proxy_rig() as rig:
        client = await rig.client()
        await client.ask(post(b"{}"))
        rig.pass_time(NO_LIMITS.keep_alive_s - 1)
        assert (await client.ask(post(b"{}")))[1] == b"{}"
        rig.pass_time(NO_LIMITS.keep_alive_s - 1)
        client.send(b"\r\n\r\n\r")
        await asyncio.sleep(0.005)
        rig.pass_time(2)
        rig.pass_time(NO_LIMITS.client_header_s)
        assert b"200 OK" not in await client.rest()


@on_loop
async def test_refused_client_who_stays_is_cut_off() -> None:
    """What it still sends is thrown away, for a while."""
    async with proxy_rig() as rig:
        client = await rig.client()
        client.send(SMUGGLED["two lengths"])
        await client.rest()
        client.send(b"x" * 100_000)
        assert len(rig.state.clients) == 1
        rig.pass_time(NO_LIMITS.linger_s + 1)
        await eventually(lambda: not rig.state.clients)
