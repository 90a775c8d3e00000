"""Turns the body of a request into a RequestShape, with one function for each kind of API.

Requests to different kinds of API never share a boundary, and neither do those that name different models: one name in
an engine's list is its base model, another is a LoRA adapter, whose KV blocks have other hashes. (The same text under
two names of one model is therefore learned twice.) API and model stand in the preamble, with what else changes an
engine's first block.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any

import msgspec
from msgspec import Raw

from ghostcacher_router.prompt.assembly import HEAD, Assembly, Reading, section_types_of
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
    TooDeep,
    preamble_values,
)
from ghostcacher_router.prompt.boundaries import hash_prompt
from ghostcacher_router.prompt.canonical import Budget, CanonicalCache, TooMuch, canonical_json, check_nesting
from ghostcacher_router.prompt.decoding import BodyDecoder, decode_fields, decode_value, in_utf8
from ghostcacher_router.prompt.named_sections import named_section_types
from ghostcacher_router.prompt.structure import CONTAINERS_MAX, structure_of
from ghostcacher_router.types import Prompt, RequestShape, SectionType

SESSION_HEADERS = (b"x-session-id", b"x-gc-session")
SESSION_CHARS_MAX = 256
"""The longest name of a session that is kept; a longer one is replaced by its digest, so that two never become one."""

NOW_BYTES_MAX = 512 << 10
"""The largest body that is read at once. Decoding ``[],[],...`` of this size takes 25 ms."""
NOW_ITEMS_MAX = 2048
NOW_NODES_MAX = 16_384
"""The most items and nodes that are walked at once: some 20 ms together."""
VALUES_MAX = 1 << 21
"""The most values of which objects are made: some 200 MB. Two million token ids are twice the longest prompts."""
SHORT_BYTES = 4096
"""Of a field that is read even where a body has more values than that."""

_chat = BodyDecoder(ChatBody, {"messages", "system", "tools", "functions", *PREAMBLE})
_embeddings = BodyDecoder(EmbeddingsBody, {"messages", "system", "tools", "functions", "input", *PREAMBLE})
_completion = BodyDecoder(CompletionBody, {"prompt", "suffix", *PREAMBLE})
_responses = BodyDecoder(ResponsesBody, {"input", "instructions", "tools", "prompt", *PREAMBLE})

_JSON = re.compile(rb"[ \t\r\n]*[\[{]")
_MESSAGE_ITEM = frozenset({"role", "content", "type", "id", "status"})
"""The fields of a message among the items of a response that no template prints. A server adds the last three to what a
client sent as role and content alone."""
_NOTHING = (None,) * len(PREAMBLE)
_tools = CanonicalCache()


def parse_body(
    path: str, body: bytes, headers: Mapping[bytes, bytes], seed: int, billing_kept: frozenset[str | None] = frozenset()
) -> RequestShape:
    """Return what routing needs to know of a request.

    path: as in the request line; what follows a "?" is ignored. headers: by lower-case name. seed: the fleet's.
    billing_kept: see `Reading`.

    For a path that is not known only the model is read, if the body is JSON, and the prompt is None, since nothing is
    prefilled. It is None, too, for a body with so many parts that walking them would take too long.
    Raises BadBody for what no engine could serve: malformed JSON, a field of the wrong type, too much nesting.
    """
    body = in_utf8(body)
    if _JSON.match(body):
        structure = structure_of(body)
        if structure.containers > CONTAINERS_MAX:
            message = (
                f"The body of the request has too many parts: expected at most {CONTAINERS_MAX} objects and arrays."
            )
            raise BadBody(message, None)
        if structure.depth > DEPTH_MAX and (structure.closed or _parser_of(path) is not _parse_other):
            raise TooDeep
        if structure.values > VALUES_MAX:
            return _without_prompt(body, headers)
    try:
        return _parser_of(path)(body, headers, Reading(seed, billing_kept))
    except _PromptUnread as exc:
        return exc.shape


def parse_now(
    path: str, body: bytes, headers: Mapping[bytes, bytes], seed: int, billing_kept: frozenset[str | None] = frozenset()
) -> RequestShape | None:
    """Return what `parse_body` does, within some tens of milliseconds; None for a body that may take longer."""
    if len(body) > NOW_BYTES_MAX:
        return None
    try:
        return _parser_of(path)(body, headers, Reading(seed, billing_kept, NOW_ITEMS_MAX, NOW_NODES_MAX))
    except _PromptUnread:
        return None


class _PromptUnread(Exception):
    """A body has more parts than are walked. shape: what is known without its prompt."""

    def __init__(self, shape: RequestShape) -> None:
        super().__init__()
        self.shape = shape


def _parser_of(path: str) -> _Parser:
    return _PARSERS.get(path.partition("?")[0], _parse_other)


def _parse_other(body: bytes, headers: Mapping[bytes, bytes], _: Reading) -> RequestShape:
    return RequestShape(_model_of(body), False, None, _header_session(headers))


def _model_of(body: bytes) -> str | None:
    try:
        raw = decode_fields(body).get("model")
        model = None if raw is None else decode_value(bytes(raw))
    except TooDeep:
        if structure_of(in_utf8(body)).closed:
            raise
        return None
    except BadBody:
        return None
    return model if type(model) is str else None


def _without_prompt(body: bytes, headers: Mapping[bytes, bytes]) -> RequestShape:
    """Return the shape of a body of which too much would have to be decoded: what its short fields say."""
    short = {name: raw for name, raw in decode_fields(body).items() if len(bytes(raw)) <= SHORT_BYTES}
    try:
        head = msgspec.convert({name: decode_value(bytes(raw)) for name, raw in short.items()}, Body)
    except msgspec.ValidationError as exc:
        raise BadBody(f"Invalid body: {exc}.", None) from exc
    return RequestShape(head.model, head.stream is True, None, _header_session(headers) or _body_session(head))


def _parse_chat(body: bytes, headers: Mapping[bytes, bytes], reading: Reading) -> RequestShape:
    chat = _chat.decode(body)
    return _shape(chat, headers, lambda: _chat_prompt("chat", chat, headers, reading))


def _parse_messages(body: bytes, headers: Mapping[bytes, bytes], reading: Reading) -> RequestShape:
    chat = _chat.decode(body)
    return _shape(chat, headers, lambda: _chat_prompt("messages", chat, headers, reading))


def _parse_embeddings(body: bytes, headers: Mapping[bytes, bytes], reading: Reading) -> RequestShape:
    embeddings = _embeddings.decode(body)
    if embeddings.messages is not None:
        return _shape(embeddings, headers, lambda: _chat_prompt("embeddings", embeddings, headers, reading))
    return _shape(embeddings, headers, lambda: _plain("embeddings", embeddings, embeddings.input, "input", reading))


def _parse_completion(body: bytes, headers: Mapping[bytes, bytes], reading: Reading) -> RequestShape:
    completion = _completion.decode(body)
    given, suffix = completion.prompt, completion.suffix
    return _shape(completion, headers, lambda: _plain("completions", completion, given, "prompt", reading, suffix))


def _parse_responses(body: bytes, headers: Mapping[bytes, bytes], reading: Reading) -> RequestShape:
    responses = _responses.decode(body)
    return _shape(responses, headers, lambda: _responses_prompt(responses, headers, reading))


def _responses_prompt(responses: ResponsesBody, headers: Mapping[bytes, bytes], reading: Reading) -> Prompt | None:
    given = responses.input
    items = [{"role": "user", "content": given}] if type(given) is str else given or []
    assembly = Assembly(reading, responses.model)
    assembly.items.take(len(items))
    roles = [_item_role(item) for item in items]
    sections = section_types_of(roles)
    for index, section in named_section_types(headers, responses.metadata, len(items)).items():
        sections[index] = section
    _add_tools(assembly, "tools", responses.tools, reading)
    if responses.instructions:
        assembly.system(responses.instructions, "instructions")
    for index, (item, section) in enumerate(zip(items, sections, strict=True)):
        if type(item) is dict and "role" not in item:
            assembly.item(section, item)
        else:
            assembly.message(section, item, f"input[{index}]", _MESSAGE_ITEM)
    more = (_without_tools(responses.tool_choice, responses.tools), responses.prompt)
    return assembly.prompt(_preamble("responses", responses, assembly.nodes, *more))


def _role(message: Any) -> str | None:
    role = message.get("role") if type(message) is dict else None
    return role if type(role) is str else None


def _item_role(item: Any) -> str | None:
    """Return whose turn an item is. An item without a role is the model's, unless it is the output of a tool."""
    if type(item) is not dict or "role" in item:
        return _role(item)
    return "tool" if str(item.get("type")).endswith("_output") else "assistant"


def _chat_prompt(family: str, chat: ChatBody, headers: Mapping[bytes, bytes], reading: Reading) -> Prompt | None:
    messages = chat.messages
    if messages is None:
        raise BadBody("Missing required parameter: 'messages'.", "messages")
    assembly = Assembly(reading, chat.model)
    assembly.items.take(len(messages))
    roles = [_role(message) for message in messages]
    sections = section_types_of(roles)
    for index, section in named_section_types(headers, chat.metadata, len(messages)).items():
        sections[index] = section
    _add_tools(assembly, "tools", chat.tools, reading)
    _add_tools(assembly, "functions", chat.functions, reading)
    if chat.system:
        assembly.system(chat.system, "system")
    documents = chat.documents
    for index, (message, section) in enumerate(zip(messages, sections, strict=True)):
        if documents and roles[index] not in HEAD:
            assembly.documents(msgspec.json.encode(documents))
            documents = None
        assembly.message(section, message, f"messages[{index}]")
    more = _without_tools(chat.tool_choice, chat.tools)
    return assembly.prompt(_preamble(family, chat, assembly.nodes, more))


def _add_tools(assembly: Assembly, param: str, raw: Raw, reading: Reading) -> None:
    if raw is ABSENT:
        return
    form = _tools.form(bytes(raw), reading.seed, reading.nodes_max)
    if not form.startswith((b"[", b"null")):
        raise BadBody.wrong_type(param, "an array", msgspec.json.decode(form))
    if form not in (b"[]", b"null"):
        assembly.tools(form)


def _without_tools(tool_choice: Any, tools: Raw) -> str | None:
    """Return "none" if tools are given and none is to be used: some servers then leave them out of the prompt."""
    return "none" if tool_choice == "none" and tools is not ABSENT else None


def _plain(family: str, body: Body, given: Any, param: str, reading: Reading, more: Any = None) -> Prompt | None:
    """Return a prompt that is text or token ids; the first of several; None when it is missing or empty."""
    if type(given) is list and given and type(given[0]) in (str, list):
        given, param = given[0], f"{param}[0]"
    if type(given) is str:
        assembly = Assembly(reading, body.model)
        if given:
            assembly.text(SectionType.USER, given)
        return assembly.prompt(_preamble(family, body, assembly.nodes, "text", more))
    if family == "embeddings" and type(given) is list and given and type(given[0]) is dict:
        # Text and media for multimodal embeddings, each a prompt of its own that nothing shares.
        check_nesting([given, more, *preamble_values(body)], 0)
        return None
    if type(given) is list:
        try:
            ids = array("I", given).tobytes()
        except (TypeError, OverflowError) as exc:
            raise BadBody(f"Invalid '{param}': expected a string or token ids.", param) from exc
        preamble = _preamble(family, body, Budget(reading.nodes_max), "ids", more)
        return hash_prompt(
            ids, (), [(SectionType.USER, len(ids))], preamble=preamble, seed=reading.seed, tokens=len(given)
        )
    if given is not None:
        raise BadBody.wrong_type(param, "a string or an array", given)
    check_nesting([more, *preamble_values(body)], 0)
    return None


def _preamble(family: str, body: Body, nodes: Budget, *more: Any) -> bytes:
    """Return what is hashed before the text of every prompt, in a form that no text can imitate."""
    values = preamble_values(body)
    given = None if values == _NOTHING else dict(zip(PREAMBLE, values, strict=True))
    return canonical_json([family, body.model, *more, given], nodes)


def _shape(body: Body, headers: Mapping[bytes, bytes], read: Callable[[], Prompt | None]) -> RequestShape:
    """Return a body's shape. read: returns the prompt, or raises TooMuch. Raises _PromptUnread."""
    session = _header_session(headers) or _body_session(body)
    try:
        prompt = read()
    except TooMuch:
        raise _PromptUnread(RequestShape(body.model, body.stream is True, None, session)) from None
    return RequestShape(body.model, body.stream is True, prompt, session)


def _header_session(headers: Mapping[bytes, bytes]) -> str | None:
    for name in SESSION_HEADERS:
        value = headers.get(name)
        if value:
            return _bounded(value.decode("latin-1"))
    return None


def _body_session(body: Body) -> str | None:
    """Return the client's own name for the conversation, the most specific that it gives."""
    user_id = body.metadata.get("user_id") if type(body.metadata) is dict else None
    for name in (body.session_id, body.prompt_cache_key, body.user, user_id, body.previous_response_id):
        if type(name) is str and name:
            return _bounded(name)
    return None


def _bounded(name: str) -> str:
    return name if len(name) <= SESSION_CHARS_MAX else sha256(name.encode()).hexdigest()


_Parser = Callable[[bytes, Mapping[bytes, bytes], Reading], RequestShape]
_PARSERS: dict[str, _Parser] = {
    "/v1/chat/completions": _parse_chat,
    "/v1/completions": _parse_completion,
    "/v1/embeddings": _parse_embeddings,
    "/v1/messages": _parse_messages,
    "/v1/responses": _parse_responses,
}
