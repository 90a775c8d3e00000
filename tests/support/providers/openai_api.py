"""OpenAI's chat completions and responses, as their public reference describes them: strict, with a prompt cache.

A token is four bytes. Prompts from 1,024 tokens on are kept, in steps of 128, on the machine that a request comes to:
which one, the beginning of the prompt and `prompt_cache_key` decide together. Nothing is forgotten.
"""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

from tests.support.providers.anthropic_api import Refused
from tests.support.providers.server import Asked, Peer

TOKENS_MIN, TOKENS_STEP = 1024, 128
FIELDS = {
    "/v1/chat/completions": {
        *("model", "messages", "tools", "tool_choice", "stream", "stream_options", "store", "metadata", "temperature"),
        *(
            "max_completion_tokens",
            "max_tokens",
            "top_p",
            "prompt_cache_key",
            "prompt_cache_options",
            "user",
            "n",
            "response_format",
        ),
    },
    "/v1/responses": {
        *("model", "input", "instructions", "tools", "tool_choice", "stream", "store", "metadata", "temperature"),
        *("max_output_tokens", "prompt_cache_key", "prompt_cache_options", "previous_response_id"),
    },
}


class OpenAiApi:
    """A script of `ProviderServer`. key: the one that is right. keys: the `prompt_cache_key` of each request."""

    def __init__(self, key: str = "sk-test") -> None:
        self._key = key
        self._kept: set[tuple[object, ...]] = set()
        self.keys: list[Any] = []

    async def __call__(self, peer: Peer, asked: Asked) -> None:
        try:
            body = self._checked(asked)
        except Refused as exc:
            error = {"message": exc.message, "type": "invalid_request_error", "param": None, "code": None}
            await peer.answer(exc.status, json.dumps({"error": error}).encode(), "x-request-id: req_9")
            return
        if asked.target == "/v1/responses":
            await self._respond(peer, body)
        else:
            await self._complete(peer, body)

    def _checked(self, asked: Asked) -> dict[str, Any]:
        if asked.headers.get("authorization") != f"Bearer {self._key}":
            raise Refused(401, "Incorrect API key provided")
        if asked.method != "POST" or asked.target not in FIELDS:
            raise Refused(404, f"Invalid URL ({asked.method} {asked.target})")
        body: dict[str, Any] = json.loads(asked.body)
        if unknown := body.keys() - FIELDS[asked.target]:
            raise Refused(400, f"Unknown parameter: '{min(unknown)}'.")
        key = body.get("prompt_cache_key")
        if key is not None and not (isinstance(key, str) and len(key) <= 64):
            raise Refused(400, "Invalid 'prompt_cache_key': string too long.")
        self.keys.append(key)
        return body

    def _tokens(self, body: dict[str, Any]) -> tuple[int, int]:
        """Return the tokens of a prompt, and those of them that the cache had."""
        parts = [body.get("tools"), body.get("instructions"), body.get("messages"), body.get("input")]
        prompt = json.dumps(parts).encode()
        machine = sha256(prompt[:1024] + str(body.get("prompt_cache_key")).encode()).digest()
        tokens = len(prompt) // 4
        steps = range(TOKENS_MIN, tokens + 1, TOKENS_STEP)
        keys = {count: (machine, body["model"], prompt[: 4 * count]) for count in steps}
        cached = max((count for count, key in keys.items() if key in self._kept), default=0)
        self._kept.update(keys.values())
        return tokens, cached

    async def _complete(self, peer: Peer, body: dict[str, Any]) -> None:
        tokens, cached = self._tokens(body)
        usage = {"prompt_tokens": tokens, "completion_tokens": 2, "total_tokens": tokens + 2}
        details = {"prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0}}
        head = {"id": "chatcmpl-1", "created": 1, "model": body["model"] + "-2026-01-01"}
        if not body.get("stream"):
            message = {"role": "assistant", "content": "Hello there", "refusal": None}
            choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
            said = head | {"object": "chat.completion", "choices": [choice], "usage": usage | details}
            await peer.answer(200, json.dumps(said).encode(), "x-request-id: req_9")
            return
        head |= {"object": "chat.completion.chunk"}
        await peer.stream("x-request-id: req_9")
        for word in ("Hello", " there"):
            delta = {"index": 0, "delta": {"role": "assistant", "content": word}, "finish_reason": None}
            await self._event(peer, head | {"choices": [delta], "usage": None})
        await self._event(peer, head | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": None})
        if (body.get("stream_options") or {}).get("include_usage"):
            await self._event(peer, head | {"choices": [], "usage": usage | details})
        await peer.chunk(b"data: [DONE]\n\n")
        await peer.end()

    async def _respond(self, peer: Peer, body: dict[str, Any]) -> None:
        tokens, cached = self._tokens(body)
        text = {"type": "output_text", "text": "Hello there", "annotations": []}
        message = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [text]}
        usage = {
            "input_tokens": tokens,
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
            "output_tokens": 2,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": tokens + 2,
        }
        response = {
            "id": "resp_1",
            "object": "response",
            "created_at": 1,
            "model": body["model"],
            "status": "completed",
        }
        response |= {
            "output": [message],
            "usage": usage,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
        }
        if not body.get("stream"):
            await peer.answer(200, json.dumps(response).encode(), "x-request-id: req_9")
            return
        await peer.stream("x-request-id: req_9")
        begun = response | {"status": "in_progress", "output": [], "usage": None}
        await self._event(peer, {"type": "response.created", "sequence_number": 0, "response": begun}, named=True)
        await self._event(peer, {"type": "response.completed", "sequence_number": 1, "response": response}, named=True)
        await peer.end()

    async def _event(self, peer: Peer, event: dict[str, Any], *, named: bool = False) -> None:
        name = f"event: {event['type']}\n" if named else ""
        await peer.chunk(f"{name}data: {json.dumps(event)}\n\n".encode())
