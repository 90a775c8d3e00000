"""The key by which requests with the same beginning meet in OpenAI's cache."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

from ghostcacher_router.prompt import Reading, read_prompt
from ghostcacher_router.providers.bodies.cache_key import prefix_hash, with_cache_key

CHAT = "/v1/chat/completions"
LONG = "word " * 1000
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


def key_of(body: dict[str, Any], headers: dict[bytes, bytes] | None = None, path: str = CHAT) -> str | None:
    found = json.loads(with_cache_key(path, json.dumps({"model": "m"} | body).encode(), headers or {}))
    return found.get("prompt_cache_key")


def chat(system: str, *users: str, **more: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": user} for user in users]
    return {"messages": [{"role": "system", "content": system}, *turns]} | more


def test_key_is_of_what_is_shared_and_of_nothing_else() -> None:
    """Not of the model, the question, or the white space."""
    key = key_of(chat(LONG, "a"))
    assert key is not None
    assert len(key) <= 64
    assert key == key_of(chat(LONG, "b", "c")) == key_of(chat(LONG, "a") | {"model": "n"})
    assert key == key_of(chat("\n\t" + "word \n " * 1000, "a"))
    assert key == key_of({"instructions": LONG, "input": "a"}, path="/v1/responses")
    others = {key_of(chat(LONG + "x", "a")), key_of(chat(LONG, "a", tools=TOOLS)), key_of(chat(LONG[1:], "a"))}
    assert len(others | {key}) == 4


def test_key_is_the_hash_of_the_hashes() -> None:
    """SHA256(H_sys || sep || H_tools || sep || H_doc); a part that is missing is empty."""
    prompt = read_prompt(CHAT, json.dumps(chat("be  terse", "a")).encode(), Reading(0))
    assert prompt is not None
    _, end = prompt.section_ends[0]
    system = sha256(prompt.text[:end].replace(b"  ", b" ")).digest()
    assert prefix_hash(prompt) == sha256(system + b"\0" + b"\0").digest()


def test_documents_that_the_header_names_are_shared() -> None:
    named = {b"x-gc-sections": b"doc=1"}
    with_document = key_of(chat(LONG, "the document", "a"), named)
    assert with_document not in (None, key_of(chat(LONG, "the document", "a")))
    assert with_document == key_of(chat(LONG, "the document", "b"), named)
    assert with_document != key_of(chat(LONG, "another document", "a"), named)


def test_tools_are_shared_whatever_their_white_space() -> None:
    compact = json.dumps(chat(LONG, "a", tools=TOOLS), separators=(",", ":")).encode()
    wide = json.dumps(chat(LONG, "a", tools=TOOLS), indent=2).encode()
    keys = {json.loads(with_cache_key(CHAT, body, {}))["prompt_cache_key"] for body in (compact, wide)}
    assert len(keys) == 1
