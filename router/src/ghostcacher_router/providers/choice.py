"""Which requests go to a hosted provider: those that name it, or a model of it. No worker is looked for before.

    x-gc-upstream: openai       names the provider, whatever the request is
    /model/ID/converse ...      the paths of Bedrock, which name the model
    "model": "claude-..."       by the model's name, or by how it begins; the longest pattern wins

The decision depends on the settings and on the request alone, never on the state of the fleet: a request for an own
model must not leave the fleet because its worker is away.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum
from typing import Final, NamedTuple
from urllib.parse import unquote

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_router.fleet.membership.endpoints import parse_endpoint
from ghostcacher_router.http.protocol.request_head import RequestHead
from ghostcacher_router.types import Endpoint, NoWorker

HEADER: Final = b"x-gc-upstream"
"""Names the provider that a request is meant for."""
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


class Upstream(NamedTuple):
    """A provider, and where it is reached."""

    provider: Provider
    endpoint: Endpoint


def parse_upstream(text: str, setting: str) -> Upstream:
    """Return the provider that ``name=URL`` names, or the URL of a provider alone. Raises ConfigError."""
    name, found, url = text.partition("=")
    if not found or "/" in name:
        endpoint = parse_endpoint(text, setting)
        provider = _HOSTS.get(endpoint.host) or (Provider.BEDROCK if _BEDROCK_HOST.fullmatch(endpoint.host) else None)
        if provider is None:
            raise ConfigError(f"{setting}: expected name=URL with one of the names {_names()}, got {text[:200]!r}")
        return Upstream(provider, endpoint)
    try:
        return Upstream(Provider(name.strip()), parse_endpoint(url, setting))
    except ValueError:
        raise ConfigError(f"{setting}: expected one of the names {_names()}, got {name[:64]!r}") from None


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


class ProviderChoice:
    """Says which provider a request goes to.

    upstreams: each provider once. models: provider by pattern; a provider that it does not name has those of `MODELS`.
    """

    def __init__(self, upstreams: Sequence[Upstream], models: dict[str, Provider]) -> None:
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
