"""Anthropic's Messages API, as its public reference describes it: strict about requests, and with a prompt cache.

A token is four bytes of a block's JSON. The cache keeps the prompt up to each mark that is long enough, and finds it
again from a mark or from up to 20 blocks before one. Nothing is forgotten.
"""

from __future__ import annotations

import json
import re
from hashlib import sha256
from typing import Any, NamedTuple

from tests.support.providers.server import Asked, Peer

MARKS_MAX = 4
LOOKBACK_BLOCKS = 20
FIELDS = {
    *("model", "messages", "max_tokens", "system", "tools", "tool_choice", "metadata", "stop_sequences", "stream"),
    *("temperature", "top_k", "top_p", "thinking", "service_tier", "container", "mcp_servers", "cache_control"),
}
MARK = "cache_control"
BLOCK_FIELDS = {
    "text": {"type", "text", "citations", MARK},
    "image": {"type", "source", MARK},
    "document": {"type", "source", "title", "context", "citations", MARK},
    "tool_use": {"type", "id", "name", "input", MARK},
    "tool_result": {"type", "tool_use_id", "content", "is_error", MARK},
    "thinking": {"type", "thinking", "signature"},
}
TOOL_FIELDS = {"type", "name", "description", "input_schema", "defer_loading", MARK}
ERRORS = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error"}


class Refused(Exception):
    """The API refuses a request: status and message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class Block(NamedTuple):
    """One block of a prompt, as the cache sees it."""

    tokens: int
    digest: bytes
    """Of all blocks up to it."""
    mark: str | None
    """The time of its mark, 5m or 1h."""


def prompt_of(body: dict[str, Any]) -> list[Block]:
    """Return the blocks of a prompt in the order of the cache. Raises Refused for what the API refuses."""
    if unknown := body.keys() - FIELDS:
        raise Refused(400, f"{min(unknown)}: Extra inputs are not permitted")
    if not isinstance(body.get("max_tokens"), int) or not isinstance(body.get("messages"), list):
        raise Refused(400, "max_tokens: Field required")
    found: list[Block] = []
    digest = sha256(body["model"].encode())

    def add(where: str, value: dict[str, Any]) -> None:
        mark = _mark(f"{where}.{MARK}", value)
        data = json.dumps({key: value[key] for key in sorted(value) if key != MARK}).encode()
        digest.update(where.partition(".")[0].encode() + data)
        found.append(Block(len(data) // 4, digest.digest(), mark))

    for index, tool in enumerate(body.get("tools", [])):
        if tool.keys() - TOOL_FIELDS:
            raise Refused(400, f"tools.{index}: Extra inputs are not permitted")
        if tool.get("defer_loading") and MARK in tool:
            raise Refused(400, f"tools.{index}: a tool with defer_loading=true cannot have cache_control set")
        add(f"tools.{index}", tool)
    for index, block in enumerate(_blocks("system", body.get("system", []))):
        add(f"system.{index}", block)
    for index, message in enumerate(body["messages"]):
        if message.keys() != {"role", "content"} or message["role"] not in ("user", "assistant"):
            raise Refused(400, f"messages.{index}: expected role and content")
        for number, block in enumerate(_blocks(f"messages.{index}.content", message["content"])):
            add(f"messages{message['role']}.{index}.{number}", block)
    if (mark := _mark(MARK, body)) is not None:
        found[-1] = found[-1]._replace(mark=mark)
    _check_marks([block.mark for block in found if block.mark is not None])
    return found


def _blocks(where: str, content: Any) -> list[dict[str, Any]]:
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    for index, block in enumerate(blocks):
        if block.get("type") not in BLOCK_FIELDS or block.keys() - BLOCK_FIELDS[block["type"]]:
            raise Refused(400, f"{where}.{index}: Extra inputs are not permitted")
        if block["type"] == "text" and not block["text"].strip() and MARK in block:
            raise Refused(400, f"{where}.{index}: cache_control cannot be set for empty text blocks")
    return list(blocks)


def _mark(where: str, value: dict[str, Any]) -> str | None:
    mark = value.get(MARK)
    if mark is None:
        return None
    if mark.keys() - {"type", "ttl"} or mark.get("type") != "ephemeral" or mark.get("ttl", "5m") not in ("5m", "1h"):
        raise Refused(400, f"{where}: Input should be 'ephemeral'")
    return str(mark.get("ttl", "5m"))


def _check_marks(marks: list[str]) -> None:
    if len(marks) > MARKS_MAX:
        raise Refused(400, f"A maximum of 4 blocks with cache_control may be provided. Found {len(marks)}.")
    if "1h" in marks[marks.index("5m") :] if "5m" in marks else False:
        raise Refused(400, "a ttl='1h' cache_control block must not come after a ttl='5m' cache_control block")


class AnthropicApi:
    """A script of `ProviderServer`. tokens_min: the shortest prompt that is cached. key: the one that is right."""

    def __init__(self, *, tokens_min: int = 1024, key: str = "sk-ant-test") -> None:
        self._tokens_min, self._key = tokens_min, key
        self._kept: set[bytes] = set()

    async def __call__(self, peer: Peer, asked: Asked) -> None:
        try:
            body = self._checked(asked)
            usage = self._usage(prompt_of(body))
        except Refused as exc:
            error = {"type": ERRORS[exc.status], "message": exc.message}
            said = json.dumps({"type": "error", "error": error, "request_id": "req_0"}).encode()
            await peer.answer(exc.status, said, "request-id: req_0")
            return
        message = {"id": "msg_1", "type": "message", "role": "assistant", "model": body["model"], "content": []}
        message |= {"stop_reason": None, "stop_sequence": None, "usage": usage | {"output_tokens": 1}}
        if body.get("stream"):
            await self._stream(peer, message)
        else:
            text = {"type": "text", "text": "Hello there"}
            ended = {"content": [text], "stop_reason": "end_turn", "usage": usage | {"output_tokens": 2}}
            await peer.answer(200, json.dumps(message | ended).encode(), "request-id: req_1")

    def _checked(self, asked: Asked) -> dict[str, Any]:
        headers = asked.headers
        if self._key not in (headers.get("x-api-key"), headers.get("authorization", "").removeprefix("Bearer ")):
            raise Refused(401, "invalid x-api-key")
        if re.fullmatch(r"20\d\d-\d\d-\d\d", headers.get("anthropic-version", "")) is None:
            raise Refused(400, "anthropic-version: header is required")
        if asked.method != "POST" or asked.target.partition("?")[0] != "/v1/messages":
            raise Refused(404, "Not found")
        if headers.get("content-type") != "application/json":
            raise Refused(400, "expected application/json")
        return dict(json.loads(asked.body))

    def _usage(self, blocks: list[Block]) -> dict[str, Any]:
        """Return what a prompt takes from the cache and adds to it, and keep it."""
        sizes = [sum(block.tokens for block in blocks[: index + 1]) for index in range(len(blocks))]
        marked = [index for index, block in enumerate(blocks) if block.mark and sizes[index] >= self._tokens_min]
        looked = {each for index in marked for each in range(max(0, index - LOOKBACK_BLOCKS), index + 1)}
        hits = [index for index in looked if blocks[index].digest in self._kept]
        read = last = sizes[max(hits)] if hits else 0
        written = {"5m": 0, "1h": 0}
        for index in marked:
            if sizes[index] > last:
                written[blocks[index].mark or ""] += sizes[index] - last
                last = sizes[index]
            self._kept.add(blocks[index].digest)
        return {
            "input_tokens": sizes[-1] - last,
            "cache_read_input_tokens": read,
            "cache_creation_input_tokens": last - read,
            "cache_creation": {f"ephemeral_{ttl}_input_tokens": count for ttl, count in written.items()},
            "service_tier": "standard",
        }

    async def _stream(self, peer: Peer, message: dict[str, Any]) -> None:
        await peer.stream("request-id: req_1")
        delta = {"type": "text_delta", "text": "Hello"}
        usage = message["usage"] | {"output_tokens": 2}
        events: list[dict[str, Any]] = [
            {"type": "message_start", "message": message},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            {"type": "ping"},
            {"type": "content_block_delta", "index": 0, "delta": delta},
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": usage},
            {"type": "message_stop"},
        ]
        for event in events:
            await peer.chunk(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
        await peer.end()
