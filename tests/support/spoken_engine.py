"""A simulated engine that speaks OpenAI's and Anthropic's APIs in their own shapes, and fails as a request asks it to.

A body's ``fault`` names what goes wrong: see `SpokenApi._fault`. The engine runs on a loop of its own thread, and
enters itself in Redis, so that a router forecasts for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self

from ghostcacher_connector.core.coordination.redis import RedisCoordinationStore
from ghostcacher_connector.core.index.redis import RedisIndex
from ghostcacher_connector.core.schema import SCHEMA_VERSION
from ghostcacher_connector.core.types import Role, WorkerRecord
from ghostcacher_simulator.api import EngineApi
from ghostcacher_simulator.connector import Connector, ConnectorThread
from ghostcacher_simulator.engine import Engine, Prefilled, Profile
from ghostcacher_simulator.http_server import LAST_CHUNK, EngineServer, Peer, Received, chunk, content, stream_head
from ghostcacher_simulator.text import BLOCK_TOKENS

LEASE_S = 60.0
REDIS_TIMEOUT_S = 5.0
PIECES = ("Süß", " 😀", " is\n", "it.")
"""Of every answer, one an event. No byte of it can be cut off unnoticed."""
TEXT = "".join(PIECES)
CHUNK_BYTES = 7
"""So that events, and characters within them, come in parts."""
Events = Sequence[bytes]


class Said(NamedTuple):
    """An answer in the form of one API."""

    whole: dict[str, Any]
    """Not streamed."""
    events: Events
    """Streamed; the last one ends the stream."""
    error: bytes
    """The event that tells of an error."""


class SpokenApi(EngineApi):
    """The handler of such an engine.

    left: faults whose client has left. tried_at: when each fault was asked for, in s.
    """

    def __init__(self) -> None:
        super().__init__(models=["m"])
        self.left: list[str] = []
        self.tried_at: defaultdict[str, list[float]] = defaultdict(list)
        self._forms = {"/v1/chat/completions": _chat, "/v1/completions": _completion, "/v1/messages": _message}

    async def __call__(self, peer: Peer, request: Received) -> None:
        """Answer one request."""
        form = self._forms.get(request.path)
        if request.method != "POST" or form is None:
            await super().__call__(peer, request)
            return
        body = json.loads(request.body)
        assert self.engine is not None
        text = json.dumps([body.get(name) for name in ("system", "messages", "prompt")]).encode()
        prefilled = await self.engine.prefill(request.headers.get(b"x-request-id", b"").decode(), text)
        self.engine.release(prefilled)
        said = form(body, prefilled)
        if "fault" in body:
            await self._fault(peer, said, **body["fault"])
        elif body.get("stream"):
            _stream(peer, said.events)
        else:
            peer.send(content(json.dumps(said.whole).encode()))

    async def _fault(self, peer: Peer, said: Said, kind: str, name: str = "", **how: Any) -> None:
        """Fail. kind: how; name: of this one, under which it is counted."""
        self.tried_at[name].append(time.monotonic())
        whole = json.dumps(said.whole).encode()
        match kind:
            case "status":  # The first `times`: `status`, with `headers` and `body`.
                refused = len(self.tried_at[name]) <= how.get("times", 99)
                lines = [line.encode() for line in how.get("headers", [])]
                text = how.get("body", '{"error": {"message": "busy", "code": "busy"}}').encode()
                peer.send(content(text, *lines, status=how["status"]) if refused else content(whole))
            case "reset":  # Close without a byte.
                peer.abort()
            case "cut":  # Close in the middle of an answer that is not streamed.
                peer.send(content(whole)[:-10])
                await peer.writer.drain()
                peer.close()
            case (
                "cut_stream" | "end_stream" | "error_event"
            ):  # After all but the last event: close, end, tell of an error.
                _stream(peer, [*said.events[:-1], said.error] if kind == "error_event" else said.events[:-1], end=False)
                await peer.writer.drain()
                if kind == "cut_stream":
                    peer.close()
                else:
                    peer.send(LAST_CHUNK)
            case "stall":  # Go silent in the middle of a stream.
                _stream(peer, said.events[:-1], end=False)
                await self._until_left(peer, name)
            case "mute":  # Say nothing.
                await self._until_left(peer, name)
            case "garbage":  # Answer something else.
                peer.send(content(b"<html>"))
            case _:
                raise AssertionError(kind)

    async def _until_left(self, peer: Peer, name: str) -> None:
        await peer.left()
        self.left.append(name)
        peer.close()


class SpokenEngine:
    """Such an engine, as a context manager. name: the worker's."""

    def __init__(self, redis_url: str, name: str) -> None:
        self.api = SpokenApi()
        self.server = EngineServer(self.api)
        self.name = name
        self._redis_url = redis_url
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    @property
    def asked(self) -> list[Received]:
        """The prompts that have come, in order, without what probes ask."""
        return [request for request in self.server.received if request.method == "POST"]

    def body(self) -> dict[str, Any]:
        """Return the last prompt's body."""
        return dict(json.loads(self.asked[-1].body))

    def header(self, name: str) -> str | None:
        """Return a header of the last prompt."""
        value = self.asked[-1].headers.get(name.encode())
        return None if value is None else value.decode()

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self.server.start(), self._loop).result(60)
        record = WorkerRecord(
            schema=SCHEMA_VERSION,
            worker=self.name,
            incarnation=b"s" * 16,
            namespace="spoken",
            fingerprint={"model": "m"},
            role=Role.BOTH,
            http=self.url,
            block_tokens=BLOCK_TOKENS,
            started_at=time.time(),
            ranks=(),
            stamped=True,
        )
        self._stores = contextlib.ExitStack()
        index = RedisIndex(self._redis_url, timeout_s=REDIS_TIMEOUT_S)
        store = RedisCoordinationStore(self._redis_url, timeout_s=REDIS_TIMEOUT_S)
        connector = Connector(index, store, record, lease_ttl_s=LEASE_S, peers=lambda: ())
        self.api.engine = Engine(Profile(), connector)
        connector.load = self.api.engine.load
        thread = ConnectorThread(connector, LEASE_S)
        self._stores.callback(store.close)
        self._stores.callback(index.close)
        self._stores.callback(thread.leave)
        thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stores.close()
        asyncio.run_coroutine_threadsafe(self.server.stop(), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self._loop.close()
        assert self.server.failures == []


def _stream(peer: Peer, events: Events, *, end: bool = True) -> None:
    data = b"".join(events)
    pieces = [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)]
    peer.send(stream_head(), *map(chunk, pieces), *([LAST_CHUNK] if end else []))


def _data(value: Any, name: str = "") -> bytes:
    field = f"event: {name}\n" if name else ""
    return f"{field}data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()


def _usage(prefilled: Prefilled) -> dict[str, Any]:
    cached = prefilled.local_tokens + prefilled.pulled_tokens
    prompt = cached + prefilled.computed_tokens
    details = {"cached_tokens": cached}
    return {
        "prompt_tokens": prompt,
        "completion_tokens": 4,
        "total_tokens": prompt + 4,
        "prompt_tokens_details": details,
    }


def _chat(body: dict[str, Any], prefilled: Prefilled) -> Said:
    head = {"id": "chatcmpl-1", "created": 1, "model": body["model"]}
    message = {"role": "assistant", "content": TEXT, "tool_calls": [], "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    whole = head | {"object": "chat.completion", "choices": [choice], "usage": _usage(prefilled)}
    deltas = [{"role": "assistant", "content": ""}, *({"content": piece} for piece in PIECES), {}]
    events = _openai_events(body, head, prefilled, [{"index": 0, "delta": delta} for delta in deltas])
    return Said(
        whole, events, _data({"error": {"message": "out of memory", "type": "InternalServerError", "code": 500}})
    )


def _completion(body: dict[str, Any], prefilled: Prefilled) -> Said:
    head = {"id": "cmpl-1", "created": 1, "model": body["model"]}
    choice = {"index": 0, "text": TEXT, "finish_reason": "stop", "logprobs": None}
    whole = head | {"object": "text_completion", "choices": [choice], "usage": _usage(prefilled)}
    events = _openai_events(body, head, prefilled, [{"index": 0, "text": piece} for piece in PIECES])
    return Said(
        whole, events, _data({"error": {"message": "out of memory", "type": "InternalServerError", "code": 500}})
    )


def _openai_events(body: dict[str, Any], head: Any, prefilled: Prefilled, choices: list[dict[str, Any]]) -> Events:
    choices[-1]["finish_reason"] = "stop"
    events = [_data(head | {"choices": [choice]}) for choice in choices]
    if (body.get("stream_options") or {}).get("include_usage"):
        events.append(_data(head | {"choices": [], "usage": _usage(prefilled)}))
    return [b": a comment\n\n", *events, b"data: [DONE]\n\n"]


def _message(body: dict[str, Any], prefilled: Prefilled) -> Said:
    counted = _usage(prefilled)
    usage = {
        # As that API counts: without those that come from a cache.
        "input_tokens": counted["prompt_tokens"] - counted["prompt_tokens_details"]["cached_tokens"],
        "output_tokens": 4,
        "cache_read_input_tokens": counted["prompt_tokens_details"]["cached_tokens"],
    }
    whole = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": [{"type": "text", "text": TEXT}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": usage,
    }
    return Said(
        whole,
        list(_message_events(whole, usage)),
        _data({"type": "error", "error": {"type": "overloaded_error", "message": "out of memory"}}, "error"),
    )


def _message_events(whole: dict[str, Any], usage: dict[str, Any]) -> Iterator[bytes]:
    begun = whole | {"content": [], "stop_reason": None, "usage": usage | {"output_tokens": 0}}
    yield _data({"type": "message_start", "message": begun}, "message_start")
    yield _data(
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        "content_block_start",
    )
    for piece in PIECES:
        delta = {"type": "text_delta", "text": piece}
        yield _data({"type": "content_block_delta", "index": 0, "delta": delta}, "content_block_delta")
    yield _data({"type": "content_block_stop", "index": 0}, "content_block_stop")
    yield _data(
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 4}}, "message_delta"
    )
    yield _data({"type": "message_stop"}, "message_stop")
