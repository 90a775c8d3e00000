"""Bodies of requests for tests of prompts, and how far two prompts are the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ghostcacher_router.prompt import parse_body
from ghostcacher_router.types import Prompt, RequestShape

SEED = 7
CHAT, COMPLETIONS, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/messages"
RESPONSES, EMBEDDINGS = "/v1/responses", "/v1/embeddings"
KNOWN = (CHAT, COMPLETIONS, MESSAGES, RESPONSES, EMBEDDINGS)

LONG = "lorem ipsum dolor sit amet " * 60


def shape(path: str, body: Any, headers: Mapping[bytes, bytes] | None = None, **dumps: Any) -> RequestShape:
    return parse_body(path, json.dumps(body, **dumps).encode(), headers or {}, SEED)


def prompt_of(path: str, body: Any, headers: Mapping[bytes, bytes] | None = None, **dumps: Any) -> Prompt:
    prompt = shape(path, body, headers, **dumps).prompt
    assert prompt is not None
    return prompt


def chat(*messages: Any, headers: Mapping[bytes, bytes] | None = None, **fields: Any) -> Prompt:
    return prompt_of(CHAT, {"model": "m", "messages": list(messages), **fields}, headers)


def say(role: str, content: Any, **fields: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **fields}


def sections(prompt: Prompt) -> list[str]:
    return [section.name for section, _ in prompt.section_ends]


def shared(one: Prompt, two: Prompt) -> int:
    """Bytes up to the deepest boundary that both have."""
    known = set(one.digests)
    return max((end for end, digest in zip(two.ends, two.digests, strict=True) if digest in known), default=0)
