"""What a line of a router's own access log says of a request: with `log_format = json` and `access_log_prompts`.

Prompts share what equal digests in `prefix` say: of two prompts each whole KiB is equal up to where their digests part.
A KiB is taken for 256 tokens, which it is where prompts come as token ids. How long answers are a router does not
know. Lines of other loggers, and requests without a prompt or an answer, are passed over.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from ghostcacher_simulator.load.requests import Row
from ghostcacher_simulator.load.trace_lines import TOKENS_MAX, BadTrace, explained
from ghostcacher_simulator.text import TOKEN_BYTES

LOGGER = "ghostcacher_router.access"
KIB_TOKENS = 1_024 // TOKEN_BYTES
HTTP_ERROR = 400
WITHOUT_PREFIX = (
    "prefix: expected digests of the prompt, got none: a router with log_format = json and access_log_prompts logs them"
)


class _Line(msgspec.Struct, gc=False):
    logger: str
    time: str
    status: int = 0
    took_ms: Annotated[float, Meta(ge=0, le=1e12)] = 0.0
    prompt_bytes: Annotated[int, Meta(ge=0, le=TOKENS_MAX * TOKEN_BYTES)] | None = None
    prompt_tokens: Annotated[int, Meta(ge=0, le=TOKENS_MAX)] | None = None
    prefix: list[str] | UnsetType | None = UNSET


class _Kind(msgspec.Struct, gc=False):
    logger: str | None = None


def is_log_line(line: bytes) -> bool:
    """Say whether a line of JSON is one of a router's log."""
    try:
        return msgspec.json.decode(line, type=_Kind).logger is not None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


class AccessLines:
    """Lines of a router's log."""

    _decoder = msgspec.json.Decoder(_Line)

    def __init__(self, block_tokens: int, answer_tokens: int) -> None:
        """answer_tokens: of each answer. Raises BadTrace for blocks that are no whole KiBs."""
        if block_tokens % KIB_TOKENS:
            raise BadTrace(
                f"expected blocks of a multiple of {KIB_TOKENS} tokens for an access log, got {block_tokens}"
            )
        self._block_tokens, self._answer_tokens = block_tokens, answer_tokens
        self._requests = 0

    def read(self, line: bytes) -> Row | None:
        """Return the request that a line says; None for other lines. Raises BadTrace."""
        try:
            entry = self._decoder.decode(line)
        except msgspec.ValidationError as exc:
            raise BadTrace(explained(str(exc))) from exc
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise BadTrace(f"expected one JSON object, got what is no JSON: {exc}") from exc
        if entry.logger != LOGGER or not 0 < entry.status < HTTP_ERROR:
            return None
        if entry.prefix is UNSET:
            raise BadTrace(WITHOUT_PREFIX)
        if entry.prefix is None or not entry.prompt_bytes:
            return None
        tokens = entry.prompt_tokens or -(-entry.prompt_bytes // TOKEN_BYTES)
        self._requests += 1
        return Row(self._came_at_s(entry), tokens, self._answer_tokens, self._segments(tokens, entry.prefix))

    def _came_at_s(self, entry: _Line) -> float:
        """Return when the request had come: the line was written when its answer had ended."""
        try:
            return datetime.fromisoformat(entry.time).timestamp() - entry.took_ms / 1e3
        except ValueError:
            expected = "such as 2026-01-02T03:04:05.678+00:00"
            raise BadTrace(f"time: expected {expected}, got {entry.time!r}") from None

    def _segments(self, tokens: int, prefix: list[str]) -> list[str]:
        """Return a name for each block: the digest at its end, and one of its own where there is none."""
        step = self._block_tokens // KIB_TOKENS
        ends = prefix[step - 1 : tokens // KIB_TOKENS : step]
        own = range(len(ends), -(-tokens // self._block_tokens))
        return [*ends, *(f"request {self._requests}/{place}" for place in own)]
