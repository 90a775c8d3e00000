"""Requests for a provider's models go there over TLS, as they came, with their keys and with nothing else."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

import pytest

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_router.config import RouterSettings
from ghostcacher_router.providers.providers import provider_tls
from tests.support.mock_engine import MiniEngine
from tests.support.providers.routed import post, read_head, routed
from tests.support.providers.server import Asked, Authority, Peer, ProviderServer, make_authority
from tests.support.proxy_rig import on_loop

KEY = "sk-ant-REDACTED"
TOKEN = "token-that-nobody-may-see-token"
ODD = b"""{ "model":"claude-sonnet-4-5" ,\r\n"n":1.50,"max_tokens":1E1,"big":123456789012345678901234567890,
"u":"\\u00e9\xc3\xa9", "messages" : [ ] }"""


async def echo(peer: Peer, asked: Asked) -> None:
    await peer.answer(200, asked.body)


@on_loop
async def test_body_and_key_arrive_as_they_were_sent_and_nothing_else(authority: Authority) -> None:
    """Neither what the router adds for workers nor what proxies and traces add leaves the fleet."""
    async with ProviderServer(authority, echo) as server, routed(authority, ("anthropic", server)) as router:
        own = (
            "X-GC-Session: s1",
            "X-GC-Anything: a",
            "X-Session-Id: s2",
            "X-Request-Id: r1",
            "X-Data-Parallel-Rank: 0",
        )
        proxies = (
            "X-Forwarded-For: 10.0.0.1",
            "Forwarded: for=10.0.0.1",
            "Via: 1.1 x",
            "X-Real-IP: 10.0.0.1",
            "Cookie: a=b",
        )
        others = (
            "traceparent: 00-1-2-01",
            "X-Internal-User: me",
            "Authorization-Internal: x",
            "Api-Key: other",
            "TE: x",
        )
        theirs = (
            f"X-Api-Key: {KEY}",
            "anthropic-version: 2023-06-01",
            "anthropic-beta: b",
            "User-Agent: u/1",
            "Accept: */*",
        )
        answer = await router.post("/v1/messages?beta=true", ODD, *own, *proxies, *others, *theirs)
        assert (answer[0], answer[2]) == (200, ODD)
        assert answer[1]["x-gc-worker"] == "anthropic"
        (asked,) = server.asked
        assert (asked.method, asked.target, asked.body) == ("POST", "/v1/messages?beta=true", ODD)
        assert asked.headers == {
            "host": f"localhost:{server.port}",
            "content-type": "application/json",
            "x-api-key": KEY,
            "anthropic-version": "2023-06-01",
            "anthropic-beta": "b",
            "user-agent": "u/1",
            "accept": "*/*",
            "accept-encoding": "identity",
            "content-length": str(len(ODD)),
        }


@on_loop
async def test_model_says_whether_a_provider_or_a_worker_answers(authority: Authority) -> None:
    """A model that no provider has goes to workers, also when they are gone: it never leaves the fleet."""
    engine = MiniEngine(["gpt-oss-20b", "m"])
    await engine.start()
    async with ProviderServer(authority, echo) as one, ProviderServer(authority, echo) as other:
        servers = (("anthropic", one), ("openai", other))
        given = {
            "workers": (engine.endpoint.url,),
            "provider_models": ("tuned*=openai", "m=anthropic", "gpt-4o=openai"),
        }
        async with routed(authority, *servers, **given) as router:

            async def where(model: str, *lines: str) -> str:
                _, headers, _ = await router.post("/v1/chat/completions", {"model": model, "messages": []}, *lines)
                return headers.get("x-gc-worker", "nowhere")

            assert await where("tuned-7") == "openai"
            assert await where("m") == "anthropic"
            assert await where("gpt-4o") == "openai"
            assert await where("gpt-oss-20b") == engine.endpoint.name
            # Patterns of the settings are in the place of a provider's own, not beside them.
            assert await where("claude-x") == "nowhere"
            assert await where("gpt-4o-mini") == "nowhere"
            assert await where("gpt-oss-20b", "X-GC-Upstream: openai") == "openai"
            await engine.stop()
            assert await where("gpt-oss-20b") == "nowhere"
            assert [len(server.asked) for server in (one, other)] == [1, 3]


@on_loop
async def test_header_names_the_provider_of_what_has_no_model(authority: Authority) -> None:
    """Files, batches and lists name none. A name that is not configured is refused: it is no request for a worker."""
    async with ProviderServer(authority, echo) as server, routed(authority, ("openai", server)) as router:
        assert (await router.get("/v1/files?limit=2", "X-GC-Upstream: openai"))[0] == 200
        assert server.asked[0].target == "/v1/files?limit=2"
        assert "content-length" not in server.asked[0].headers
        status, _, body = await router.post(
            "/v1/messages", {"model": "gpt-4o", "messages": []}, "X-GC-Upstream: anthropic"
        )
        assert (status, json.loads(body)["error"]["type"]) == (400, "invalid_request_error")
        assert len(server.asked) == 1


@on_loop
async def test_path_of_the_url_stands_before_that_of_the_request(authority: Authority) -> None:
    """As clients are given it, with /v1 at its end or not."""
    for path in ("/proxied", "/proxied/v1/"):
        async with ProviderServer(authority, echo) as server:
            async with routed(authority, upstreams=(f"openai={server.url}{path}",)) as router:
                await router.post("/v1/chat/completions", {"model": "gpt-4o", "messages": []})
            assert server.asked[0].target == "/proxied/v1/chat/completions"


@on_loop
async def test_token_of_the_router_never_leaves(authority: Authority) -> None:
    """Also where a client sends it as if it were the provider's key."""
    async with ProviderServer(authority, echo) as server:
        async with routed(authority, ("anthropic", server), admin_token=TOKEN) as router:
            for line in (f"Authorization: Bearer {TOKEN}", f"authorization: bearer  {TOKEN} ", f"X-Api-Key: {TOKEN}"):
                await router.post("/v1/messages", {"model": "claude-x", "messages": []}, line, "Accept: */*")
            await router.post("/v1/messages", {"model": "claude-x", "messages": []}, f"Authorization: Bearer {KEY}")
        assert TOKEN not in str(server.asked)
        assert [asked.headers.get("authorization") for asked in server.asked] == [None, None, None, f"Bearer {KEY}"]


@on_loop
async def test_keys_go_to_the_provider_that_they_are_for(authority: Authority) -> None:
    """A client of both APIs may send both keys with every request."""
    async with ProviderServer(authority, echo) as server, routed(authority, ("openai", server)) as router:
        await router.post(
            "/v1/chat/completions", {"model": "gpt-4o", "messages": []}, f"X-Api-Key: {KEY}", "Authorization: Bearer b"
        )
        assert KEY not in str(server.asked)
        assert server.asked[0].headers["authorization"] == "Bearer b"


@pytest.mark.parametrize("wrong", ["authority", "name"])
@on_loop
async def test_server_that_cannot_prove_its_name_gets_nothing(authority: Authority, tmp_path: Path, wrong: str) -> None:
    """An unknown authority, or a certificate for another host: no byte of the request is sent."""
    theirs = make_authority(tmp_path, "localhost" if wrong == "authority" else "elsewhere")
    trusted = authority if wrong == "authority" else theirs
    async with ProviderServer(theirs, echo) as server, routed(trusted, ("anthropic", server)) as router:
        status, _, body = await router.post("/v1/messages", {"model": "claude-x", "messages": []}, f"X-Api-Key: {KEY}")
        assert status == 502
        error = json.loads(body)["error"]
        assert error["type"] == "api_error"
        assert "the provider anthropic did not answer" in error["message"]
        assert "certificate verify failed" in error["message"]
        assert server.asked == []


def test_ca_file_that_is_none_is_refused_at_start(tmp_path: Path) -> None:
    """By name, before anything listens."""
    bad = tmp_path / "bad.pem"
    bad.write_text("no certificate")
    for path in (bad, tmp_path / "none.pem"):
        with pytest.raises(ConfigError, match="provider_ca_file"):
            provider_tls(str(path))


@on_loop
async def test_keys_are_in_no_log_no_metric_and_no_report(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    """However a request ends: answered, refused, broken off, unreachable, or with a fault of the router's own."""
    caplog.set_level(logging.DEBUG)

    async def answer(peer: Peer, asked: Asked) -> None:
        if b"cut" in asked.body:
            await peer.stream()
            await peer.chunk(b"data: {}\n\n")
            peer.abort()
        elif b"silent" in asked.body:
            peer.abort()
        else:
            await peer.answer(401, b'{"error": "bad key"}')

    async with ProviderServer(authority, answer) as server:
        settings = {"access_log": True, "admin_token": TOKEN, "log_level": "debug"}
        settings["upstreams"] = (f"anthropic={server.url}", "openai=https://localhost:1")
        async with routed(authority, **settings) as router:
            for word in ("fine", "cut", "silent", "unreachable", "bug"):
                if word == "bug":
                    router.router._proxy.state.providers._choice.endpoints.clear()  # type: ignore[union-attr]
                lines = (f"X-Api-Key: {KEY}", f"Authorization: Bearer {KEY}", f"X-GC-Upstream-Key: {KEY}")
                reader, writer = await router.connect()
                model = "gpt-4o" if word == "unreachable" else "claude-x"
                writer.write(post("/v1/messages?key=" + KEY, {"model": model, "messages": [], "word": word}, *lines))
                status, _ = await read_head(reader)
                assert status == {"fine": 401, "cut": 200, "bug": 500}.get(word, 502), word
                await asyncio.gather(reader.read(1 << 16), return_exceptions=True)
                writer.transport.abort()
            reports = [
                (await router.get(path, f"Authorization: Bearer {TOKEN}"))[2].decode()
                for path in ("/metrics", "/gc/status", "/gc/stats", "/gc/workers", "/v1/models")
            ]
            shown = repr(router.router) + repr(router.router._proxy) + repr(list(router.router._proxy.state.clients))
        assert KEY in str(server.asked)
    assert "POST /v1/messages" in caplog.text
    assert all(KEY not in text for text in (caplog.text, shown, *reports))


@on_loop
async def test_long_body_arrives_as_it_was_sent(authority: Authority) -> None:
    """One that is parsed in another process, and sent in pieces."""
    body = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "x" * 3_000_000}]}).encode()
    async with ProviderServer(authority, echo) as server, routed(authority, ("openai", server)) as router:
        assert (await router.post("/v1/chat/completions", body))[2] == body
        assert server.asked[0].body == body


@on_loop
async def test_router_without_workers_is_ready(authority: Authority) -> None:
    """Where there are only providers, nobody is waited for; where workers belong to it, they are."""
    async with ProviderServer(authority, echo) as server:
        async with routed(authority, ("openai", server)) as router:
            assert (await router.get("/ready"))[0] == 200
        async with routed(authority, ("openai", server), workers=("http://127.0.0.1:9",)) as router:
            assert (await router.get("/ready"))[0] == 503


def test_settings_hide_what_a_url_holds() -> None:
    """As those of workers, URLs with a user are refused, and not shown."""
    with pytest.raises(ConfigError) as caught:
        RouterSettings(upstreams=("openai=https://user:hunter2@api.openai.com",))
    assert "hunter2" not in str(caught.value)
