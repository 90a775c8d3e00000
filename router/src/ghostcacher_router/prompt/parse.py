"""Turns the body of a request into a RequestShape, with one function for each kind of API."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from hashlib import sha256
from operator import attrgetter
from types import MappingProxyType
from typing import Final

import msgspec
from msgspec import Raw

from ghostcacher_connector.core.sections import session_tag, with_tags
from ghostcacher_router.prompt.assembly import Reading
from ghostcacher_router.prompt.bodies import (
    ABSENT,
    DEPTH_MAX,
    PREAMBLE,
    BadBody,
    Body,
    ChatBody,
    CompletionBody,
    EmbeddingsBody,
    ResponsesBody,
    TakesLong,
    TooDeep,
)
from ghostcacher_router.prompt.boundaries import PromptText
from ghostcacher_router.prompt.canonical import Budget, TooMuch, check_nesting
from ghostcacher_router.prompt.decoding import BodyDecoder, decode_fields, decode_value, in_utf8
from ghostcacher_router.prompt.known_chats import KnownChats
from ghostcacher_router.prompt.model_name import is_form, model_of_form, model_of_query
from ghostcacher_router.prompt.prompts import chat_prompt, plain_prompt, responses_prompt
from ghostcacher_router.prompt.stored_ids import FIELD_BYTES_MAX, FIELDS, id_in_path, id_of, makes_object
from ghostcacher_router.prompt.structure import CONTAINERS_MAX, check_depth, structure_of
from ghostcacher_router.prompt.transfers import transfer_in, transfer_in_raw
from ghostcacher_router.types import Prompt, RequestShape

NO_HEADERS: Mapping[bytes, bytes] = MappingProxyType({})
SESSION_CHARS_MAX = 256
"""The longest name of a session that is kept; a longer one is replaced by its digest, so that two never become one."""

NOW_BYTES_MAX = 256 << 10
"""The longest body that is read at once. Decoding ``[],[],...`` of this size takes up to 25 ms."""
NOW_ITEMS_MAX = 2048
NOW_NODES_MAX = 16_384
"""The most items and nodes that are walked at once: some 20 ms together."""
NOW_LENIENT_BYTES_MAX = 64 << 10
"""The longest body that is read at once as engines do, which may take 15 ms."""
NOW = (NOW_ITEMS_MAX, NOW_NODES_MAX, NOW_LENIENT_BYTES_MAX)
READINGS_MAX = 16
"""Ways to read bodies at once that are remembered: one is in use, and others only while the fleet changes."""
VALUES_MAX = 1 << 21
"""The most values of which objects are made: some 200 MB. Two million token ids are twice the longest prompts."""
SHORT_BYTES = 4096
"""Of a field that is read even where a body has more values than that."""

_chat = BodyDecoder(ChatBody, {"messages", "system", "tools", "functions", *PREAMBLE})
_embeddings = BodyDecoder(EmbeddingsBody, {"messages", "system", "tools", "functions", "input", *PREAMBLE})
_completion = BodyDecoder(CompletionBody, {"prompt", "suffix", *PREAMBLE})
_responses = BodyDecoder(ResponsesBody, {"input", "instructions", "tools", "prompt", *PREAMBLE})

_known_chats = KnownChats()

_session_names = attrgetter("session_id", "prompt_cache_key", "user", "metadata", "previous_response_id")
_NO_NAMES = (None,) * 5

PromptOf = Callable[[], PromptText | None]
Read = tuple[Body, PromptOf]
"""A decoded body, and what puts its prompt together."""

_JSON = re.compile(rb"[ \t\r\n]*[\[{]")


def parse_body(
    path: str, body: bytes, headers: Mapping[bytes, bytes], seed: int, billing_kept: frozenset[str | None] = frozenset()
) -> RequestShape:
    """Return what routing needs to know of a request.

    path: as in the request line, with the query. headers: by lower-case name. seed: the fleet's. billing_kept: see
    `Reading`.

    For a path that is not known only the model and the id of a stored object are read, and the prompt is None, since
    nothing is prefilled. It is None, too, for a body with so many parts that walking them would take too long.
    Raises BadBody for what no engine could serve: malformed JSON, a field of the wrong type, too much nesting.
    """
    body = in_utf8(body)
    if _JSON.match(body):
        known = path.partition("?")[0] in _READERS
        structure = structure_of(body)
        if structure.containers > CONTAINERS_MAX:
            expected = f"at most {CONTAINERS_MAX} objects and arrays"
            raise BadBody(f"The body of the request has too many parts: expected {expected}.", None)
        if structure.depth > DEPTH_MAX and (known or structure.closed):
            raise TooDeep
        if structure.values > VALUES_MAX and known:
            return _without_prompt(path, body, headers)
    try:
        return _parse(path, body, headers, Reading(seed, billing_kept))
    except _PromptUnread as exc:
        return exc.shape


def parse_now(
    path: str, body: bytes, headers: Mapping[bytes, bytes], seed: int, billing_kept: frozenset[str | None] = frozenset()
) -> RequestShape | None:
    """Return what `parse_body` does, within some tens of milliseconds; None for a body that may take longer."""
    bare = path.partition("?")[0]
    if len(body) > NOW_BYTES_MAX and (bare in _READERS or not is_form(headers)):
        return None
    reading, family = _reading_now(seed, billing_kept), _CHATS.get(bare)
    try:
        if family is not None:
            return _chat_shape(family, body, headers, reading)
        return _parse(path, body, headers, reading)
    except (_PromptUnread, TakesLong):
        return None


def parse_head(path: str, body: bytes, headers: Mapping[bytes, bytes]) -> RequestShape:
    """Return what `parse_body` does, but for the prompt, and building nothing large. Raises BadBody."""
    if path.partition("?")[0] not in _READERS:
        return _parse(path, body, headers, Reading(0))
    return _without_prompt(path, in_utf8(body), headers)


def read_prompt(
    path: str, body: bytes, reading: Reading, headers: Mapping[bytes, bytes] = NO_HEADERS
) -> PromptText | None:
    """Return the prompt of a request in the order of the engine's template, not hashed; None where there is none.

    path: one of `PROMPT_PATHS`. headers: by lower-case name; they may name sections. Nothing bounds the time that this
    takes. Raises BadBody, and TooMuch for a body with more parts than `reading` allows.
    """
    return _READERS[path](in_utf8(body), headers, reading)[1]()


def shape_by_method(method: str, path: str, headers: Mapping[bytes, bytes]) -> RequestShape | None:
    """Return the shape of a request whose method brings no prompt, on a path where others do; None for all others.

    Such are the preflights of browsers, and a HEAD or GET, which an engine answers as it likes. path: with the query.
    """
    path, _, query = path.partition("?")
    return None if method == "POST" or path not in _READERS else _other(path, query, b"", headers, Reading(0))


@lru_cache(READINGS_MAX)
def _reading_now(seed: int, billing_kept: frozenset[str | None]) -> Reading:
    """Return how bodies are read at once, which seldom changes."""
    return Reading(seed, billing_kept, *NOW)


class _PromptUnread(Exception):
    """A body has more parts than are walked. shape: what is known without its prompt."""

    def __init__(self, shape: RequestShape) -> None:
        super().__init__()
        self.shape = shape


def _parse(path: str, body: bytes, headers: Mapping[bytes, bytes], reading: Reading) -> RequestShape:
    path, _, query = path.partition("?")
    read = _READERS.get(path)
    if read is None:
        return _other(path, query, body, headers, reading)
    return _shape(*read(body, headers, reading), headers, reading.seed)


def _other(path: str, query: str, body: bytes, headers: Mapping[bytes, bytes], reading: Reading) -> RequestShape:
    """Return the shape of a request that prefills nothing."""
    model: str | None = None
    engine: str | None = None
    needs_id = id_in_path(path)
    if is_form(headers):
        model = model_of_form(body, headers)
    elif body:
        model, named_id, engine = _named_in(path, body, headers, reading)
        needs_id = needs_id or named_id
    makes_id = makes_object(path)
    return RequestShape(
        model or model_of_query(query),
        False,
        None,
        _header_session(headers),
        needs_id,
        makes_id,
        makes_id,
        names_engine=engine,
    )


def _named_in(
    path: str, body: bytes, headers: Mapping[bytes, bytes], reading: Reading
) -> tuple[str | None, str | None, str | None]:
    """Return the model, the id of a stored object, and by which field another engine, that a JSON body names."""
    try:
        fields = decode_fields(body, reading.lenient_bytes_max)
        model = _text_of(fields.get("model", ABSENT))
        named = bytes(fields.get(FIELDS.get(path, ""), ABSENT))
        named_id = id_of(decode_value(named)) if 0 < len(named) <= FIELD_BYTES_MAX else None
        engine = transfer_in_raw(fields, headers)
    except TooDeep:
        if structure_of(in_utf8(body)).closed:
            raise
        return None, None, None
    except BadBody:
        return None, None, None
    return model, named_id, engine


def _text_of(raw: Raw) -> str | None:
    value = bytes(raw)
    return decode_value(value) if value.startswith(b'"') else None


def _without_prompt(path: str, body: bytes, headers: Mapping[bytes, bytes]) -> RequestShape:
    """Return the shape of a body of which too much would have to be decoded: what its short fields say."""
    fields = decode_fields(body, len(body))
    values = {name: bytes(raw) for name, raw in fields.items()}
    short = {name: decode_value(value) for name, value in values.items() if len(value) <= SHORT_BYTES}
    kind = ResponsesBody if _READERS[path.partition("?")[0]] is _read_responses else Body
    try:
        head = msgspec.convert(short, kind)
    except msgspec.ValidationError as exc:
        raise BadBody(f"Invalid body: {exc}.", None) from exc
    return _head(head, headers)._replace(names_engine=transfer_in_raw(fields, headers))


def _read_chat(body: bytes, headers: Mapping[bytes, bytes], reading: Reading) -> Read:
    chat = _chat.decode(body, reading.lenient_bytes_max)
    return chat, lambda: chat_prompt("chat", chat, headers, reading)


def _read_messages(body: bytes, headers: Mapping[bytes, bytes], reading: Reading) -> Read:
    chat = _chat.decode(body, reading.lenient_bytes_max)
    return chat, lambda: chat_prompt("messages", chat, headers, reading)


def _read_embeddings(body: bytes, headers: Mapping[bytes, bytes], reading: Reading) -> Read:
    embeddings = _embeddings.decode(body, reading.lenient_bytes_max)

    def prompt_of() -> PromptText | None:
        nodes = Budget(reading.nodes_max)
        if embeddings.messages is not None:
            check_nesting(embeddings.input, 1, nodes)
            return chat_prompt("embeddings", embeddings, headers, reading)
        check_nesting(embeddings.system, 1, nodes)
        for field in (embeddings.tools, embeddings.functions):
            check_depth(bytes(field), 1)
        return plain_prompt("embeddings", embeddings, embeddings.input, "input", reading)

    return embeddings, prompt_of


def _read_completion(body: bytes, _: Mapping[bytes, bytes], reading: Reading) -> Read:
    text = _completion.decode(body, reading.lenient_bytes_max)
    given, suffix = text.prompt, text.suffix
    return text, lambda: plain_prompt("completions", text, given, "prompt", reading, suffix)


def _read_responses(body: bytes, headers: Mapping[bytes, bytes], reading: Reading) -> Read:
    responses = _responses.decode(body, reading.lenient_bytes_max)
    return responses, lambda: responses_prompt(responses, headers, reading)


def _chat_shape(family: str, body: bytes, headers: Mapping[bytes, bytes], reading: Reading) -> RequestShape:
    """Return the shape of a chat, of which the beginning may be known. Raises _PromptUnread."""
    found = _known_chats.find(family, body, reading)
    read = _known_chats.prompt(found, family, body, headers, _chat, reading)
    if read is not None:
        chat, prompt = read
        return _tagged(_head(chat, headers, prompt), reading.seed)
    chat = _chat.decode(body, reading.lenient_bytes_max)
    texts: list[PromptText] = []

    def prompt_of() -> PromptText:
        texts.append(chat_prompt(family, chat, headers, reading))
        return texts[0]

    shape = _shape(chat, prompt_of, headers, reading.seed)
    _known_chats.read(found, body, chat, texts[0], reading)
    return shape


def _shape(body: Body, prompt_of: PromptOf, headers: Mapping[bytes, bytes], seed: int) -> RequestShape:
    """Return a body's shape. prompt_of: may raise TooMuch. Raises _PromptUnread."""
    try:
        text = prompt_of()
    except TooMuch:
        raise _PromptUnread(_head(body, headers)) from None
    return _tagged(_head(body, headers, None if text is None else text.hashed(seed)), seed)


def _tagged(shape: RequestShape, seed: int) -> RequestShape:
    """Return a shape whose prompt tells workers of its session."""
    prompt, session = shape.prompt, shape.session
    if prompt is None or session is None:
        return shape
    hint = with_tags(prompt.hint, session=session_tag(session, seed))
    return shape._replace(prompt=prompt._replace(hint=hint))


def _head(body: Body, headers: Mapping[bytes, bytes], prompt: Prompt | None = None) -> RequestShape:
    """Return a body's shape with a prompt that was made of it."""
    needs_id, makes_id, keeps = None, False, False
    if body.session_params is not None:
        # What the blocks of a session's text are depends on what the session has heard before.
        needs_id, prompt = id_of(body.session_params), None
    if isinstance(body, ResponsesBody):
        needs_id, makes_id, keeps = id_of(body.previous_response_id) or needs_id, True, body.store is not False
    return RequestShape(
        body.model,
        body.stream is True,
        prompt,
        _header_session(headers) or _body_session(body),
        needs_id,
        makes_id,
        keeps,
        body.priority if type(body.priority) is int else None,
        body.cache_salt if type(body.cache_salt) is str else None,
        transfer_in(body, headers),
    )


def _header_session(headers: Mapping[bytes, bytes]) -> str | None:
    value = headers.get(b"x-session-id") or headers.get(b"x-gc-session")
    return _bounded(value.decode("latin-1")) if value else None


def _body_session(body: Body) -> str | None:
    """Return the client's own name for the conversation, the most specific that it gives."""
    names = _session_names(body)
    if names == _NO_NAMES:
        return None
    session_id, cache_key, user, metadata, before = names
    user_id = metadata.get("user_id") if type(metadata) is dict else None
    for name in (session_id, cache_key, user, user_id, before):
        if type(name) is str and name:
            return _bounded(name)
    return None


def _bounded(name: str) -> str:
    return name if len(name) <= SESSION_CHARS_MAX else sha256(name.encode()).hexdigest()


_CHATS: Final = {"/v1/chat/completions": "chat", "/v1/messages": "messages"}
_READERS: dict[str, Callable[[bytes, Mapping[bytes, bytes], Reading], Read]] = {
    "/v1/chat/completions": _read_chat,
    "/v1/completions": _read_completion,
    "/v1/embeddings": _read_embeddings,
    "/v1/messages": _read_messages,
    "/v1/responses": _read_responses,
}
"""What reads the body of a request to each path whose prompt is known: decodes it, and puts its prompt together."""
PROMPT_PATHS = frozenset(_READERS)
