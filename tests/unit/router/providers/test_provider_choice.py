"""Which requests go to a provider, and what the settings about it may say."""

from __future__ import annotations

import pytest

from ghostcacher_cli.main import router_options
from ghostcacher_connector.config import load_settings
from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_router.config import RouterSettings, load_router_settings
from ghostcacher_router.http.protocol.request_head import RequestHead, read_request_head
from ghostcacher_router.providers.choice import (
    Provider,
    ProviderChoice,
    Upstream,
    parse_fallbacks,
    parse_models,
    parse_upstream,
)
from ghostcacher_router.types import Endpoint, NoWorker

ENDPOINT = Endpoint("localhost", 1, True, "")
ALL = [Upstream(provider, ENDPOINT) for provider in Provider]


def head_of(path: str = "/v1/chat/completions", *lines: str) -> RequestHead:
    text = "\r\n".join([f"POST {path} HTTP/1.1", "host: router", *lines, "", ""])
    return read_request_head(text.encode(), 64)[0]


@pytest.mark.parametrize(
    ("model", "provider"),
    [
        ("claude-opus-4-6", Provider.ANTHROPIC),
        ("gpt-5.2-mini", Provider.OPENAI),
        ("o3-mini", Provider.OPENAI),
        ("text-embedding-3-large", Provider.OPENAI),
        ("gpt-oss-120b", None),
        ("o3x", None),
        ("Claude-like-7b", None),
        ("anthropic.claude-sonnet-4-5-20250929-v1:0", None),
        ("", None),
        (None, None),
    ],
)
def test_models_of_providers_are_known_by_their_names(model: str | None, provider: Provider | None) -> None:
    """Names that engines' models have are not among them."""
    assert ProviderChoice(ALL, {}).of(head_of(), model) is provider


def test_longest_pattern_wins_and_an_exact_name_over_all() -> None:
    models = parse_models(["a*=openai", "a-b*=anthropic", "a-b-c=openai", "*=anthropic"], "m")
    choice = ProviderChoice(ALL, models)
    names = {name: choice.of(head_of(), name) for name in ("a-x", "a-b-x", "a-b-c", "z")}
    assert [provider.value for provider in names.values() if provider] == [
        *("openai", "anthropic", "openai", "anthropic")
    ]


@pytest.mark.parametrize(
    ("path", "provider"),
    [
        ("/model/anthropic.claude-sonnet-4-5-20250929-v1%3A0/converse", Provider.BEDROCK),
        ("/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A1%3Aprofile%2Fx/converse-stream", Provider.BEDROCK),
        ("/model/x/invoke-with-response-stream", Provider.BEDROCK),
        ("/model/x/other", None),
        ("/v1/model/x/converse", None),
    ],
)
def test_paths_of_bedrock_name_their_model(path: str, provider: Provider | None) -> None:
    assert ProviderChoice(ALL, {}).of(head_of(path), None) is provider
    assert ProviderChoice(ALL[:2], {}).of(head_of(path), None) is None


def test_header_names_a_provider_before_anything_else() -> None:
    choice = ProviderChoice(ALL[:2], {})
    assert choice.of(head_of("/v1/files", "x-gc-upstream: openai"), None) is Provider.OPENAI
    assert choice.of(head_of("/v1/messages", "x-gc-upstream: openai"), "claude-x") is Provider.OPENAI
    for name in ("bedrock", "", "OpenAI", "openai, anthropic"):
        with pytest.raises(NoWorker, match="expected one of anthropic, openai"):
            choice.of(head_of("/v1/files", f"x-gc-upstream: {name}"), None)


def test_upstream_is_a_name_and_a_url_or_a_url_that_is_known() -> None:
    assert parse_upstream("openai=https://proxy.example:8443/v1", "u") == Upstream(
        Provider.OPENAI, Endpoint("proxy.example", 8443, True, "")
    )
    assert parse_upstream("openai=http://127.0.0.1:9", "u").endpoint.tls is False
    known = {
        "https://api.anthropic.com": Provider.ANTHROPIC,
        "https://api.openai.com/v1": Provider.OPENAI,
        "https://bedrock-runtime.eu-central-1.amazonaws.com": Provider.BEDROCK,
    }
    assert {url: parse_upstream(url, "u").provider for url in known} == known


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("mistral=https://a", "anthropic, openai, bedrock"),
        ("https://a.example", "name=URL"),
        ("https://bedrock-runtime.example.com", "name=URL"),
        ("openai=ftp://a", "http"),
        ("openai=", "http"),
        ("openai", "http"),
        ("openai=https://me:secret@a", "without user"),
        ("openai=http://proxy.example", "https"),
    ],
)
def test_wrong_upstream_is_refused_by_name(text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=f"upstreams: .*{named}") as caught:
        RouterSettings(upstreams=(text,))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "models", [["a"], ["a=b"], ["=openai"], ["a*b=openai"], ["a b=openai"], ["a=openai", "a=openai"]]
)
def test_wrong_pattern_is_refused_by_name(models: list[str]) -> None:
    with pytest.raises(ConfigError, match="provider_models: expected"):
        parse_models(models, "provider_models")


def test_option_is_given_once_for_each_provider() -> None:
    words = ["--no-redis", "--upstream", "openai=https://a", "--upstream", "anthropic=https://b", "--no-provider-cache"]
    settings = router_options([*words, "--provider-models", "x=openai,y*=anthropic"], {})
    assert settings.upstreams == ("openai=https://a", "anthropic=https://b")
    assert (settings.provider_models, settings.provider_cache) == (("x=openai", "y*=anthropic"), False)


def test_settings_of_providers_fit_together() -> None:
    one = ("openai=https://a",)
    with pytest.raises(ConfigError, match="upstreams: expected each provider once"):
        RouterSettings(upstreams=("openai=https://a", "openai=https://b"))
    with pytest.raises(
        ConfigError, match="provider_models: x: expected a provider that upstreams names, got anthropic"
    ):
        RouterSettings(upstreams=one, provider_models=("x=anthropic",))
    # A router for providers alone needs neither workers nor Redis.
    assert RouterSettings(upstreams=one, redis=False).workers == ()


def test_upstreams_have_two_variables_of_which_one_is_given() -> None:
    """GC_UPSTREAM_URL, as people know it, and the one that follows the rule."""
    url = "https://api.anthropic.com"
    both = f"{url}, openai=https://api.openai.com"
    assert load_router_settings({}, None, {"GC_UPSTREAM_URL": url}).upstreams == (url,)
    assert len(load_router_settings({}, None, {"GC_UPSTREAM_URL": both}).upstreams) == 2
    assert load_router_settings({}, None, {"GC_ROUTER_UPSTREAMS": url}).upstreams == (url,)
    # An engine in the same environment is not bothered.
    assert load_settings({}, {"GC_UPSTREAM_URL": url}) == load_settings({}, {})
    with pytest.raises(ConfigError, match="GC_ROUTER_UPSTREAMS or GC_UPSTREAM_URL"):
        load_router_settings({}, None, {"GC_UPSTREAM_URL": url, "GC_ROUTER_UPSTREAMS": url})


@pytest.mark.parametrize(
    "texts", [["m"], ["m=openai"], ["m=openai:"], ["=openai:x"], ["m=bedrock:x"], ["m=openai:x"] * 2]
)
def test_wrong_fallback_is_refused_by_name(texts: list[str]) -> None:
    with pytest.raises(ConfigError, match="provider_fallbacks: expected each"):
        parse_fallbacks(texts, "provider_fallbacks")


def test_fallback_names_a_provider_that_there_is() -> None:
    with pytest.raises(ConfigError, match="provider_fallbacks: m: expected a provider that upstreams names"):
        RouterSettings(upstreams=("openai=https://a",), provider_fallbacks=("m=anthropic:x",))
    assert parse_fallbacks(["a=openai:x:y"], "f")["a"].model == "x:y"
