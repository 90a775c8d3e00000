"""Which requests go to a hosted provider: those that name it, or a model of it. No worker is looked for before.

    x-gc-upstream: openai       names the provider, whatever the request is
    /model/ID/converse ...      the paths of Bedrock, which name the model
    "model": "claude-..."       by the model's name, or by how it begins; the longest pattern wins

The decision depends on the settings and on the request alone, never on the state of the fleet: a request for an own
model must not leave the fleet because its worker is away.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import Enum
from types import MappingProxyType
from typing import Final, NamedTuple
from urllib.parse import unquote

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.settings import Listen
from ghostcacher_router.fleet.membership.endpoints import parse_endpoint
from ghostcacher_router.http.protocol.request_head import RequestHead
from ghostcacher_router.types import Endpoint, NoWorker

HEADER: Final = b"x-gc-upstream"
"""Names the provider that a request is meant for."""
NO_FALLBACKS: Final[Mapping[str, Fallback]] = MappingProxyType({})
_PATTERN = re.compile(r"[!-)+-<>-~]{1,256}\*?|\*")
_BEDROCK_PATH = re.compile(
    r"/model/([^/]+)/(?:converse|converse-stream|invoke|invoke-with-response-stream|count-tokens)"
)


class Provider(str, Enum):
    """A hosted provider, by the name that settings and headers use."""

    ANTHROPIC = "anthropic"
    OPENAI = "openai"
    BEDROCK = "bedrock"


_HOSTS = {
    "api.anthropic.com": Provider.ANTHROPIC,
    "api.openai.com": Provider.OPENAI,
}
_BEDROCK_HOST = re.compile(r"bedrock-runtime(?:-fips)?\.[a-z0-9-]+\.amazonaws\.com(?:\.cn)?")

MODELS: Final[dict[Provider, tuple[str, ...]]] = {
    Provider.ANTHROPIC: ("claude-*",),
    Provider.OPENAI: (
        *("gpt-3.5*", "gpt-4*", "gpt-5*", "gpt-6*", "chatgpt-*", "o1", "o1-*", "o3", "o3-*", "o4-*"),
        *("text-embedding-3*", "text-embedding-ada*"),
    ),
    Provider.BEDROCK: (),
}
"""The models of a provider for which the settings name none. Not ``gpt-*``: engines serve gpt-oss. Bedrock's are in its
paths."""

FALLBACK_PATHS: Final = {
    Provider.ANTHROPIC: frozenset({"/v1/messages"}),
    Provider.OPENAI: frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"}),
}
"""What a provider can answer in the place of own workers: they have the same API."""


class Upstream(NamedTuple):
    """A provider, and where it is reached."""

    provider: Provider
    endpoint: Endpoint


class Fallback(NamedTuple):
    """What answers in the place of own workers."""

    provider: Provider
    model: str
    """As the provider calls it."""


def parse_upstream(text: str, setting: str) -> Upstream:
    """Return the provider that ``name=URL`` names, or the URL of a provider alone. Raises ConfigError.

    Without TLS a URL is good for this machine alone: keys go there.
    """
    name, found, url = text.partition("=")
    if not found or "/" in name:
        name, url = "", text
    endpoint = parse_endpoint(url, setting)
    try:
        provider = Provider(name.strip()) if name else _provider_at(endpoint.host)
    except ValueError:
        known = f"name=URL with one of the names {_names()}"
        raise ConfigError(f"{setting}: expected {known}, got {(name or url)[:200]!r}") from None
    if not endpoint.tls and not Listen(endpoint.host, endpoint.port).loopback:
        raise ConfigError(f"{setting}: expected https, or a host of this machine, got {url[:200]!r}")
    return Upstream(provider, endpoint)


def _provider_at(host: str) -> Provider:
    """Return whose host this is. Raises ValueError."""
    return Provider.BEDROCK if _BEDROCK_HOST.fullmatch(host) else _HOSTS.get(host) or Provider(host)


def parse_models(texts: Sequence[str], setting: str) -> dict[str, Provider]:
    """Return the provider of each pattern of ``pattern=name``; a pattern that ends in * is a beginning.

    Raises ConfigError.
    """
    found: dict[str, Provider] = {}
    for text in texts:
        pattern, _, name = text.rpartition("=")
        known = name in {provider.value for provider in Provider}
        if not known or _PATTERN.fullmatch(pattern) is None or pattern in found:
            raise ConfigError(
                f"{setting}: expected each model once, as model=name or beginning*=name, with one of the names "
                f"{_names()}; got {text[:300]!r}"
            )
        found[pattern] = Provider(name)
    return found


def parse_fallbacks(texts: Sequence[str], setting: str) -> dict[str, Fallback]:
    """Return the fallback of each own model of ``own-model=name:model``. Raises ConfigError."""
    found: dict[str, Fallback] = {}
    names = {provider.value: provider for provider in FALLBACK_PATHS}
    for text in texts:
        own, _, rest = text.partition("=")
        name, _, model = rest.partition(":")
        if not own or own in found or name not in names or not model:
            expected = f"each own model once, as own-model=name:model with one of {', '.join(names)}"
            raise ConfigError(f"{setting}: expected {expected}, got {text[:300]!r}")
        found[own] = Fallback(names[name], model)
    return found


def check_providers(upstreams: Sequence[str], models: Sequence[str], fallbacks: Sequence[str]) -> None:
    """Check the settings `upstreams`, `provider_models` and `provider_fallbacks` together. Raises ConfigError."""
    found = [parse_upstream(text, "upstreams").provider for text in upstreams]
    if len(set(found)) < len(found):
        raise ConfigError(f"upstreams: expected each provider once, got {tuple(upstreams)!r}")
    answering = parse_fallbacks(fallbacks, "provider_fallbacks")
    named = [("provider_fallbacks", own, fallback.provider) for own, fallback in answering.items()]
    named += [("provider_models", *pair) for pair in parse_models(models, "provider_models").items()]
    for setting, name, provider in named:
        if provider not in found:
            raise ConfigError(f"{setting}: {name}: expected a provider that upstreams names, got {provider.value}")


class ProviderChoice:
    """Says which provider a request goes to.

    upstreams: each provider once. models: provider by pattern; a provider that it does not name has those of `MODELS`.
    fallbacks: what answers in the place of own workers, by the own model.
    """

    def __init__(
        self,
        upstreams: Sequence[Upstream],
        models: Mapping[str, Provider],
        fallbacks: Mapping[str, Fallback] = NO_FALLBACKS,
    ) -> None:
        self.fallbacks = fallbacks
        self.endpoints = {upstream.provider: upstream.endpoint for upstream in upstreams}
        patterns = dict(models)
        for provider in self.endpoints.keys() - set(models.values()):
            patterns |= dict.fromkeys(MODELS[provider], provider)
        self._exact = {name: provider for name, provider in patterns.items() if not name.endswith("*")}
        beginnings = [(name[:-1], provider) for name, provider in patterns.items() if name.endswith("*")]
        self._beginnings = sorted(beginnings, key=lambda each: -len(each[0]))

    def __repr__(self) -> str:
        return f"ProviderChoice({', '.join(f'{name.value}={at.url}' for name, at in self.endpoints.items())})"

    def of(self, head: RequestHead, model: str | None) -> Provider | None:
        """Return the provider of a request; None for one that workers answer. Raises NoWorker.

        model: as the body names it.
        """
        if (named := head.headers.get(HEADER)) is not None:
            return self._named(named.decode("latin-1"))
        if Provider.BEDROCK in self.endpoints and model_in_path(head.path) is not None:
            return Provider.BEDROCK
        return None if model is None else self._of_model(model)

    def _of_model(self, model: str) -> Provider | None:
        if (exact := self._exact.get(model)) is not None:
            return exact
        return next((provider for beginning, provider in self._beginnings if model.startswith(beginning)), None)

    def _named(self, name: str) -> Provider:
        known = sorted(provider.value for provider in self.endpoints)
        if name not in known:
            message = f"header {HEADER.decode()}: expected one of {', '.join(known)}, got {name[:64]!r}"
            raise NoWorker(400, message, kind="unknown_upstream")
        return Provider(name)


def model_in_path(path: str) -> str | None:
    """Return the model that a path of Bedrock names; None for any other path."""
    found = _BEDROCK_PATH.fullmatch(path)
    return None if found is None else unquote(found[1])


def _names() -> str:
    return ", ".join(provider.value for provider in Provider)
