"""What is tried at another worker, for how long, what the client gets in the end, and who is to blame."""

from __future__ import annotations

import asyncio
import json

import pytest

from ghostcacher_router.http.exchanges.attempts import HELD_BYTES_MAX
from ghostcacher_router.http.protocol.limits import Limits
from ghostcacher_router.types import Outcome
from tests.support.mock_engine import CHUNKED, MockEngine, Peer, Received, chunks, content, echo, says
from tests.support.proxy_rig import Rig, eventually, on_loop, post, proxy_rig

PATH = "/v1/chat/completions"


def reset(peer: Peer, request: Received) -> None:
    peer.abort()


def status(number: int, *headers: bytes, body: bytes = b"busy") -> bytes:
    return content(body, *headers, status=number)


def engines(*scripts: bytes) -> list[MockEngine]:
    """Return engines w0, w1, ... that always say the same; empty: they echo."""
    return [MockEngine(f"w{number}", says(script) if script else echo) for number, script in enumerate(scripts)]


def blamed(rig: Rig) -> list[str]:
    return [place.worker for place in rig.placements if place.blamed is not None]


def surely_blamed(rig: Rig) -> list[str]:
    return [place.worker for place in rig.placements if place.blamed]


@on_loop
async def test_second_worker_is_asked_when_the_first_does_not_answer() -> None:
    """Whether it cannot be connected to, or closes before any byte; each is told, and blamed once another answers."""
    first, second = MockEngine("w0"), MockEngine("w1")
    async with proxy_rig(first, second) as rig:
        await first.refuse()
        assert (await rig.ask(post(b"one")))[1] == b"one"
        await first.start()
        first.script = reset
        assert (await rig.ask(post(b"two")))[1] == b"two"
        outcomes = [(place.worker, place.outcome) for place in rig.placements]
        assert outcomes == [("w0", Outcome.REFUSED), ("w1", Outcome.DONE), ("w0", Outcome.BROKE), ("w1", Outcome.DONE)]
        assert rig.meter.reasons == ["refused", "broke"]
        assert blamed(rig) == surely_blamed(rig) == ["w0", "w0"]


@pytest.mark.parametrize("retries", [0, 1, 2])
@on_loop
async def test_connections_that_cannot_be_made_are_tried_so_often(retries: int) -> None:
    """So many other workers, then 502, whatever more there are; one alone is blamed, for nothing else could be it."""
    group = engines(*[b""] * 5)
    async with proxy_rig(*group, limits=Limits(retries_max=retries)) as rig:
        for engine in group:
            await engine.refuse()
        head, body = await rig.ask(post(b"{}"))
        assert head.startswith(b"HTTP/1.1 502 ")
        assert json.loads(body)["error"]["type"] == "server_error"
        assert [place.worker for place in rig.placements] == ["w0", "w1", "w2"][: retries + 1]
        assert rig.meter.answers == [(PATH, 502)]
        assert (blamed(rig), surely_blamed(rig)) == (["w0"] if retries == 0 else [], [])


@on_loop
async def test_request_that_two_workers_close_unanswered_is_not_tried_at_a_third() -> None:
    """It may be what makes them close, or crash: the client is told so, and no worker is blamed for it."""
    async with proxy_rig(*(MockEngine(f"w{number}", reset) for number in range(5))) as rig:
        head, body = await rig.ask(post(b"{}"))
        error = json.loads(body)["error"]
        assert (head[:12], error["code"]) == (b"HTTP/1.1 502", "closed_unanswered")
        assert "2 workers closed the connection on this request without an answer, or hang (w0, w1)" in error["message"]
        assert b"retry-after" not in head.lower()
        assert [(place.worker, place.outcome) for place in rig.placements] == [
            ("w0", Outcome.BROKE),
            ("w1", Outcome.BROKE),
        ]
        assert (rig.meter.answers, blamed(rig)) == ([(PATH, 502)], [])


@on_loop
async def test_request_that_ends_engines_is_not_tried_at_a_third_over_kept_connections_either() -> None:
    """An engine that crashes refuses the second try on a new connection: it has seen the request all the same."""
    group = [MockEngine(f"w{number}") for number in range(4)]
    async with proxy_rig(*group) as rig:
        client = await rig.client()
        for engine in group:
            await client.ask(post(b"{}"))
            engine.script = says(b"not used")  # The next one is asked, and gets a kept connection, too.
            rig.dispatcher.engines = [*rig.dispatcher.engines[1:], engine]
        rig.placements.clear()

        def crash(engine: MockEngine) -> None:
            async def script(peer: Peer, request: Received) -> None:
                assert engine._server is not None
                engine._server.close()
                peer.abort()

            engine.script = script

        for engine in group:
            crash(engine)
        head, body = await client.ask(post(b"{}"))
        assert json.loads(body)["error"]["code"] == "closed_unanswered", head
        assert [(place.worker, place.outcome) for place in rig.placements] == [
            ("w0", Outcome.BROKE),
            ("w1", Outcome.BROKE),
        ]


@pytest.mark.parametrize("number", [503, 429])
@pytest.mark.parametrize("streamed", [False, True])
@on_loop
async def test_worker_that_takes_no_request_now_has_it_tried_elsewhere(number: int, streamed: bool) -> None:
    """The client sees the other worker's answer only; the first is blamed, and its connection is used again."""
    busy = status(number, b"Retry-After: 7")
    if streamed:
        busy = CHUNKED.replace(b"200 OK", b"%d Busy" % number) + chunks(b"busy")
    async with proxy_rig(*engines(busy, b"")) as rig:
        client = await rig.client()
        for _ in range(2):
            head, body = await client.ask(post(b"mine"))
            assert (head[:12], body) == (b"HTTP/1.1 200", b"mine")
            assert b"x-gc-worker: w1" in head
        outcomes = [(place.worker, place.outcome, place.status) for place in rig.placements]
        assert outcomes == [("w0", Outcome.DONE, number), ("w1", Outcome.DONE, 200)] * 2
        assert (rig.meter.reasons, blamed(rig)) == ([str(number)] * 2, ["w0", "w0"])
        assert rig.meter.answers == [(PATH, 200)] * 2
        assert len(rig.engine.peers) == 1


@pytest.mark.parametrize("retries", [0, 1, 2, 4])
@on_loop
async def test_last_answer_goes_through_when_every_worker_says_the_same(retries: int) -> None:
    """As it is, with its Retry-After, and counted once; a fleet that is full blames nobody."""
    answers = [status(503, b"Retry-After: %d" % number, body=b"busy %d" % number) for number in range(3)]
    async with proxy_rig(*engines(*answers), limits=Limits(retries_max=retries)) as rig:
        client = await rig.client()
        for _ in range(2):
            head, body = await client.ask(post(b"{}"))
            last = min(retries, 2)
            assert head.startswith(b"HTTP/1.1 503 X\r\nRetry-After: %d\r\n" % last)
            assert (body, b"x-gc-worker: w%d" % last in head) == (b"busy %d" % last, True)
        assert rig.meter.answers == [(PATH, 503)] * 2
        assert blamed(rig) == (["w0", "w0"] if retries == 0 else [])


@on_loop
async def test_last_answer_is_better_than_none() -> None:
    """A worker that is full, and then one that is gone: the client is told when to come again."""
    group = engines(status(429, b"Retry-After: 7"), b"")
    async with proxy_rig(*group) as rig:
        await group[1].refuse()
        head, body = await rig.ask(post(b"{}"))
        assert (head[:12], b"Retry-After: 7" in head, body) == (b"HTTP/1.1 429", True, b"busy")
        assert rig.meter.reasons == ["429", "refused"]


@on_loop
async def test_large_answer_that_turns_away_is_passed_on() -> None:
    """It is not held without bound: what has come is sent, and the rest follows."""
    size = HELD_BYTES_MAX + 1
    for answer in (status(503, body=b"x" * size), CHUNKED.replace(b"200", b"503") + chunks(*[b"y" * 1000] * 100)):
        async with proxy_rig(*engines(answer, b"")) as rig:
            head, body = await rig.ask(post(b"{}"))
            assert (head[:12], len(body) >= size) == (b"HTTP/1.1 503", True)
            assert [(place.worker, place.outcome) for place in rig.placements] == [("w0", Outcome.DONE)]


@on_loop
async def test_answer_that_turns_away_and_breaks_off_is_tried_elsewhere() -> None:
    """The client has got nothing of it. When nobody else is there, it is an error, and no half an answer."""

    async def half(peer: Peer, request: Received) -> None:
        peer.send(status(503)[:-1])
        await peer.writer.drain()
        peer.close()

    async with proxy_rig(MockEngine("w0", half), MockEngine("w1")) as rig:
        assert (await rig.ask(post(b"mine")))[1] == b"mine"
        assert [(place.worker, place.outcome) for place in rig.placements] == [
            ("w0", Outcome.FAILED),
            ("w1", Outcome.DONE),
        ]
        rig.engines[1].script = half
        assert (await rig.ask(post(b"mine")))[0].startswith(b"HTTP/1.1 502 ")


@on_loop
async def test_large_body_is_kept_for_the_second_worker() -> None:
    """It is held until no other worker can want it."""
    async with proxy_rig(*engines(status(503), b"")) as rig:
        body = b"b" * (4 << 20)
        assert (await rig.ask(post(body)))[1] == body
        await eventually(lambda: rig.state.buffered_bytes == 0)


@on_loop
async def test_client_that_leaves_while_another_worker_is_tried_ends_it() -> None:
    """Nothing is left of what was held."""

    async def wait(peer: Peer, request: Received) -> None:
        await peer.left()

    async with proxy_rig(MockEngine("w0", says(status(503))), MockEngine("w1", wait)) as rig:
        client = await rig.client()
        client.send(post(b"{}"))
        await eventually(lambda: len(rig.engines[1].received) == 1)
        client.abort()
        await eventually(lambda: rig.placements[-1].outcome is Outcome.CANCELLED)
        assert blamed(rig) == []


@pytest.mark.parametrize(("number", "guilty"), [(500, True), (502, True), (504, True), (501, False), (404, False)])
@on_loop
async def test_other_error_of_an_engine_goes_through_as_it_is(number: int, guilty: bool) -> None:
    """It is an answer: nobody else is asked. One of the engine's own is its failure."""
    async with proxy_rig(*engines(status(number, b"X-Why: so"), b"")) as rig:
        head, body = await rig.ask(post(b"{}"))
        assert (head.startswith(b"HTTP/1.1 %d X\r\nX-Why: so\r\n" % number), body) == (True, b"busy")
        assert [(place.outcome, place.status) for place in rig.placements] == [(Outcome.DONE, number)]
        assert (blamed(rig), surely_blamed(rig)) == (["w0"] if guilty else [], [])


@on_loop
async def test_error_of_a_worker_in_doubt_is_tried_at_one_other() -> None:
    """The client sees the other's answer only; that one has it is what proves the first at fault."""
    async with proxy_rig(*engines(status(500), b"")) as rig:
        rig.dispatcher.doubtful.add("w0")
        head, body = await rig.ask(post(b"mine"))
        assert (head[:12], body, rig.meter.reasons) == (b"HTTP/1.1 200", b"mine", ["error"])
        assert surely_blamed(rig) == ["w0"]
        assert rig.meter.answers == [(PATH, 200)]


@on_loop
async def test_request_that_fails_at_two_workers_is_tried_at_no_third_and_blames_nobody() -> None:
    """However doubtful they are: the client gets the second one's error."""
    group = engines(status(500, body=b"first"), status(502, body=b"second"), b"")
    async with proxy_rig(*group) as rig:
        rig.dispatcher.doubtful |= {"w0", "w1", "w2"}
        head, body = await rig.ask(post(b"{}"))
        assert (head[:12], body, blamed(rig)) == (b"HTTP/1.1 502", b"second", [])
        assert len(rig.placements) == 2
        rig.engines[1].script = reset
        head, body = await rig.ask(post(b"{}"))
        assert (head[:12], body, len(rig.placements), blamed(rig)) == (b"HTTP/1.1 500", b"first", 4, [])
        rig.engines[0].script, rig.engines[1].script = reset, says(status(502))
        assert (await rig.ask(post(b"{}")))[0].startswith(b"HTTP/1.1 502")
        assert len(rig.placements) == 6


@on_loop
async def test_error_of_a_worker_in_doubt_goes_through_where_it_may_have_changed_something() -> None:
    """Loading an adapter is sent once; and nobody says that another worker would have answered."""
    async with proxy_rig(*engines(status(500), b"")) as rig:
        rig.dispatcher.doubtful.add("w0")
        head, _ = await rig.ask(post(b"{}").replace(PATH.encode(), b"/v1/load_lora_adapter"))
        assert (head[:12], len(rig.placements)) == (b"HTTP/1.1 500", 1)
        assert (blamed(rig), surely_blamed(rig)) == (["w0"], [])


@pytest.mark.parametrize("comes", [b"", b"x"])
@on_loop
async def test_answer_that_turns_away_and_never_ends_is_not_waited_for(comes: bytes) -> None:
    """Another worker is asked soon, whether nothing comes of the rest or a little again and again."""

    async def begin(peer: Peer, request: Received) -> None:
        peer.send(b"HTTP/1.1 503 X\r\nContent-Length: 60000\r\n\r\n")
        while not peer.writer.transport.is_closing():
            peer.send(comes)
            await asyncio.sleep(0.001)

    async with proxy_rig(MockEngine("w0", begin), MockEngine("w1")) as rig:
        client = await rig.client()
        client.send(post(b"mine"))
        await eventually(lambda: rig.state.pools.open_count and "status=503" in repr(rig.state.clients))
        passed = list(rig.state.pools[rig.engine.endpoint].open)
        rig.pass_time(Limits().turned_away_s / 2)
        assert len(rig.placements) == 1
        before = passed[0].passed_bytes
        await eventually(lambda: not comes or passed[0].passed_bytes > before)
        rig.pass_time(Limits().turned_away_s)
        assert (await client.answer())[1] == b"mine"
        assert (rig.meter.reasons, surely_blamed(rig)) == (["503"], ["w0"])


@on_loop
async def test_error_after_another_error_clears_nobody() -> None:
    """That the second one fails, too, does not show that the first was at fault."""
    async with proxy_rig(*engines(status(503), status(500), b"")) as rig:
        assert (await rig.ask(post(b"{}")))[0].startswith(b"HTTP/1.1 500 ")
        assert blamed(rig) == ["w1"]


@on_loop
async def test_answer_that_is_none_is_its_workers_failure() -> None:
    """Whether it cannot be passed on, or breaks off."""
    for answer in (b"hello\r\n\r\n", content(b"hello")[:-1]):

        async def script(peer: Peer, request: Received, answer: bytes = answer) -> None:
            peer.send(answer)
            await peer.writer.drain()
            peer.close()

        async with proxy_rig(MockEngine("w0", script), MockEngine("w1")) as rig:
            client = await rig.client()
            client.send(post(b"{}"))
            await eventually(lambda: rig.placements and rig.placements[0].outcome is not None)
            assert (rig.placements[0].outcome, blamed(rig)) == (Outcome.FAILED, ["w0"])
