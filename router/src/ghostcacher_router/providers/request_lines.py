"""The head of a request as a provider gets it. Only what is named here leaves the fleet.

A list of what may leave, not of what may not: headers of proxies, of traces, of sessions and of the router itself stay
here, those that nobody has thought of, too. A key goes to the kind of provider that it is for, and to no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from hmac import compare_digest
from typing import Final

from ghostcacher_router.http.protocol.request_head import RequestHead
from ghostcacher_router.providers.choice import Provider
from ghostcacher_router.types import Endpoint

AUTHORIZATION: Final = b"authorization"
_COMMON = frozenset({b"accept", b"accept-language", b"content-type", b"content-encoding", b"user-agent"})
_NAMES: Final[Mapping[Provider, frozenset[bytes]]] = {
    Provider.ANTHROPIC: _COMMON | {AUTHORIZATION, b"x-api-key", b"idempotency-key"},
    Provider.OPENAI: _COMMON | {AUTHORIZATION, b"idempotency-key", b"x-client-request-id"},
    Provider.BEDROCK: _COMMON | {AUTHORIZATION},
}
_BEGINNINGS: Final[Mapping[Provider, tuple[bytes, ...]]] = {
    Provider.ANTHROPIC: (b"anthropic-", b"x-stainless-"),
    Provider.OPENAI: (b"openai-", b"x-stainless-"),
    Provider.BEDROCK: (b"x-amzn-bedrock-",),
}
_SCHEME: Final = b"bearer "
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
_PORTS = {True: 443, False: 80}


def host_of(endpoint: Endpoint) -> str:
    """Return the value of the header Host for an endpoint."""
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    return host if endpoint.port == _PORTS[endpoint.tls] else f"{host}:{endpoint.port}"


def leaving_lines(provider: Provider, head: RequestHead, admin_token: str | None) -> list[bytes]:
    """Return the client's header lines that go to a provider, without line ends.

    admin_token: the router's own, which opens its `/gc/*`: a header that holds it stays here.
    """
    names, beginnings = _NAMES[provider], _BEGINNINGS[provider]
    lines = []
    for line in head.forward.split(b"\r\n"):
        name, _, value = line.partition(b":")
        key = name.lower()
        if provider is Provider.BEDROCK and key == AUTHORIZATION and not is_bearer(value):
            continue  # A signature for the router's address.
        if (key in names or key.startswith(beginnings)) and not is_token(value.strip(), admin_token):
            lines.append(line)
    return lines


def provider_request(head: RequestHead, endpoint: Endpoint, lines: list[bytes], body_bytes: int) -> bytes:
    """Return the head of a request for a provider. lines: header lines without line ends."""
    lines = [f"Host: {host_of(endpoint)}".encode(), *lines]
    # Answers are read along for what they used; nothing is gained by packing a text that comes word by word.
    lines.append(b"Accept-Encoding: identity")
    if body_bytes or head.method in _WITH_BODY:
        lines.append(b"Content-Length: %d" % body_bytes)
    target = endpoint.path.encode() + head.target
    return b"%b %b HTTP/1.1\r\n%b\r\n\r\n" % (head.method.encode(), target, b"\r\n".join(lines))


def is_bearer(value: bytes) -> bool:
    """Say whether a value of the header Authorization is a key."""
    return value.strip()[: len(_SCHEME)].lower() == _SCHEME


def is_token(value: bytes, token: str | None) -> bool:
    """Say whether a header's value is the router's own token."""
    if token is None:
        return False
    if is_bearer(value):
        value = value[len(_SCHEME) :].strip()
    return compare_digest(value, token.encode())
