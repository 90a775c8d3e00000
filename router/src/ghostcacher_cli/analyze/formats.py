"""Which kinds of lines can be analyzed, and what a line of each says: one request a line, in JSON.

    {"prompt": "text"}                                          text, or a body of /v1/completions
    {"prompt": [1, 2, 3]}, {"prompt_token_ids": [1, 2, 3]}      token ids
    {"messages": [...], "tools": [...], "system": ...}          bodies of /v1/chat/completions and /v1/messages
    {"input": ..., "instructions": ...}                         bodies of /v1/responses
    {"custom_id": ..., "url": "/v1/...", "body": {...}}         requests of a batch, as for OpenAI's batch API
    {"hash_ids": [0, 7], "input_length": 600, "timestamp": 0}   block hashes, as in Mooncake's traces; timestamp in ms

Bodies are read by the router's own code: text stands in the order of the engine's template, and what makes two prompts
different to an engine (the model, a cache salt) makes them different here. All lines of a file are of one kind, which
its first line shows.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from msgspec import Meta, Raw

from ghostcacher_connector.core.errors import GhostCacherError
from ghostcacher_connector.core.types import SectionType
from ghostcacher_router.prompt import PROMPT_PATHS, BadBody, PromptText, Reading, TooMuch, read_prompt

ID_BYTES: Final = 4
"""The bytes of one token id in `Request.data`."""
SEED = 0
"""Of digests of media: anything serves, as nothing leaves this process."""
CHAT_PATH, COMPLETIONS_PATH, RESPONSES_PATH = "/v1/chat/completions", "/v1/completions", "/v1/responses"
SHOWN_FIELDS = 6
_SEVERAL = re.compile(rb'\[[ \t]*["\[]')


class BadLine(GhostCacherError):
    """A line that is no request of the kind that its file holds. The message names the field, and what was expected."""


class Request(NamedTuple):
    """What one line says."""

    data: bytes | Sequence[int | str]
    """The prompt: text, token ids of `ID_BYTES` each, or block hashes."""
    preamble: bytes = b""
    """What makes every block of the prompt another one without being part of it."""
    sections: Sequence[tuple[SectionType, int]] = ()
    """The type of each section, and where in the data it ends; none where nothing tells."""
    tokens: int | None = None
    """How many tokens the prompt has; None where that is not said."""
    arrived_s: float | None = None
    """When it came, in s of any clock; None where that is not said."""


class Kind(NamedTuple):
    """What the lines of a file are."""

    name: str
    """For people, in the plural."""
    field: str
    """The field that holds the prompt."""
    path: str | None
    """The API whose bodies the lines are; None when they are none, or each names its own."""
    unit: str
    """What the data of a request consists of: "text", "ids" or "hashes"."""


TEXTS = Kind("text prompts", "prompt", COMPLETIONS_PATH, "text")
IDS = Kind("prompts of token ids", "prompt", COMPLETIONS_PATH, "ids")
TOKEN_IDS = Kind("prompts of token ids", "prompt_token_ids", None, "ids")
CHATS = Kind("chat requests", "messages", CHAT_PATH, "text")
RESPONSES = Kind("requests for responses", "input", RESPONSES_PATH, "text")
BATCH = Kind("requests of a batch", "body", None, "text")
HASHES = Kind("block hashes", "hash_ids", None, "hashes")


class _HashLine(msgspec.Struct, gc=False):
    hash_ids: list[int | str]
    input_length: Annotated[int, Meta(ge=0)] | None = None
    timestamp: float | None = None


class _IdsLine(msgspec.Struct, gc=False):
    prompt_token_ids: list[int]


class _BatchLine(msgspec.Struct, gc=False):
    url: str
    body: Raw


_fields = msgspec.json.Decoder(dict[str, Raw])
_hashes = msgspec.json.Decoder(_HashLine)
_ids = msgspec.json.Decoder(_IdsLine)
_batch = msgspec.json.Decoder(_BatchLine)


def kind_of(line: bytes) -> Kind:
    """Return what a file holds whose first line this is. Raises BadLine."""
    fields = _decoded(_fields, line)
    if "hash_ids" in fields:
        return HASHES
    if "prompt_token_ids" in fields:
        return TOKEN_IDS
    if "prompt" in fields:
        return IDS if bytes(fields["prompt"]).startswith(b"[") else TEXTS
    for kind in (CHATS, RESPONSES, BATCH):
        if kind.field in fields:
            return kind
    raise BadLine(
        "expected a field prompt, prompt_token_ids, messages, input, body or hash_ids, which holds the prompt; "
        f"the line has {_names(fields)}"
    )


def read_line(kind: Kind, line: bytes) -> Request:
    """Return the request that a line of a file of this kind holds. Raises BadLine."""
    if kind is HASHES:
        return _read_hashes(line)
    if kind is TOKEN_IDS:
        data = _id_bytes(_decoded(_ids, line).prompt_token_ids)
        return Request(data, tokens=len(data) // ID_BYTES)
    if kind is BATCH:
        entry = _decoded(_batch, line)
        path = entry.url.partition("?")[0]
        if path not in PROMPT_PATHS:
            raise BadLine(f"url: expected one of {', '.join(sorted(PROMPT_PATHS))}, got {entry.url[:80]!r}")
        return _request_of(kind, _prompt(path, bytes(entry.body)))
    assert kind.path is not None
    given = _decoded(_fields, line).get(kind.field)
    if given is None:
        raise BadLine(f"{kind.field}: expected as in the first line, the line has {_names(_decoded(_fields, line))}")
    if kind.field == "prompt" and _SEVERAL.match(bytes(given)):
        raise BadLine("prompt: expected one prompt, text or token ids, got a list of prompts: give each a line")
    return _request_of(kind, _prompt(kind.path, line))


def _read_hashes(line: bytes) -> Request:
    entry = _decoded(_hashes, line)
    arrived_s = None if entry.timestamp is None else entry.timestamp / 1e3
    return Request(entry.hash_ids, tokens=entry.input_length, arrived_s=arrived_s)


def _prompt(path: str, body: bytes) -> PromptText:
    try:
        prompt = read_prompt(path, body, Reading(SEED))
    except BadBody as exc:
        raise BadLine(exc.message) from exc
    except TooMuch:
        raise BadLine("expected fewer parts: the router looks at no body with so many") from None
    if prompt is None:
        raise BadLine("expected a prompt of text or token ids, got none")
    return prompt


def _request_of(kind: Kind, prompt: PromptText) -> Request:
    unit = "text" if prompt.tokens is None else "ids"
    if unit != kind.unit:
        names = {"text": "text", "ids": "token ids"}
        raise BadLine(f"{kind.field}: expected {names[kind.unit]}, as in the first line, got {names[unit]}")
    return Request(prompt.text, prompt.preamble, prompt.section_ends, prompt.tokens)


def _id_bytes(ids: Sequence[int]) -> bytes:
    try:
        return array("I", ids).tobytes()
    except OverflowError:
        raise BadLine("prompt_token_ids: expected token ids from 0 to 4294967295, got one beyond") from None


def _decoded(decoder: msgspec.json.Decoder[Any], line: bytes) -> Any:
    try:
        return decoder.decode(line)
    except msgspec.ValidationError as exc:
        raise BadLine(_explained(str(exc))) from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise BadLine(f"expected one JSON object, got what is no JSON: {exc}") from exc


def _explained(text: str) -> str:
    """Return msgspec's words with the field first: "hash_ids[2]: expected `int`, got `null`"."""
    what, _, where = text.partition(" - at `$")
    field = where.strip("`.")
    what = what[:1].lower() + what[1:]
    return f"{field}: {what}" if field else what


def _names(fields: Mapping[str, Any]) -> str:
    names = sorted(fields)
    more = f" and {len(names) - SHOWN_FIELDS} more" if len(names) > SHOWN_FIELDS else ""
    return (", ".join(name[:40] for name in names[:SHOWN_FIELDS]) or "no field") + more
