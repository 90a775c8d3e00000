"""OpenAI's own SDK through the router, against a server that speaks its API strictly and has its cache."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.providers.openai_api import OpenAiApi
from tests.support.providers.routed import routed
from tests.support.providers.server import Authority, ProviderServer
from tests.support.proxy_rig import on_loop

openai = pytest.importorskip("openai")

KEY = "sk-test"
LONG = "Answer in one word. " * 400


def asked(question: str, system: str = LONG) -> dict[str, Any]:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    return {"model": "gpt-5.2", "messages": messages}


@on_loop
async def test_requests_that_share_a_beginning_have_one_key(authority: Authority) -> None:
    """Of chat and of responses, streamed and not; `store` is what the client says."""
    api = OpenAiApi(KEY)
    async with ProviderServer(authority, api) as server, routed(authority, ("openai", server)) as router:
        client = openai.AsyncOpenAI(base_url=f"{router.url}/v1", api_key=KEY, max_retries=0)
        first = await client.chat.completions.create(**asked("one?"), store=True)
        assert first.choices[0].message.content == "Hello there"
        assert first._request_id is not None
        assert first.usage.prompt_tokens_details.cached_tokens == 0
        include = {"include_usage": True}
        stream = await client.chat.completions.create(**asked("two?"), stream=True, stream_options=include)
        events = [event async for event in stream]
        assert "".join(event.choices[0].delta.content or "" for event in events if event.choices) == "Hello there"
        assert events[-1].usage.prompt_tokens_details.cached_tokens >= 1024
        given = {"model": "gpt-5.2", "instructions": LONG, "store": False}
        for question in ("one?", "two?"):
            answer = await client.responses.create(input=question, **given)
        assert answer.output_text == "Hello there"
        assert answer.usage.input_tokens_details.cached_tokens >= 1024
        chat, responses = set(api.keys[:2]), set(api.keys[2:])
        assert (len(chat), len(responses)) == (1, 1)
        stores = [json.loads(one.body).get("store", "absent") for one in server.asked]
        assert stores == [True, "absent", False, False]


@on_loop
async def test_bodies_of_clients_with_a_key_and_short_ones_go_as_they_came(authority: Authority) -> None:
    """What has nothing that others share, too, and paths that have no such field."""
    api = OpenAiApi(KEY)
    async with ProviderServer(authority, api) as server, routed(authority, ("openai", server)) as router:
        shared_by_nobody = {"model": "gpt-5.2", "messages": [{"role": "user", "content": LONG}]}
        for path, body in (
            ("/v1/chat/completions", asked("q") | {"prompt_cache_key": "mine"}),
            ("/v1/chat/completions", asked("q") | {"prompt_cache_key": None}),
            ("/v1/chat/completions", asked("q", "short")),
            ("/v1/chat/completions", shared_by_nobody),
            ("/v1/embeddings", asked("q")),
            ("/v1/chat/completions/1", asked("q")),
        ):
            data = json.dumps(body).encode()
            await router.post(path, data, f"Authorization: Bearer {KEY}")
            assert server.asked[-1].body == data


@on_loop
async def test_key_is_put_behind_everything_else(authority: Authority) -> None:
    """Without it the body is the client's, byte for byte."""
    api = OpenAiApi(KEY)
    async with ProviderServer(authority, api) as server, routed(authority, ("openai", server)) as router:
        data = json.dumps(asked("q"), indent=3).encode() + b" \n"
        await router.post("/v1/chat/completions", data, f"Authorization: Bearer {KEY}")
        sent = server.asked[0].body
        added = b',"prompt_cache_key":"%b"' % api.keys[0].encode()
        assert sent.count(added) == 1
        assert sent.replace(added, b"") == data


@on_loop
async def test_error_of_the_provider_is_the_one_that_the_sdk_raises(authority: Authority) -> None:
    api = OpenAiApi(KEY)
    async with ProviderServer(authority, api) as server, routed(authority, ("openai", server)) as router:
        client = openai.AsyncOpenAI(base_url=f"{router.url}/v1", api_key="wrong", max_retries=0)
        with pytest.raises(openai.AuthenticationError, match="Incorrect API key"):
            await client.chat.completions.create(**asked("q"))
