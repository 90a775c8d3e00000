"""How a client is set up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypedDict

from ghostcacher.client import arguments
from ghostcacher.client.arguments import PROVIDERS, Provider
from ghostcacher.client.errors import ArgumentError

TIMEOUT_S = 600.0
CONNECT_TIMEOUT_S = 5.0
RETRIES_MAX = 2
ANTHROPIC_VERSION = "2023-06-01"


class ClientArguments(TypedDict, total=False):
    """What a client takes beside its provider and URL."""

    api_key: str | None
    """Of the engines, which check it; the router passes it on."""
    admin_token: str | None
    """Of the router, for `admin`."""
    session: str | None
    """Your name for the conversation: the router keeps a session at its worker while that costs little."""
    timeout_s: float
    """The longest wait for an answer to begin, and for each next part of it."""
    connect_timeout_s: float
    """The longest wait for a connection."""
    retries_max: int
    """How often a request is sent again that nothing came of."""
    headers: Mapping[str, str]
    """More headers of every request for an engine."""


class Options(NamedTuple):
    """What a client was set up with, checked."""

    provider: Provider
    """Whose API `messages` speaks."""
    url: str
    """Of the router, without a path /v1."""
    api_key: str | None
    """Of the engines."""
    admin_token: str | None
    """Of the router."""
    session: str | None
    """The name of the conversation."""
    timeout_s: float
    """For an answer to begin, and for each next part of it."""
    connect_timeout_s: float
    """For a connection."""
    retries_max: int
    """How often a request is sent again."""
    headers: Mapping[str, str]
    """More headers, by their names in small letters."""

    def __repr__(self) -> str:
        return f"Options({self.provider} at {self.url})"

    def engine_headers(self) -> dict[str, str]:
        """Return the headers of a request for an engine. Engines look for a key in ``authorization`` alone; what
        Anthropic's API has instead is sent, too, where that API is spoken."""
        found: dict[str, str] = {}
        if self.api_key is not None:
            found["authorization"] = f"Bearer {self.api_key}"
        if self.provider == "anthropic":
            found["anthropic-version"] = ANTHROPIC_VERSION
            if self.api_key is not None:
                found["x-api-key"] = self.api_key
        return {**found, **self.headers}

    def admin_headers(self) -> dict[str, str]:
        """Return the headers of a request for the router itself: its token, and nothing that is the engines'."""
        return {} if self.admin_token is None else {"authorization": f"Bearer {self.admin_token}"}


def checked(provider: object, ghostcacher_url: object, given: Mapping[str, Any]) -> Options:
    """Return the options of a client. Raises ArgumentError."""
    if provider not in PROVIDERS:
        raise ArgumentError("provider", f"expected one of {', '.join(PROVIDERS)}, got {arguments.shown(provider)}")
    for name in given:
        if name not in ClientArguments.__annotations__:
            raise ArgumentError(name, f"unknown; known are {', '.join(ClientArguments.__annotations__)}")
    session = given.get("session")
    return Options(
        provider="anthropic" if provider == "anthropic" else "openai",
        url=arguments.router_url("ghostcacher_url", ghostcacher_url),
        api_key=_secret("api_key", given.get("api_key")),
        admin_token=_secret("admin_token", given.get("admin_token")),
        session=None if session is None else arguments.session("session", session),
        timeout_s=arguments.seconds("timeout_s", given.get("timeout_s", TIMEOUT_S)),
        connect_timeout_s=arguments.seconds("connect_timeout_s", given.get("connect_timeout_s", CONNECT_TIMEOUT_S)),
        retries_max=arguments.count("retries_max", given.get("retries_max", RETRIES_MAX), at_least=0),
        headers=arguments.headers("headers", given.get("headers", {})),
    )


def _secret(field: str, value: object) -> str | None:
    return None if value is None else arguments.header_value(field, value, secret=True)
