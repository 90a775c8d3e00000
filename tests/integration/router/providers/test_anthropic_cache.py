"""Anthropic's own SDK through the router, against a server that speaks its API strictly and has its cache."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.providers.anthropic_api import MARK, AnthropicApi
from tests.support.providers.routed import routed
from tests.support.providers.server import Asked, Authority, Peer, ProviderServer
from tests.support.proxy_rig import on_loop

anthropic = pytest.importorskip("anthropic")

KEY = "sk-ant-test"
MODEL = "claude-sonnet-5"
LONG = "Answer in one word. " * 400
TOOL = {"name": "look_up", "description": "Look it up. " * 400, "input_schema": {"type": "object", "properties": {}}}


def asked(question: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return {"model": MODEL, "max_tokens": 9, "system": LONG, "tools": [TOOL], "messages": messages}


@on_loop
async def test_second_request_reads_what_the_first_one_wrote(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    """Streamed and not; without the router's marks nothing would be cached."""
    async with ProviderServer(authority, AnthropicApi(key=KEY)) as server:
        async with routed(authority, ("anthropic", server), provider_cache=False) as plain:
            client = anthropic.AsyncAnthropic(base_url=plain.url, api_key=KEY, max_retries=0)
            for _ in range(2):
                usage = (await client.messages.create(**asked("one?"))).usage
                assert (usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (0, 0)
            assert "goes as it came" not in caplog.text
        async with routed(authority, ("anthropic", server)) as router:
            client = anthropic.AsyncAnthropic(base_url=router.url, api_key=KEY, max_retries=0)
            first = await client.messages.create(**asked("one?"))
            assert first.content[0].text == "Hello there"
            assert first.usage.cache_creation.ephemeral_1h_input_tokens > 2000
            assert first.usage.cache_read_input_tokens == 0
            async with client.messages.stream(**asked("two?")) as stream:
                text = "".join([piece async for piece in stream.text_stream])
                second = await stream.get_final_message()
            assert text == "Hello"
            assert second.usage.cache_read_input_tokens == first.usage.cache_creation_input_tokens
            assert second.usage.cache_creation_input_tokens == 0


@on_loop
async def test_conversation_is_read_from_the_cache_as_it_grows(authority: Authority) -> None:
    """Each turn reads what the turn before it has written, and computes its own part alone."""
    async with (
        ProviderServer(authority, AnthropicApi(key=KEY)) as server,
        routed(authority, ("anthropic", server)) as router,
    ):
        client = anthropic.AsyncAnthropic(base_url=router.url, api_key=KEY, max_retries=0)
        body = asked("turn 0 " + LONG)
        reads = []
        for number in range(1, 4):
            answer = await client.messages.create(**body)
            reads.append(answer.usage.cache_read_input_tokens)
            said = {"role": "assistant", "content": [{"type": "text", "text": answer.content[0].text}]}
            body["messages"] += [said, {"role": "user", "content": f"turn {number} " + LONG}]
        assert reads[0] == 0
        assert reads[1] > 3000
        assert reads[2] > reads[1] + 1500


@on_loop
async def test_error_of_the_provider_is_the_one_that_the_sdk_raises(authority: Authority) -> None:
    async with (
        ProviderServer(authority, AnthropicApi(key=KEY)) as server,
        routed(authority, ("anthropic", server)) as router,
    ):
        client = anthropic.AsyncAnthropic(base_url=router.url, api_key="wrong", max_retries=0)
        with pytest.raises(anthropic.AuthenticationError, match="invalid x-api-key"):
            await client.messages.create(**asked("one?"))
        client = anthropic.AsyncAnthropic(base_url=router.url, api_key=KEY, max_retries=0)
        with pytest.raises(anthropic.BadRequestError, match="Extra inputs are not permitted"):
            await client.messages.create(**asked("one?"), extra_body={"unknown": 1})


@on_loop
async def test_sdk_comes_back_when_the_provider_says_so(authority: Authority) -> None:
    """The router does not repeat what the client's library repeats."""
    api = AnthropicApi(key=KEY)

    async def busy_once(peer: Peer, asked: Asked) -> None:
        if len(server.asked) == 1:
            await peer.answer(529, b'{"type":"error","error":{"type":"overloaded_error"}}', "retry-after-ms: 1")
        else:
            await api(peer, asked)

    async with ProviderServer(authority, busy_once) as server, routed(authority, ("anthropic", server)) as router:
        client = anthropic.AsyncAnthropic(base_url=router.url, api_key=KEY, max_retries=1)
        assert (await client.messages.create(**asked("one?"))).content[0].text == "Hello there"
        assert len(server.asked) == 2
        client = anthropic.AsyncAnthropic(base_url=router.url, api_key=KEY, max_retries=0)
        server.asked.clear()
        with pytest.raises(anthropic.APIStatusError) as caught:
            await client.messages.create(**asked("one?"))
        assert caught.value.status_code == 529
        assert len(server.asked) == 1


@on_loop
async def test_documents_that_the_header_names_are_cached(authority: Authority) -> None:
    """The header is the router's, and does not leave the fleet."""
    async with (
        ProviderServer(authority, AnthropicApi(key=KEY)) as server,
        routed(authority, ("anthropic", server)) as router,
    ):
        client = anthropic.AsyncAnthropic(base_url=router.url, api_key=KEY, max_retries=0)
        turns = [{"role": "user", "content": LONG}, {"role": "user", "content": "q"}]
        named = {"x-gc-sections": "doc=0"}
        await client.messages.create(model=MODEL, max_tokens=9, messages=turns, extra_headers=named)
        (one,) = server.asked
        assert "x-gc-sections" not in one.headers
        assert MARK in json.loads(one.body)["messages"][0]["content"][0]


@on_loop
async def test_long_body_is_marked_and_everything_else_goes_as_it_came(authority: Authority) -> None:
    """Beside the loop; counting tokens, batches, packed bodies and what is no JSON in UTF-8 are left alone."""
    async with (
        ProviderServer(authority, AnthropicApi(key=KEY)) as server,
        routed(authority, ("anthropic", server)) as router,
    ):
        long = json.dumps({"model": MODEL, "max_tokens": 9, "system": "x" * 2_000_000, "messages": []}).encode()
        await router.post("/v1/messages", long)
        assert server.asked[-1].body == long.replace(b'"system": "', b'"system": [{"type":"text","text":"').replace(
            b'xx", "messages', b'xx","cache_control":{"type":"ephemeral","ttl":"1h"}}], "messages'
        )
        body = json.dumps(asked("q")).encode()
        wide = json.dumps(asked("q")).encode("utf-16")
        for path, data, line in (
            ("/v1/messages/count_tokens", body, "A: b"),
            ("/v1/messages", body, "Content-Encoding: gzip"),
            ("/v1/messages", wide, "A: b"),
            ("/v1/messages", body[:-1] + b', "temperature": NaN}', "A: b"),
            ("/v1/messages", body[:-1] + b', "system": "again"}', "A: b"),
            ("/v1/chat/completions", body, "A: b"),
        ):
            await router.post(path, data, line)
            assert server.asked[-1].body == data, (path, line)
