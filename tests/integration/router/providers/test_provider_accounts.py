"""What providers' answers used becomes metrics and money, whatever form the answer has."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.providers.anthropic_api import AnthropicApi
from tests.support.providers.openai_api import OpenAiApi
from tests.support.providers.routed import Routed, routed
from tests.support.providers.server import Asked, Authority, Peer, ProviderServer
from tests.support.proxy_rig import on_loop

KEY = "sk-test"
LONG = "Answer in one word. " * 400


async def tokens(router: Routed, provider: str, model: str) -> dict[str, float]:
    kinds = ("input", "cache_read", "cache_write", "output")
    series = 'gc_provider_tokens_total{{kind="{}",model="{}",provider="{}"}}'
    return {kind: await router.metric(series.format(kind, model, provider)) for kind in kinds}


@pytest.mark.parametrize("stream", [False, True])
@on_loop
async def test_second_answer_has_saved_what_it_read_from_the_cache(authority: Authority, stream: bool) -> None:
    """At Anthropic's prices of the table: a tenth for reading, twice for writing for an hour."""
    body = {"model": "claude-sonnet-5", "max_tokens": 9, "system": LONG, "stream": stream}
    lines = (f"X-Api-Key: {KEY}", "anthropic-version: 2023-06-01")
    async with (
        ProviderServer(authority, AnthropicApi(key=KEY)) as server,
        routed(authority, ("anthropic", server)) as router,
    ):
        for question in ("one?", "two?"):
            messages = [{"role": "user", "content": question}]
            assert (await router.post("/v1/messages", body | {"messages": messages}, *lines))[0] == 200
        found = await tokens(router, "anthropic", "claude-sonnet-5")
        assert found["cache_read"] == found["cache_write"] > 1900
        assert found["output"] == 4
        assert found["input"] > 0
        saved = await router.metric('gc_saved_usd_total{provider="anthropic"}')
        writing = await router.metric('gc_provider_cache_write_usd_total{provider="anthropic"}')
        assert saved == pytest.approx(found["cache_read"] * 1.8 / 1e6)
        assert writing == pytest.approx(found["cache_write"] * 2.0 / 1e6)
        assert await router.metric('gc_provider_requests_total{provider="anthropic",status="200"}') == 2
        assert await router.metric('gc_provider_bodies_total{body="changed",provider="anthropic"}') == 2


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
@pytest.mark.parametrize("stream", [False, True])
@on_loop
async def test_cached_tokens_of_openai_are_counted(authority: Authority, path: str, stream: bool) -> None:
    body: dict[str, Any] = {"model": "gpt-5.2", "stream": stream}
    if path == "/v1/responses":
        body |= {"instructions": LONG, "input": "q"}
    else:
        body |= {"messages": [{"role": "system", "content": LONG}, {"role": "user", "content": "q"}]}
        body |= {"stream_options": {"include_usage": True}} if stream else {}
    async with ProviderServer(authority, OpenAiApi(KEY)) as server, routed(authority, ("openai", server)) as router:
        for _ in range(2):
            assert (await router.post(path, body, f"Authorization: Bearer {KEY}"))[0] == 200
        found = await tokens(router, "openai", "gpt-5.2")
        assert (found["cache_read"], found["cache_write"], found["output"]) == (1920, 0, 4)
        saved = await router.metric('gc_saved_usd_total{provider="openai"}')
        assert saved == pytest.approx(1920 * (1.75 - 0.175) / 1e6)


@on_loop
async def test_answer_that_says_nothing_counts_as_a_request(authority: Authority) -> None:
    """Errors, and what cannot be read; also one that gives no answer at all."""

    async def answer(peer: Peer, asked: Asked) -> None:
        if b"silent" in asked.body:
            peer.abort()
        else:
            await peer.answer(429, b'{"usage": "none"}')

    async with ProviderServer(authority, answer) as server, routed(authority, ("openai", server)) as router:
        for word in ("error", "silent"):
            await router.post("/v1/chat/completions", {"model": "gpt-5.2", "messages": [], "x": word})
        for status in ("429", "none"):
            assert await router.metric(f'gc_provider_requests_total{{provider="openai",status="{status}"}}') == 1
        assert "gc_provider_tokens_total{" not in await router.metrics()
