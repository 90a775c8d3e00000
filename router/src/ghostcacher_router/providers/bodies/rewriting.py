"""What is put into a request so that the provider's own cache works. In doubt the body goes as it came.

    Anthropic   POST /v1/messages                         `cache_control` at the ends of sections    breakpoints.py
    Bedrock     POST /model/ID/converse[-stream]          `cachePoint` at the ends of sections       cache_points.py
                POST /model/ID/invoke... of Claude        as Anthropic, for the usual time
    OpenAI      POST /v1/chat/completions, /v1/responses  `prompt_cache_key` of the shared prefix    cache_key.py

Nothing is done to bodies that are packed, no JSON in UTF-8, or very long. What is not understood stays, byte for byte.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Final

import msgspec

from ghostcacher_connector.core.types import SectionType
from ghostcacher_router.http.protocol.request_head import RequestHead
from ghostcacher_router.prompt import BadBody
from ghostcacher_router.prompt.named_sections import named_section_types
from ghostcacher_router.providers.bodies.breakpoints import with_breakpoints
from ghostcacher_router.providers.bodies.cache_key import PATHS, with_cache_key
from ghostcacher_router.providers.bodies.cache_points import with_cache_points
from ghostcacher_router.providers.bodies.json_places import Unclear
from ghostcacher_router.providers.choice import Provider, model_in_path

logger = logging.getLogger(__name__)

BYTES_MAX: Final = 16 << 20
"""The longest body that is looked into. A prompt of a million tokens has 4 MiB; what is longer has images in it."""
MESSAGES_MAX: Final = 1 << 20
"""No body has so many: only what the header says of places among them is bounded by it."""
CLAUDE_OR_CONVERSE = re.compile(r"/model/[^/]+/(converse|converse-stream|invoke|invoke-with-response-stream)")
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


def rewritten(
    provider: Provider, head: RequestHead, model: str | None, body: bytes, ttl: Mapping[SectionType, str]
) -> bytes:
    """Return the body of a request as a provider gets it; the same where there is nothing to add, or any doubt."""
    if head.method != "POST" or len(body) > BYTES_MAX or b"content-encoding" in head.headers:
        return body
    try:
        if provider is Provider.ANTHROPIC and head.path == "/v1/messages":
            _fields.decode(body)
            return with_breakpoints(body, model or "", _documents(head), ttl)
        if provider is Provider.OPENAI and head.path in PATHS:
            _fields.decode(body)
            return with_cache_key(head.path, body, head.headers)
        if provider is Provider.BEDROCK and (found := CLAUDE_OR_CONVERSE.fullmatch(head.path)) is not None:
            _fields.decode(body)
            named = model_in_path(head.path) or ""
            if found[1].startswith("converse"):
                return with_cache_points(body, named)
            if "anthropic." in named:
                # Not every model at Bedrock takes a time.
                return with_breakpoints(body, named, _documents(head), dict.fromkeys(ttl, "5m"))
    except (Unclear, BadBody, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        logger.debug("a body for %s goes as it came: %s", provider.value, type(exc).__name__)
    except Exception:
        logger.exception("a body for %s goes as it came", provider.value)
    return body


def _documents(head: RequestHead) -> list[int]:
    """Return which messages the client calls documents. Raises BadBody."""
    named = named_section_types(head.headers, None, MESSAGES_MAX)
    return [index for index, section in named.items() if section is SectionType.DOC]
