"""What one line of each format of traces says, read strictly: a value that is not as it should be is named.

    of                file  a line
    ----------------  ----  -------------------------------------------------------------------------------
    Mooncake, aiperf  JSON  timestamp or delay (ms), input_length, output_length, hash_ids, session_id
    Azure             CSV   TIMESTAMP, ContextTokens, GeneratedTokens
    BurstGPT          CSV   Timestamp (s), Request tokens, Response tokens, and Session ID where it has one
    a router's log    JSON  see access_lines.py

Fields and columns beside these are passed over. Prompts share what equal `hash_ids` say. In a session of a trace of
lengths alone, history grows: Mooncake's (aiperf's) input is what a turn adds to it, BurstGPT's is the whole prompt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from ghostcacher_connector.core.errors import GhostCacherError
from ghostcacher_simulator.load.requests import Row

TOKENS_MAX = 1 << 24
"""Of one prompt or answer: beyond all that engines take."""
DIGITS_OF_SECOND = 26
"""Characters of a time that Python reads: six digits of a second, and Azure's traces have seven."""
Tokens = Annotated[int, Meta(ge=1, le=TOKENS_MAX)]
AnswerTokens = Annotated[int, Meta(ge=0, le=TOKENS_MAX)]
Milliseconds = Annotated[float, Meta(ge=0, le=1e15)]
_WHOLE = re.compile(r"[0-9]{1,9}")


class BadTrace(GhostCacherError):
    """A line of a trace is not as its format wants it. The message names the file, line, column and value."""


_BODY_FIELDS = {"prompt", "messages", "input", "body"}
_BODIES = (
    "; the line is a request's body, which does not say when it came: `ghostcacher analyze` reads those, and "
    "`simulate` the access log of a router that has `access_log_prompts`"
)


class _HashesLine(msgspec.Struct, gc=False):
    input_length: Tokens
    output_length: AnswerTokens
    timestamp: Milliseconds | None = None
    delay: Milliseconds | None = None
    hash_ids: list[int | str] | None = None
    session_id: str | int | None = None


class _Session(NamedTuple):
    """What the turns of one session so far leave to the next one: the history's tokens, and the last arrival."""

    tokens: int
    at_s: float


class MooncakeLines:
    """Lines of JSON. block_tokens: that one hash stands for."""

    _decoder = msgspec.json.Decoder(_HashesLine)

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._sessions: dict[str, _Session] = {}

    def read(self, line: bytes) -> Row:
        """Return what a line says. Raises BadTrace."""
        try:
            entry = self._decoder.decode(line)
        except msgspec.ValidationError as exc:
            raise BadTrace(explained(str(exc)) + _BODIES * _is_body(line)) from exc
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise BadTrace(f"expected one JSON object, got what is no JSON: {exc}") from exc
        if entry.hash_ids is not None:
            self._check_hashes(entry.input_length, entry.hash_ids)
        session = None if entry.session_id is None else str(entry.session_id)
        before = self._sessions.get(session) if session is not None else None
        at_s = _arrival_s(entry, before)
        if session is None or entry.hash_ids is not None:
            if session is not None:
                self._sessions[session] = _Session(0, at_s)
            return Row(at_s, entry.input_length, entry.output_length, entry.hash_ids, (), session)
        tokens = (before.tokens if before else 0) + entry.input_length
        self._sessions[session] = _Session(tokens + entry.output_length, at_s)
        return Row(at_s, tokens, entry.output_length, history_of(session, tokens, self._block_tokens), (), session)

    def _check_hashes(self, tokens: int, hashes: Sequence[object]) -> None:
        wanted = -(-tokens // self._block_tokens)
        if len(hashes) != wanted:
            raise BadTrace(
                f"hash_ids: expected {wanted} for input_length {tokens} with {self._block_tokens} tokens each, "
                f"got {len(hashes)}"
            )


class AzureLines:
    """Lines of a CSV with the columns `COLUMNS`."""

    COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")

    def __init__(self, block_tokens: int) -> None:
        """block_tokens: nothing is said of texts, so any will do."""

    def read(self, cells: Mapping[str, str]) -> Row:
        """Return what a line says. cells: by column. Raises BadTrace."""
        text = cells["TIMESTAMP"]
        try:
            at_s = datetime.fromisoformat(text[:DIGITS_OF_SECOND]).timestamp()
        except ValueError:
            raise BadTrace(f"TIMESTAMP: expected such as 2023-11-16 18:17:03.9799600, got {text!r}") from None
        return Row(at_s, whole(cells, "ContextTokens", 1), whole(cells, "GeneratedTokens", 0), None)


class BurstGptLines:
    """Lines of a CSV with the columns `COLUMNS`, and perhaps SESSION."""

    COLUMNS = ("Timestamp", "Request tokens", "Response tokens")
    SESSION = "Session ID"

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens

    def read(self, cells: Mapping[str, str]) -> Row:
        """Return what a line says. cells: by column. Raises BadTrace."""
        try:
            at_s = float(cells["Timestamp"])
        except ValueError:
            at_s = -1.0
        if not 0 <= at_s < float("inf"):
            raise BadTrace(f"Timestamp: expected seconds from 0, got {cells['Timestamp']!r}")
        tokens, answer = whole(cells, "Request tokens", 1), whole(cells, "Response tokens", 0)
        session = cells.get(self.SESSION, "").strip() or None
        segments = None if session is None else history_of(session, tokens, self._block_tokens)
        return Row(at_s, tokens, answer, segments, (), session)


def history_of(session: str, tokens: int, block_tokens: int) -> list[str]:
    """Return the segments of a prompt that begins as all of its session do: the longer one goes on from the shorter."""
    return [f"session {session}/{place}" for place in range(-(-tokens // block_tokens))]


def whole(cells: Mapping[str, str], column: str, least: int) -> int:
    """Return a whole number of tokens. Raises BadTrace."""
    text = cells[column].strip()
    if not _WHOLE.fullmatch(text) or not least <= int(text) <= TOKENS_MAX:
        raise BadTrace(f"{column}: expected a whole number from {least} to {TOKENS_MAX}, got {text!r}")
    return int(text)


def _arrival_s(entry: _HashesLine, before: _Session | None) -> float:
    if entry.timestamp is not None:
        return entry.timestamp / 1e3
    if entry.delay is None or before is None:
        raise BadTrace("timestamp: expected milliseconds, or a delay after an earlier turn of its session_id, got none")
    return before.at_s + entry.delay / 1e3


def _is_body(line: bytes) -> bool:
    """Say whether a line of JSON is what clients send, and no line of a trace."""
    try:
        return not _BODY_FIELDS.isdisjoint(msgspec.json.decode(line, type=dict[str, msgspec.Raw]))
    except msgspec.DecodeError:
        return False


def explained(text: str) -> str:
    """Return msgspec's words with the field first: "hash_ids[2]: expected `int`, got `null`"."""
    what, _, where = text.partition(" - at `$")
    field = where.strip("`.")
    what = what[:1].lower() + what[1:]
    return f"{field}: {what}" if field else what
