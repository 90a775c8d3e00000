"""Bedrock through the router: keys that pass, signatures that the router makes, and its cache."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_router.providers.signing import BedrockSigner
from ghostcacher_router.types import Endpoint
from tests.support.providers.bedrock_api import BedrockApi, Credentials
from tests.support.providers.routed import routed
from tests.support.providers.server import Authority, ProviderServer
from tests.support.proxy_rig import on_loop

MODEL = "eu.anthropic.claude-sonnet-4-5-20250929-v1%3A0"
AWS = Credentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "eu-central-1")
KEY = "bedrock-key"
LONG = "Answer in one word. " * 400
BEARER = f"Authorization: Bearer {KEY}"


def asked(question: str) -> dict[str, Any]:
    return {"system": [{"text": LONG}], "messages": [{"role": "user", "content": [{"text": question}]}]}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS credentials in the router's environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", AWS.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", AWS.secret_key)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)


@pytest.mark.parametrize("verb", ["converse", "converse-stream"])
@on_loop
async def test_key_passes_and_the_second_request_reads_the_cache(authority: Authority, verb: str) -> None:
    """Streamed, in AWS's own form, and not; the tokens are counted under the model that the path names."""
    async with (
        ProviderServer(authority, BedrockApi(AWS, KEY)) as server,
        routed(authority, ("bedrock", server)) as router,
    ):
        for question in ("one?", "two?"):
            status, _, body = await router.post(f"/model/{MODEL}/{verb}", asked(question), BEARER)
            assert status == 200
            assert b"Hello" in body
        series = 'gc_provider_tokens_total{{kind="{}",model="claude-sonnet-4-5",provider="bedrock"}}'
        read, written = [await router.metric(series.format(kind)) for kind in ("cache_read", "cache_write")]
        assert read == written > 1900
        saved = await router.metric('gc_saved_usd_total{provider="bedrock"}')
        assert saved == pytest.approx(read * 2.7 / 1e6)


@on_loop
async def test_body_of_claude_is_marked_as_anthropic_has_it(authority: Authority) -> None:
    """For the usual time: not every model at Bedrock takes another one."""
    async with (
        ProviderServer(authority, BedrockApi(AWS, KEY)) as server,
        routed(authority, ("bedrock", server)) as router,
    ):
        body = {"anthropic_version": "bedrock-2023-05-31", "max_tokens": 9, "system": LONG, "messages": []}
        await router.post(f"/model/{MODEL}/invoke", body, BEARER)
        await router.post("/model/meta.llama3-3-70b-instruct-v1%3A0/invoke", body, BEARER)
        claude, llama = [json.loads(one.body) for one in server.asked]
        assert claude["system"][0]["cache_control"] == {"type": "ephemeral"}
        assert llama == body


@on_loop
async def test_signature_of_a_client_does_not_pass(authority: Authority) -> None:
    """It is for the router's address: AWS would refuse it, and learn of a host that is none of its business."""
    async with (
        ProviderServer(authority, BedrockApi(AWS, KEY)) as server,
        routed(authority, ("bedrock", server)) as router,
    ):
        lines = ("Authorization: AWS4-HMAC-SHA256 Credential=a/b, SignedHeaders=host, Signature=c", "X-Amz-Date: d")
        assert (await router.post(f"/model/{MODEL}/converse", asked("q"), *lines))[0] == 403
        assert not server.asked[0].headers.keys() & {"authorization", "x-amz-date"}


@pytest.mark.usefixtures("environment")
@on_loop
async def test_router_signs_what_brings_no_key(authority: Authority) -> None:
    """What it has put into the body, too; a path with signs that are escaped twice in a signature; a key goes first."""
    pytest.importorskip("botocore")
    settings = {"bedrock_sign": True, "bedrock_region": AWS.region}
    async with ProviderServer(authority, BedrockApi(AWS, KEY)) as server:
        async with routed(authority, ("bedrock", server), **settings) as router:
            for size in (1, 100_000):
                body = asked("q" * size)
                assert (await router.post(f"/model/{MODEL}/converse", body))[0] == 200
                assert b"cachePoint" in server.asked[-1].body
                assert server.asked[-1].headers["authorization"].startswith("AWS4-HMAC-SHA256 ")
            assert (await router.post(f"/model/{MODEL}/converse", asked("q"), BEARER))[0] == 200
            assert server.asked[-1].headers["authorization"] == f"Bearer {KEY}"
        async with routed(authority, ("bedrock", server)) as router:
            assert (await router.post(f"/model/{MODEL}/converse", asked("q")))[0] == 403


@pytest.mark.usefixtures("environment")
def test_signing_that_is_not_possible_is_refused_at_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Without a region, or without credentials."""
    pytest.importorskip("botocore")
    for name in ("AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    empty = tmp_path_factory.mktemp("aws")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(empty / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(empty / "credentials"))
    unnamed = Endpoint("localhost", 443, True, "")
    with pytest.raises(ConfigError, match="bedrock_region: expected a region"):
        BedrockSigner(unnamed, None)
    named = Endpoint("bedrock-runtime.eu-west-1.amazonaws.com", 443, True, "")
    assert repr(BedrockSigner(named, None)) == "BedrockSigner(eu-west-1)"
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(ConfigError, match="bedrock_sign: expected AWS credentials"):
        BedrockSigner(named, None)
