"""What an answer of a provider says that it used, read along while it passes through. No I/O.

    JSON               the field `usage` of the whole answer
    server-sent events `usage` of each event that has one; what comes later goes over what came before
    AWS's event stream the same, of each message

Bounded in memory: of an answer that is too long nothing is known.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple, Protocol

import msgspec

BYTES_MAX: Final = 8 << 20
"""Of a JSON answer, an event or a message: the last event of a long answer holds all of it."""
_PRELUDE: Final = Struct(">III")
_CRC_BYTES: Final = 4


class Usage(NamedTuple):
    """Tokens of one answer; each token of the prompt counts once."""

    input_tokens: int
    """Neither read from the cache nor written to it."""
    read_tokens: int
    """Read from the cache."""
    written_tokens: int
    """Written to the cache for the provider's usual time."""
    written_long_tokens: int
    """Written to the cache for an hour or more."""
    output_tokens: int
    """Of the answer."""


class UsageReader(Protocol):
    """Takes the content of one answer in pieces."""

    def feed(self, data: bytes) -> None:
        """Take in the next piece; never raises."""

    def usage(self) -> Usage | None:
        """Return what the answer used, as far as it has come; None when it did not say."""


class _CacheCreation(msgspec.Struct):
    ephemeral_1h_input_tokens: int | None = None


class _WriteDetails(msgspec.Struct):
    ttl_12h_tokens: int | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    cache_write_tokens_details: _WriteDetails | None = None


class _Said(msgspec.Struct):
    """The field `usage` in the forms that providers have: Anthropic's and OpenAI's responses, its chat, Bedrock's."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_creation: _CacheCreation | None = None
    input_tokens_details: _PromptDetails | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    inputTokens: int | None = None
    outputTokens: int | None = None
    cacheReadInputTokens: int | None = None
    cacheWriteInputTokens: int | None = None


class _Inner(msgspec.Struct):
    usage: _Said | None = None


class _Answer(msgspec.Struct):
    usage: _Said | None = None
    message: _Inner | str | None = None
    """Of Anthropic's `message_start`. Errors have a text there."""
    response: _Inner | None = None
    """Of the events of OpenAI's responses."""


_answer = msgspec.json.Decoder(_Answer)


class _Gathered:
    """What was said so far. Each field counts as it was said last."""

    def __init__(self) -> None:
        self._said: _Said | None = None

    def take(self, json: bytes) -> None:
        try:
            answer = _answer.decode(json)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return
        inner = answer.message if isinstance(answer.message, _Inner) else answer.response
        said = answer.usage or (None if inner is None else inner.usage)
        if said is None:
            return
        if self._said is None:
            self._said = said
            return
        for name in said.__struct_fields__:
            if (value := getattr(said, name)) is not None:
                setattr(self._said, name, value)

    def usage(self) -> Usage | None:
        return None if self._said is None else _usage_of(self._said)


class JsonUsage:
    """Reads an answer that is one JSON object."""

    def __init__(self) -> None:
        self._body = bytearray()

    def feed(self, data: bytes) -> None:
        if len(self._body) <= BYTES_MAX:
            self._body += data

    def usage(self) -> Usage | None:
        gathered = _Gathered()
        if len(self._body) <= BYTES_MAX:
            gathered.take(bytes(self._body))
        return gathered.usage()


class EventUsage:
    """Reads server-sent events, line by line: each of an API's events has its JSON in one."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._gathered = _Gathered()

    def feed(self, data: bytes) -> None:
        *lines, rest = data.split(b"\n")
        for piece in lines:
            line = bytes(self._line) + piece if self._line else piece
            self._line.clear()
            if line.startswith(b"data:") and b'"usage"' in line and len(line) <= BYTES_MAX:
                self._gathered.take(line[5:].strip())
        if len(self._line) <= BYTES_MAX:
            self._line += rest

    def usage(self) -> Usage | None:
        return self._gathered.usage()


class AwsEventUsage:
    """Reads AWS's event stream: messages with a length in front, whose payload is JSON."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self._gathered = _Gathered()
        self._lost = False
        """Whether it is unknown where a message begins."""

    def feed(self, data: bytes) -> None:
        if self._lost:
            return
        self._pending += data
        while len(self._pending) >= _PRELUDE.size:
            size, header_bytes, _ = _PRELUDE.unpack_from(self._pending)
            if not _PRELUDE.size + header_bytes + _CRC_BYTES <= size <= BYTES_MAX:
                self._lost = True
                self._pending.clear()
                return
            if len(self._pending) < size:
                return
            payload = bytes(self._pending[_PRELUDE.size + header_bytes : size - _CRC_BYTES])
            del self._pending[:size]
            if b'"usage"' in payload:
                self._gathered.take(payload)

    def usage(self) -> Usage | None:
        return self._gathered.usage()


def _usage_of(said: _Said) -> Usage | None:
    """Return what was said, in one form."""
    if said.prompt_tokens is not None:
        return _of_openai(said.prompt_tokens, said.prompt_tokens_details, said.completion_tokens)
    if said.inputTokens is not None:
        written = said.cacheWriteInputTokens or 0
        return Usage(said.inputTokens, said.cacheReadInputTokens or 0, written, 0, said.outputTokens or 0)
    if said.input_tokens is None:
        return None
    if said.input_tokens_details is not None:
        return _of_openai(said.input_tokens, said.input_tokens_details, said.output_tokens)
    written = said.cache_creation_input_tokens or 0
    long = (said.cache_creation.ephemeral_1h_input_tokens or 0) if said.cache_creation is not None else 0
    long = min(written, long)
    return Usage(said.input_tokens, said.cache_read_input_tokens or 0, written - long, long, said.output_tokens or 0)


def _of_openai(prompt: int, details: _PromptDetails | None, output: int | None) -> Usage:
    """Return usage in OpenAI's form, in which the prompt's tokens are all of them."""
    details = details or _PromptDetails()
    read, written = details.cached_tokens or 0, details.cache_write_tokens or 0
    long = 0
    if details.cache_write_tokens_details is not None:
        long = min(written, details.cache_write_tokens_details.ttl_12h_tokens or 0)
    return Usage(max(0, prompt - read - written), read, written - long, long, output or 0)
