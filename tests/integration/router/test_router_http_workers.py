"""The HTTP proxy: workers that break off, answer nonsense, refuse or close, and who is asked instead."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest

from ghostcacher_router.http.protocol.limits import Limits
from ghostcacher_router.types import Outcome
from tests.support.mock_engine import CHUNKED, MockEngine, Peer, Received, chunks, content, echo, says
from tests.support.proxy_rig import eventually, on_loop, post, proxy_rig


def reset(peer: Peer, request: Received) -> None:
    peer.abort()


@pytest.mark.parametrize(
    ("chosen", "named", "sent"),
    [
        (1, b"", b"1"),
        (0, b"0", b"0"),
        (1, b"nonsense", b"1"),
        (None, b"7", b"7"),
        (None, b"nonsense", b"nonsense"),
        (None, b"", None),
    ],
)
@on_loop
async def test_worker_learns_which_of_its_ranks_is_meant(chosen: int | None, named: bytes, sent: bytes | None) -> None:
    """What the router has chosen goes out, once; where it knows of no ranks, what the client wrote passes."""
    async with proxy_rig(MockEngine("w0")) as rig:
        rig.dispatcher.rank = chosen
        await rig.ask(post(b"{}", *([b"x-Data-Parallel-Rank: " + named] if named else [])))
        (request,) = rig.engines[0].received
        lines = [line for line in request.head.split(b"\r\n") if line.lower().startswith(b"x-data-parallel-rank:")]
        assert lines == ([] if sent is None else [b"X-data-parallel-rank: " + sent])


BROKEN = {
    "chunked": CHUNKED + b"5\r\nhello\r\n",
    "chunked within a chunk": CHUNKED + b"5\r\nhel",
    "length": content(b"hello")[:-1],
    "malformed chunk": CHUNKED + b"5\r\nhello\r\nzz\r\n",
}


@pytest.mark.parametrize("name", BROKEN)
@on_loop
async def test_answer_that_breaks_off_gets_no_end(name: str) -> None:
    """The client sees a closed connection, never an end that the worker did not send."""

    async def script(peer: Peer, request: Received) -> None:
        await peer.send_split(BROKEN[name], len(BROKEN[name]) - 4)
        await peer.writer.drain()
        peer.close()

    async with proxy_rig(MockEngine("w0", script)) as rig:
        client = await rig.client()
        client.send(post(b"{}"))
        _, _, body = (await client.rest()).partition(b"\r\n\r\n")
        assert not body.endswith((b"0\r\n\r\n", b"hello"))
        assert (rig.placements[0].outcome, rig.meter.reasons) == (Outcome.FAILED, [])


NO_ANSWERS = {
    "no HTTP": b"hello\r\n\r\n",
    "bare LFs": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nhi\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nhi!",
    "length and coding": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nhi",
    "other coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhi",
    "other coding before": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "folded": b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\nhi",
    "NUL in the reason": b"HTTP/1.1 200 O\0K\r\nContent-Length: 2\r\n\r\nhi",
    "switch": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    "endless head": b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000,
    "long head": b"HTTP/1.1 200 OK\r\nX: " + b"a" * 65_600 + b"\r\nContent-Length: 2\r\n\r\nhi",
    "many interim answers": b"HTTP/1.1 102 Processing\r\n\r\n" * 300
    + b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
    "long interim answers": (b"HTTP/1.1 103 Early\r\nX: " + b"a" * 1000 + b"\r\n\r\n") * 100,
}


@pytest.mark.parametrize("name", NO_ANSWERS)
@on_loop
async def test_answer_that_cannot_be_passed_on_is_an_error(name: str) -> None:
    """Of the worker's, so it is not asked of another one."""
    async with proxy_rig(MockEngine("w0", says(NO_ANSWERS[name])), MockEngine("w1")) as rig:
        head, body = await rig.ask(post(b"{}"))
        assert head.startswith(b"HTTP/1.1 502 ")
        assert json.loads(body)["error"]["code"] == "bad_gateway"
        assert [place.outcome for place in rig.placements] == [Outcome.FAILED]


@on_loop
async def test_flood_of_interim_answers_is_an_error_and_ends_the_connection() -> None:
    """However fast they come, the worker is not read from for ever."""

    async def flood(peer: Peer, _: Received) -> None:
        while not peer.writer.transport.is_closing():
            peer.send(b"HTTP/1.1 102 Processing\r\nX: y\r\n\r\n" * 2000)
            await peer.writer.drain()

    async with proxy_rig(MockEngine("w0", flood), MockEngine("w1")) as rig:
        head, _ = await rig.ask(post(b"{}"))
        assert head.startswith(b"HTTP/1.1 502 ")
        assert [(place.worker, place.outcome) for place in rig.placements] == [("w0", Outcome.FAILED)]
        await eventually(lambda: rig.state.pools.open_count == 0)


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
@on_loop
async def test_answer_that_is_malformed_from_its_first_piece_is_an_error(version: bytes) -> None:
    """Nothing of it was passed on, so the client can still be told."""
    async with proxy_rig(MockEngine("w0", says(CHUNKED + b"zz\r\nhello\r\n"))) as rig:
        head, body = await rig.ask(post(b"{}").replace(b"HTTP/1.1", b"HTTP/" + version))
        assert head.startswith(b"HTTP/1.1 502 ")
        assert json.loads(body)["error"]["code"] == "bad_gateway"
        assert [(place.outcome, place.status) for place in rig.placements] == [(Outcome.FAILED, None)]


@on_loop
async def test_empty_chunked_answer_reaches_a_client_of_the_old_version() -> None:
    """Its head alone, whether or not the end comes with it."""
    for split in (0, 1, len(CHUNKED), len(CHUNKED) + 2):

        async def script(peer: Peer, request: Received, at: int = split) -> None:
            await peer.send_split(CHUNKED + b"0\r\n\r\n", at)

        async with proxy_rig(MockEngine("w0", script)) as rig:
            head, body = await rig.ask(post(b"{}").replace(b"HTTP/1.1", b"HTTP/1.0"))
            assert (head[:12], body) == (b"HTTP/1.1 200", b""), split


SURPLUS = {
    "length": content(b"hello") + b"HTTP/1.1 200 OK\r\n\r\n",
    "one byte": content(b"hello") + b"\n",
    "chunked": CHUNKED + chunks(b"hello") + content(b"other"),
    "chunked, another head": CHUNKED + chunks(b"hello") + b"HTTP/1.1 204 No Content\r\n\r\n",
    "chunked, switch": CHUNKED + chunks(b"hello") + NO_ANSWERS["switch"],
    "chunked, line ends": CHUNKED + chunks(b"hello") + b"\r\n",
    "chunked, line feed": CHUNKED + chunks(b"hello") + b"\n",
    "empty": content(b"") + b"x",
    "no content": b"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
}


@pytest.mark.parametrize("name", SURPLUS)
@pytest.mark.parametrize("together", [True, False])
@on_loop
async def test_bytes_after_an_answer_reach_nobody(name: str, together: bool) -> None:
    """In the same packet both connections are closed, or the answer is an error; in a later one the worker's is."""
    answer = SURPLUS[name]
    end = answer.index(b"hello") + 5 if b"hello" in answer else answer.index(b"\r\n\r\n") + 4
    end += len(b"\r\n0\r\n\r\n") if name.startswith("chunked") else 0

    async def script(peer: Peer, request: Received) -> None:
        if together:
            peer.send(answer)
        else:
            await peer.send_split(answer, end)

    async with proxy_rig(MockEngine("w0", script)) as rig:
        client = await rig.client()
        client.send(post(b"{}"))
        if together and name.startswith("chunked"):
            assert (await client.head()).startswith(b"HTTP/1.1 502 ")
        elif together:
            _, _, body = (await client.rest()).partition(b"\r\n\r\n")
            assert answer[:end].partition(b"\r\n\r\n")[2].startswith(body)
        else:
            await client.answer()
        await eventually(lambda: rig.state.pools.open_count == 0)
        rig.engine.script = echo
        assert (await rig.ask(post(b"mine")))[1] == b"mine"


@on_loop
async def test_short_pieces_after_an_answer_reach_nobody() -> None:
    """The last bytes of an answer, and a line end too many, in one small packet."""

    async def script(peer: Peer, request: Received) -> None:
        await peer.send_split(CHUNKED + chunks(b"hello") + b"\r\n", len(CHUNKED + chunks(b"hello")) - 1)

    async with proxy_rig(MockEngine("w0", script)) as rig:
        client = await rig.client()
        client.send(post(b"{}"))
        _, _, body = (await client.rest()).partition(b"\r\n\r\n")
        assert body == chunks(b"hello")


@on_loop
async def test_early_answer_is_passed_on_and_its_connection_not_used_again() -> None:
    """The worker never read the body: what is left of it must not become a request."""

    async def early(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nno!")
        await asyncio.sleep(60)

    async with proxy_rig() as rig:
        rig.engine.before = early
        head, body = await rig.ask(post(b"x" * (32 << 20)))
        assert (head[:12], body) == (b"HTTP/1.1 413", b"no!")
        await eventually(lambda: rig.state.pools.open_count == 0)
        assert rig.state.buffered_bytes == 0


@on_loop
async def test_only_worker_that_refuses_is_a_bad_gateway() -> None:
    """There is nobody else to ask."""
    async with proxy_rig(MockEngine("w0", reset)) as rig:
        client = await rig.client()
        assert (await client.ask(post(b"{}")))[0].startswith(b"HTTP/1.1 502 ")
        rig.engine.script = echo
        assert (await client.ask(post(b"{}")))[1] == b"{}"


@pytest.mark.parametrize("part", [b"H", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"])
@on_loop
async def test_no_second_worker_is_asked_once_an_answer_has_begun(part: bytes) -> None:
    """The first one computed it: it may have had effects."""

    async def script(peer: Peer, request: Received) -> None:
        peer.send(part)
        await peer.writer.drain()
        peer.close()

    async with proxy_rig(MockEngine("w0", script), MockEngine("w1")) as rig:
        assert (await rig.ask(post(b"{}")))[0].startswith(b"HTTP/1.1 502 ")
        assert [(place.worker, place.outcome) for place in rig.placements] == [("w0", Outcome.FAILED)]


@pytest.mark.parametrize(("status", "told"), [(200, ["sent", "first_byte"]), (400, ["sent"]), (500, ["sent"])])
@on_loop
async def test_error_is_not_the_first_byte_of_a_computed_answer(status: int, told: list[str]) -> None:
    """Nothing was computed for it, however quickly it came: it must not draw more requests to its worker."""
    answer = b"HTTP/1.1 %d Some\r\nContent-Length: 4\r\n\r\nbody" % status
    async with proxy_rig(MockEngine("w0", says(answer))) as rig:
        await rig.ask(post(b"{}"))
        assert rig.placements[0].told == told


@on_loop
async def test_kept_connection_that_turns_out_closed_is_no_failure_of_the_worker() -> None:
    """The same worker is asked again, on a new connection; should that fail too, it has refused."""

    def close_second(peer: Peer, request: Received) -> None:
        if len(rig.engine.received) == 2:
            peer.abort()
        else:
            echo(peer, request)

    async with proxy_rig(MockEngine("w0", close_second), MockEngine("w1")) as rig:
        client = await rig.client()
        for body in (b"one", b"two"):
            assert (await client.ask(post(body)))[1] == body
        assert [(place.worker, place.outcome) for place in rig.placements] == [("w0", Outcome.DONE)] * 2
        rig.engine.script = reset
        assert (await client.ask(post(b"three")))[1] == b"three"
        assert [place.outcome for place in rig.placements[2:]] == [Outcome.BROKE, Outcome.DONE]
        assert rig.meter.reasons == ["broke"]


@on_loop
async def test_kept_connections_are_bounded_in_age_and_number() -> None:
    """Younger than what an engine closes itself."""
    async with proxy_rig(limits=Limits(upstream_idle_max=2)) as rig:
        clients = [await rig.client() for _ in range(5)]
        gate = asyncio.Event()

        async def wait(peer: Peer, request: Received) -> None:
            await gate.wait()
            echo(peer, request)

        rig.engine.script = wait
        for client in clients:
            client.send(post(b"{}"))
        await eventually(lambda: len(rig.engine.received) == 5)
        gate.set()
        for client in clients:
            await client.answer()
        await eventually(lambda: rig.state.pools.open_count == 2)
        rig.pass_time(Limits().upstream_idle_s + 1)
        await eventually(lambda: rig.state.pools.open_count == 0)


@on_loop
async def test_connection_in_use_when_its_worker_goes_down_is_not_kept() -> None:
    """What listens there later is another process, which the connection does not lead to; its answer still comes."""
    gate = asyncio.Event()

    async def wait(peer: Peer, request: Received) -> None:
        await gate.wait()
        echo(peer, request)

    async with proxy_rig(MockEngine("w0", wait)) as rig:
        client = await rig.client()
        client.send(post(b"one"))
        await eventually(lambda: rig.engine.received)
        rig.proxy.worker_down(rig.engine.endpoint)
        gate.set()
        assert (await client.answer())[1] == b"one"
        await eventually(lambda: rig.state.pools.open_count == 0)
        for body in (b"two", b"three"):
            assert (await client.ask(post(body)))[1] == body
        assert len(rig.engine.peers) == 2


@on_loop
async def test_worker_that_closes_a_kept_connection_is_told_of() -> None:
    """It is what an engine does first that is about to end; what the router closes itself tells nothing."""
    group = [MockEngine("w0"), MockEngine("w1")]
    async with proxy_rig(*group, limits=Limits(upstream_idle_max=1)) as rig:
        told: list[int] = []
        rig.proxy.when_idle_closed(lambda endpoint: told.append(endpoint.port))
        clients = [await rig.client() for _ in range(2)]
        for client in clients:
            client.send(post(b"{}"))
        for client in clients:
            await client.answer()
        rig.pass_time(Limits().upstream_idle_s + 1)
        await eventually(lambda: rig.state.pools.open_count == 0)
        await rig.ask(post(b"{}"))
        assert told == []
        group[0].peers[-1].close()
        await eventually(lambda: told == [group[0].port])


@on_loop
async def test_connection_to_a_worker_is_watched_by_the_kernel() -> None:
    """A machine that vanishes sends no FIN: unanswered probes, and unacknowledged bytes, end the connection."""
    async with proxy_rig(limits=Limits(worker_gone_s=7)) as rig:
        client = await rig.client()
        await client.ask(post(b"{}"))
        pool = rig.state.pools[rig.placements[0].endpoint]
        (connection,) = pool.open
        watched = connection.transport.get_extra_info("socket")
        assert watched.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        idle_s, interval_s, count = (
            watched.getsockopt(socket.IPPROTO_TCP, option)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        )
        assert idle_s + interval_s * count <= 7
        assert watched.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7000
