"""Gives requests to OpenAI a ``prompt_cache_key``, so that those with the same beginning meet in one cache.

OpenAI sends requests with one key to the same machines as long as these keep up. The key is made of what many requests
share:

    H_prefix = SHA256(H_sys || sep || H_tools || sep || H_doc)

with white space taken for one space. That is for the key alone: what is sent is the client's text. A client's own key
stays, and so do all other fields, such as `store`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import sha256
from typing import Final

from ghostcacher_connector.core.types import SectionType
from ghostcacher_router.prompt import PromptText, Reading, TooMuch, read_prompt
from ghostcacher_router.providers.bodies.json_places import Insertion, JsonPlaces, Unclear, inserted

PATHS: Final = frozenset({"/v1/chat/completions", "/v1/responses"})
FIELD: Final = b"prompt_cache_key"
TOKENS_MIN: Final = 1024
"""The shortest prompt that OpenAI caches."""
BYTES_PER_TOKEN: Final = 3
KEY_CHARS: Final = 32
SEPARATOR: Final = b"\x00"
_SHARED: Final = (SectionType.SYS, SectionType.TOOLS, SectionType.DOC)
_SPACE = re.compile(rb"\s+")
_AROUND_FRAMES = re.compile(rb"\s*([\xf8-\xff])\s*")
"""The signs that begin a text in a prompt (prompt/assembly.py), and the white space at its edges."""


def with_cache_key(path: str, body: bytes, headers: Mapping[bytes, bytes]) -> bytes:
    """Return the body of a request with a key; the same where it has one, or shares nothing that would be cached.

    path: one of `PATHS`. body: valid JSON in UTF-8. Raises Unclear, BadBody.
    """
    text = JsonPlaces(body)
    if not text.is_object(text.top) or FIELD in text.fields(text.top):
        return body
    try:
        prompt = read_prompt(path, body, Reading(0), headers)
    except TooMuch as exc:
        raise Unclear("more parts than are walked") from exc
    if prompt is None or len(prompt.text) < TOKENS_MIN * BYTES_PER_TOKEN:
        return body
    prefix = prefix_hash(prompt)
    if prefix is None:
        return body
    field = b',"%b":"gc-%b"' % (FIELD, prefix.hex()[:KEY_CHARS].encode())
    return inserted(body, [Insertion(text.top.end - 1, field)])


def prefix_hash(prompt: PromptText) -> bytes | None:
    """Return H_prefix of a prompt, 32 bytes; None for one that begins with nothing that others share."""
    parts: dict[SectionType, list[bytes]] = {}
    start = 0
    for section, end in prompt.section_ends:
        if section not in _SHARED:
            break
        parts.setdefault(section, []).append(prompt.text[start:end])
        start = end
    if not parts:
        return None
    return sha256(SEPARATOR.join(_digest(parts.get(section, [])) for section in _SHARED)).digest()


def _digest(parts: list[bytes]) -> bytes:
    text = _AROUND_FRAMES.sub(rb"\1", _SPACE.sub(b" ", b"".join(parts)))
    return sha256(text.strip()).digest() if parts else b""
