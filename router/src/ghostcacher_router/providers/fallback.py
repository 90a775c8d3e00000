"""A provider in the place of own workers that cannot answer: which, for which model, and the request as it gets it.

Off by default, and twice so: the settings name a provider's model for an own one, and a request allows it by bringing a
key for the provider (`x-gc-upstream-key`). What it carries as its key otherwise is for own engines, and does not leave.
"""

from __future__ import annotations

from typing import Final

import msgspec

from ghostcacher_router.http.protocol.request_head import RequestHead
from ghostcacher_router.providers.bodies.json_places import JsonPlaces, Unclear
from ghostcacher_router.providers.choice import FALLBACK_PATHS, Fallback, Provider
from ghostcacher_router.providers.request_lines import AUTHORIZATION, is_token, leaving_lines

KEY_HEADER: Final = b"x-gc-upstream-key"
_KEYS: Final = (AUTHORIZATION, b"x-api-key")
_VERSION: Final = b"anthropic-version"


def allows(head: RequestHead, fallback: Fallback, admin_token: str | None) -> bool:
    """Say whether a request may go to a provider instead: it brings a key, and the provider has what it asks for."""
    key = head.headers.get(KEY_HEADER)
    if not key or is_token(key, admin_token):
        return False
    return head.method == "POST" and head.path in FALLBACK_PATHS[fallback.provider]


def fallback_lines(head: RequestHead, fallback: Fallback, admin_token: str | None) -> list[bytes]:
    """Return the header lines of the request at the provider, without line ends."""
    lines = leaving_lines(fallback.provider, head, admin_token)
    lines = [line for line in lines if line.partition(b":")[0].lower() not in _KEYS]
    key = head.headers[KEY_HEADER]
    if fallback.provider is Provider.OPENAI:
        return [*lines, b"Authorization: Bearer %b" % key]
    if _VERSION not in head.headers:
        lines.append(b"anthropic-version: 2023-06-01")
    return [*lines, b"x-api-key: %b" % key]


def with_model(body: bytes, model: str) -> bytes:
    """Return a body that names another model, and is otherwise the same. Raises Unclear."""
    text = JsonPlaces(body)
    place = text.fields(text.top).get(b"model") if text.is_object(text.top) else None
    if place is None:
        raise Unclear("it names no model")
    return body[: place.start] + msgspec.json.encode(model) + body[place.end :]
