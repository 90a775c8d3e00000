"""From what came over the wire to answers and errors. No I/O."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

import httpx
import msgspec

from ghostcacher.client.answers import Answer, ChatChunk, Completion, MessageEvent
from ghostcacher.client.cache_info import CacheInfo, cache_info_of
from ghostcacher.client.calls import Api, Call
from ghostcacher.client.errors import (
    AnswerBroken,
    AnswerMalformed,
    AnswerTimeout,
    ConnectFailed,
    GhostCacherError,
    StatusError,
)
from ghostcacher.client.event_decoder import Event, EventDecoder
from ghostcacher.client.retries import retry_after_s_of

A = TypeVar("A", bound=Answer)
E = TypeVar("E", bound=ChatChunk | Completion | MessageEvent)
Kind = TypeVar("Kind")

ANSWER_BYTES_MAX = 256 << 20
"""Of an answer that is not streamed."""
MESSAGE_CHARS_MAX = 500
OK, NOT_OK = 200, 300


def answer_of(kind: type[A], data: bytes, headers: Mapping[str, str]) -> A:
    """Return an engine's answer. Raises AnswerMalformed."""
    raw = _decoded(data, dict[str, Any])
    answer = _converted(raw, kind)
    answer.raw = raw
    answer.cache = with_usage(cache_info_of(headers), answer)
    return answer


def admin_answer_of(kind: type[Kind], data: bytes) -> Kind:
    """Return the router's own answer. Raises AnswerMalformed."""
    return _decoded(data, kind)


def with_usage(cache: CacheInfo, told: Any) -> CacheInfo:
    """Return a cache info with the cached tokens that an answer's, or an event's, usage tells."""
    # Anthropic's first event has its usage in a message.
    usage = getattr(told, "usage", None) or getattr(getattr(told, "message", None), "usage", None)
    tokens = None if usage is None else usage.cached_tokens
    return cache if tokens is None else msgspec.structs.replace(cache, cached_tokens=tokens)


class EventReader(Generic[E]):
    """Turns the bytes of a stream into the events of an API.

    done: whether the stream has come to its own end. cache: what is known of the shared cache so far.
    """

    def __init__(self, api: Api[Any, E], headers: Mapping[str, str]) -> None:
        self._kind: type[E] = api.event
        self._decoder = EventDecoder()
        self.done = False
        self.cache = cache_info_of(headers)

    def feed(self, data: bytes) -> Iterator[E]:
        """Yield the events that end in these bytes. Raises AnswerBroken for one that tells of an error."""
        for event in self._decoder.feed(data):
            if self.done:
                return
            if event.data == "[DONE]":
                self.done = True
                return
            yield self._read(event)

    def end(self) -> None:
        """Note that no bytes come any more. Raises AnswerBroken where more should have come."""
        if not self.done:
            raise AnswerBroken("the stream ended before its last event")

    def _read(self, event: Event) -> E:
        raw = _decoded(event.data.encode(), dict[str, Any])
        if isinstance(error := raw.get("error"), dict):
            raise AnswerBroken(_said(error) or "the server told of an error", _code(error))
        self.done = raw.get("type") == "message_stop"
        read = _converted(raw, self._kind)
        self.cache = with_usage(self.cache, read)
        return read


def status_error(status: int, headers: Mapping[str, str], data: bytes) -> StatusError:
    """Return the error that an answer tells of, in the form of either API, or in none."""
    try:
        raw = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raw = None
    error = raw.get("error", raw) if isinstance(raw, dict) else None
    error = error if isinstance(error, dict) else {}
    message = _said(error) or data[:MESSAGE_CHARS_MAX].decode(errors="replace") or "no reason given"
    param = error.get("param")
    return StatusError(
        status,
        message[:MESSAGE_CHARS_MAX],
        code=_code(error),
        param=param if isinstance(param, str) else None,
        request_id=headers.get("x-request-id"),
        retry_after_s=retry_after_s_of(headers.get("retry-after"), time.time()),
    )


def failure_of(exc: httpx.RequestError, call: Call, *, begun: bool = False) -> GhostCacherError:
    """Return what an error of the transport means. begun: whether an answer had begun."""
    what = str(exc) or type(exc).__name__
    if isinstance(exc, httpx.ConnectTimeout | httpx.PoolTimeout):
        return ConnectFailed(f"{call.url}: no connection in time: {what}")
    if isinstance(exc, httpx.TimeoutException):
        part = "the next part of the answer" if begun else "no answer"
        return AnswerTimeout(f"{call.url}: {part} within {call.timeout_s:g} s: {what}")
    if isinstance(exc, httpx.DecodingError):
        return AnswerMalformed(f"{call.url}: expected a body in its content-encoding: {what}")
    if begun:
        return AnswerBroken(f"{call.url}: the connection broke off: {what}")
    return ConnectFailed(f"{call.url}: no answer: {what}")


def _said(error: Mapping[str, Any]) -> str | None:
    said = error.get("message", error.get("detail"))
    return said if isinstance(said, str) else None


def _code(error: Mapping[str, Any]) -> str | None:
    """Return OpenAI's code, or else the type, which Anthropic's API has alone."""
    code = error.get("code") or error.get("type")
    return None if code is None else str(code)


def _decoded(data: bytes, kind: type[Kind]) -> Kind:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise AnswerMalformed(f"expected an answer in JSON, got {data[:80]!r}: {exc}") from None


def _converted(raw: dict[str, Any], kind: type[Kind]) -> Kind:
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as exc:
        raise AnswerMalformed(f"expected {kind.__name__}: {exc}") from None
