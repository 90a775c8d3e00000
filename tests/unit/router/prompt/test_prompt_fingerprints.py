"""The digests of prompts, pinned: replicas of different versions share what they learn under these."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ghostcacher_router.prompt import parse_body, parse_now
from tests.support.prompts import CHAT, COMPLETIONS, EMBEDDINGS, LONG, MESSAGES, RESPONSES, SEED, say

BODIES: dict[str, Any] = {
    CHAT: {
        "model": "m",
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"z": {"type": "string"}, "a": {}}}}],
        "documents": [{"text": LONG}],
        "cache_salt": "s",
        "messages": [
            say("system", LONG),
            say("user", [{"type": "text", "text": "é"}, {"type": "image_url", "image_url": {"url": "data:" + LONG}}]),
            say("assistant", None, tool_calls=[{"id": "c", "function": {"name": "f", "arguments": "{}"}}]),
            say("tool", "1", tool_call_id="c"),
            say("user", "x", name="n"),
        ],
    },
    COMPLETIONS: {"model": "m", "prompt": LONG, "suffix": "s"},
    MESSAGES: {
        "model": "m",
        "system": [{"type": "text", "text": "x-anthropic-billing-header: a\n" + LONG}],
        "messages": [
            say("user", [{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": LONG}]}]),
            say("assistant", [{"type": "tool_use", "id": "t", "name": "f", "input": {"b": 1, "a": [2]}}]),
        ],
    },
    RESPONSES: {
        "model": "m",
        "instructions": "i",
        "input": [
            say("user", "x"),
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": LONG},
        ],
    },
    EMBEDDINGS: {"model": "m", "input": [list(range(700)), [1]]},
}

LAST = {
    CHAT: "61e7800d72b4442498d6e1520b568d42",
    COMPLETIONS: "e26eb10452ddc522ec005cfb0a455cda",
    MESSAGES: "0b5ef9ebdd2c186d0ec6f2e3c8068823",
    RESPONSES: "02b9b1ee38965e47749b357a8f2c59ba",
    EMBEDDINGS: "9eaa14479e61b038157d196f2919647f",
}
"""The digest of the whole prompt, which covers every byte of it and the preamble."""


@pytest.mark.parametrize("path", BODIES)
def test_digest_of_a_prompt_stays(path: str) -> None:
    """Read at once or at leisure, with ordinary fields and with others."""
    body = json.dumps(BODIES[path]).encode()
    other = json.dumps(BODIES[path] | {"kv_transfer_params": {"a": [1]}, "temperature": 1}).encode()
    for parsed in (parse_body(path, body, {}, SEED), parse_now(path, body, {}, SEED), parse_now(path, other, {}, SEED)):
        assert parsed is not None
        assert parsed.prompt is not None
        assert parsed.prompt.digests[-1].hex() == LAST[path]
