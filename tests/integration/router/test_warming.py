"""A prefix is warmed by a request for one token, over real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from ghostcacher_connector.core.sections import decode_hint
from ghostcacher_router.http.exchanges.warming import AT_ONCE_MAX, WAITING_MAX, Warmer
from ghostcacher_router.http.protocol.refusal import Refusal
from ghostcacher_router.prompt import parse_body
from ghostcacher_router.types import NoWorker, Outcome, RequestShape
from tests.support.mock_engine import CHUNKED, MockEngine, Peer, content, says
from tests.support.prompts import CHAT, COMPLETIONS, MESSAGES, say
from tests.support.proxy_rig import Rig, eventually, on_loop, proxy_rig

CONVERSATION: dict[str, Any] = {"model": "m", "messages": [say("system", "be brief"), say("user", "hello")]}
OPENAI = b'{"usage": {"prompt_tokens": 40, "prompt_tokens_details": {"cached_tokens": 32}}}'
ANTHROPIC = b'{"usage": {"input_tokens": 8, "cache_read_input_tokens": 32, "cache_creation_input_tokens": null}}'


def parse(path: str, body: Any, headers: Mapping[bytes, bytes]) -> RequestShape:
    return parse_body(path, body, headers, 7)


def warmer(rig: Rig) -> Warmer:
    """Return one for the rig's proxy, which reads bodies as a router does."""
    rig.proxy.state.parse = parse
    return Warmer(rig.proxy.state)


@pytest.mark.parametrize(
    ("path", "answer", "tokens"),
    [
        (CHAT, OPENAI, (40, 32)),
        (COMPLETIONS, OPENAI, (40, 32)),
        (MESSAGES, ANTHROPIC, (40, 32)),
        (CHAT, b"{}", (None, None)),
        (CHAT, b"not json", (None, None)),
        (CHAT, b'{"usage": {"prompt_tokens": "x", "prompt_tokens_details": null}}', (None, None)),
    ],
)
@on_loop
async def test_worker_computes_one_token_of_the_prompt(
    path: str, answer: bytes, tokens: tuple[int | None, int | None]
) -> None:
    """Whatever the body asks for else; the worker is told of the sections, and the placement of each step."""
    async with proxy_rig(MockEngine("w0", says(content(answer)))) as rig:
        body = CONVERSATION | {"prompt": "x", "max_tokens": 500, "stream": True, "n": 3, "stream_options": {}}
        warmed = await warmer(rig).warm(path, body | {"max_completion_tokens": 9, "temperature": 0.5}, frozenset())
        assert (warmed.worker, warmed.prompt_tokens, warmed.cached_tokens) == ("w0", *tokens)
        (request,) = rig.engine.received
        sent = CONVERSATION | {"prompt": "x", "temperature": 0.5, "max_tokens": 1, "stream": False}
        assert (request.head.split()[1].decode(), json.loads(request.body)) == (path, sent)
        assert request.headers[b"content-type"] == b"application/json"
        assert bool(decode_hint(request.headers[b"x-request-id"].decode()).ends) is (path != COMPLETIONS)
        (placement,) = rig.placements
        assert (placement.told, placement.outcome, placement.status) == (["sent", "first_byte"], Outcome.DONE, 200)


@on_loop
async def test_prefix_is_warmed_where_prompts_are_computed() -> None:
    """A worker that only answers has no use for it."""
    async with proxy_rig(MockEngine("d"), MockEngine("p", says(content(OPENAI)))) as rig:
        rig.dispatcher.computing = {"p"}
        assert (await warmer(rig).warm(CHAT, CONVERSATION, frozenset())).worker == "p"


@on_loop
async def test_worker_may_be_chosen_by_who_asks() -> None:
    """By what it is not."""
    async with proxy_rig(MockEngine("w0"), MockEngine("w1")) as rig:
        warmed = await warmer(rig).warm(CHAT, CONVERSATION, frozenset({"w0"}))
        assert warmed.worker == "w1"


@on_loop
async def test_refusal_of_a_worker_is_told() -> None:
    """It counts as an answer of that worker, and as no measure of its speed."""
    refusal = content(b'{"error": "no such model"}').replace(b"200 OK", b"404 Not Found")
    async with proxy_rig(MockEngine("w0", says(refusal))) as rig:
        with pytest.raises(Refusal) as caught:
            await warmer(rig).warm(CHAT, CONVERSATION, frozenset())
        assert caught.value.status == 502
        assert "w0 answered 404" in caught.value.message
        assert "no such model" in caught.value.message
        assert (rig.placements[0].told, rig.placements[0].status) == (["sent"], 404)


@on_loop
async def test_worker_that_breaks_off_is_told() -> None:
    """And its placement has ended."""
    async with proxy_rig(MockEngine("w0", says(CHUNKED + b"5\r\nhel"))) as rig:
        asked = asyncio.create_task(warmer(rig).warm(CHAT, CONVERSATION, frozenset()))
        await eventually(lambda: rig.engine.received)
        for peer in rig.engine.peers:
            peer.close()
        with pytest.raises(NoWorker) as caught:
            await asked
        assert (caught.value.status, rig.placements[0].outcome) == (502, Outcome.BROKE)


@on_loop
async def test_few_are_warmed_at_a_time_and_those_beyond_a_bound_are_refused() -> None:
    """Traffic that is there already goes on; nobody waits without end."""
    held: list[Peer] = []
    async with proxy_rig(MockEngine("w0", lambda peer, _: held.append(peer))) as rig:
        warming = warmer(rig)
        asked = [asyncio.create_task(warming.warm(CHAT, CONVERSATION, frozenset())) for _ in range(WAITING_MAX)]
        await eventually(lambda: len(rig.engine.received) == AT_ONCE_MAX)
        with pytest.raises(Refusal) as caught:
            await warming.warm(CHAT, CONVERSATION, frozenset())
        assert caught.value.status == 429
        assert len(rig.placements) == AT_ONCE_MAX
        rig.engine.script = says(content(OPENAI))
        for peer in held:
            peer.send(content(OPENAI))
        assert {warmed.worker for warmed in await asyncio.gather(*asked)} == {"w0"}


@on_loop
async def test_who_gives_up_ends_the_request_at_the_worker() -> None:
    """The engine stops computing, and the next one has its turn."""
    async with proxy_rig(MockEngine("w0", lambda *_: None)) as rig:
        warming = warmer(rig)
        asked = asyncio.create_task(warming.warm(CHAT, CONVERSATION, frozenset()))
        await eventually(lambda: rig.engine.received)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert rig.placements[0].outcome is Outcome.CANCELLED
        assert repr(warming) == "Warmer(waiting=0)"
