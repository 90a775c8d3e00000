"""Turns the body of a request into a RequestShape, with one function for each kind of API.

Requests to different kinds of API never share a boundary, and neither do those that name different models: one name in
an engine's list is its base model, another is a LoRA adapter, whose KV blocks have other hashes. (The same text under
two names of one model is therefore learned twice.) API and model stand in the preamble, with what else changes an
engine's first block.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any

import msgspec
from msgspec import Raw

from ghostcacher_router.prompt.assembly import HEAD, Assembly, section_types_of
from ghostcacher_router.prompt.bodies import (
    ABSENT,
    PREAMBLE,
    AnyBody,
    BadBody,
    Body,
    ChatBody,
    CompletionBody,
    ResponsesBody,
    decode,
    preamble_values,
)
from ghostcacher_router.prompt.boundaries import hash_prompt
from ghostcacher_router.prompt.canonical import NODES_MAX, Budget, CanonicalCache, TooMuch, canonical_json
from ghostcacher_router.prompt.model_name import is_form, model_of_form, model_of_query
from ghostcacher_router.prompt.named_sections import named_section_types
from ghostcacher_router.prompt.stored_ids import checked_id, id_in_path, id_of, makes_object
from ghostcacher_router.types import Prompt, RequestShape, SectionType

SESSION_HEADERS = (b"x-session-id", b"x-gc-session")
SESSION_CHARS_MAX = 256
"""The longest name of a session that is kept; a longer one is replaced by its digest, so that two never become one."""

_any = msgspec.json.Decoder(AnyBody)
_chat = msgspec.json.Decoder(ChatBody)
_completion = msgspec.json.Decoder(CompletionBody)
_responses = msgspec.json.Decoder(ResponsesBody)

_NOTHING = (None,) * len(PREAMBLE)
_tools = CanonicalCache()


def parse_body(path: str, body: bytes, headers: Mapping[bytes, bytes], seed: int) -> RequestShape:
    """Return what routing needs to know of a request.

    path: as in the request line, with the query. headers: by lower-case name. seed: the fleet's.

    For a path that is not known only the model and the id of a stored object are read, and the prompt is None, since
    nothing is prefilled. It is None, too, for a body with so many parts that walking them would hold up every other
    request.
    Raises BadBody for what no engine could serve: malformed JSON, or a field of the wrong type.
    """
    path, _, query = path.partition("?")
    parse = _PARSERS.get(path)
    if parse is None:
        return _other(path, query, body, headers)
    try:
        return parse(body, headers, seed)
    except RecursionError as exc:
        raise BadBody("The body of the request is nested too deeply.", None) from exc


def _other(path: str, query: str, body: bytes, headers: Mapping[bytes, bytes]) -> RequestShape:
    """Return the shape of a request that prefills nothing."""
    model: str | None = None
    needs_id = id_in_path(path)
    if is_form(headers):
        model = model_of_form(body, headers)
    elif body:
        model, file_id = _named_in(body)
        needs_id = needs_id or file_id
    makes_id = makes_object(path)
    return RequestShape(
        model or model_of_query(query), False, None, _header_session(headers), needs_id, makes_id, makes_id
    )


def _named_in(body: bytes) -> tuple[str | None, str | None]:
    """Return the model and the id of a file that a JSON body names."""
    try:
        found = _any.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None, None
    return found.model if type(found.model) is str else None, checked_id(found.input_file_id)


def _parse_chat(body: bytes, headers: Mapping[bytes, bytes], seed: int) -> RequestShape:
    chat = decode(_chat, body)
    return _shape(chat, headers, lambda: _chat_prompt("chat", chat, headers, seed))


def _parse_messages(body: bytes, headers: Mapping[bytes, bytes], seed: int) -> RequestShape:
    chat = decode(_chat, body)
    return _shape(chat, headers, lambda: _chat_prompt("messages", chat, headers, seed))


def _parse_embeddings(body: bytes, headers: Mapping[bytes, bytes], seed: int) -> RequestShape:
    embeddings = decode(_chat, body)
    if embeddings.messages is not None:
        return _shape(embeddings, headers, lambda: _chat_prompt("embeddings", embeddings, headers, seed))
    return _shape(embeddings, headers, lambda: _plain("embeddings", embeddings, embeddings.input, "input", seed))


def _parse_completion(body: bytes, headers: Mapping[bytes, bytes], seed: int) -> RequestShape:
    completion = decode(_completion, body)
    given, suffix = completion.prompt, completion.suffix
    return _shape(completion, headers, lambda: _plain("completions", completion, given, "prompt", seed, suffix))


def _parse_responses(body: bytes, headers: Mapping[bytes, bytes], seed: int) -> RequestShape:
    responses = decode(_responses, body)
    shape = _shape(responses, headers, lambda: _responses_prompt(responses, headers, seed))
    needs_id = id_of(responses.previous_response_id) or id_of(responses.conversation)
    return shape._replace(needs_id=needs_id, makes_id=True, keeps=responses.store is not False)


def _responses_prompt(responses: ResponsesBody, headers: Mapping[bytes, bytes], seed: int) -> Prompt | None:
    given = responses.input
    items = [{"role": "user", "content": given}] if type(given) is str else given or []
    assembly = Assembly(seed)
    assembly.items.take(len(items))
    roles = [_item_role(item) for item in items]
    sections = section_types_of(roles)
    for index, section in named_section_types(headers, responses.metadata, len(items)).items():
        sections[index] = section
    _add_tools(assembly, "tools", responses.tools, seed)
    if responses.instructions:
        assembly.system(responses.instructions, "instructions")
    for index, (item, section) in enumerate(zip(items, sections, strict=True)):
        if type(item) is dict and "role" not in item:
            assembly.item(section, item)
        else:
            assembly.message(section, item, f"input[{index}]")
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


def _chat_prompt(family: str, chat: ChatBody, headers: Mapping[bytes, bytes], seed: int) -> Prompt | None:
    messages = chat.messages
    if messages is None:
        raise BadBody("Missing required parameter: 'messages'.", "messages")
    assembly = Assembly(seed)
    assembly.items.take(len(messages))
    roles = [_role(message) for message in messages]
    sections = section_types_of(roles)
    for index, section in named_section_types(headers, chat.metadata, len(messages)).items():
        sections[index] = section
    _add_tools(assembly, "tools", chat.tools, seed)
    _add_tools(assembly, "functions", chat.functions, seed)
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


def _add_tools(assembly: Assembly, param: str, raw: Raw, seed: int) -> None:
    if raw is ABSENT:
        return
    form = _tools.form(bytes(raw), seed)
    if not form.startswith((b"[", b"null")):
        raise BadBody.wrong_type(param, "an array", msgspec.json.decode(form))
    if form not in (b"[]", b"null"):
        assembly.tools(form)


def _without_tools(tool_choice: Any, tools: Raw) -> str | None:
    """Return "none" if tools are given and none is to be used: some servers then leave them out of the prompt."""
    return "none" if tool_choice == "none" and tools is not ABSENT else None


def _plain(family: str, body: Body, given: Any, param: str, seed: int, more: Any = None) -> Prompt | None:
    """Return a prompt that is text or token ids; the first of several; None when it is missing or empty."""
    if type(given) is list and given and type(given[0]) in (str, list):
        given, param = given[0], f"{param}[0]"
    if type(given) is str:
        assembly = Assembly(seed)
        if given:
            assembly.text(SectionType.USER, given)
        return assembly.prompt(_preamble(family, body, assembly.nodes, "text", more))
    if type(given) is list:
        try:
            ids = array("I", given).tobytes()
        except (TypeError, OverflowError) as exc:
            raise BadBody(f"Invalid '{param}': expected a string or token ids.", param) from exc
        preamble = _preamble(family, body, Budget(NODES_MAX), "ids", more)
        return hash_prompt(ids, (), [(SectionType.USER, len(ids))], preamble=preamble, seed=seed, tokens=len(given))
    if given is not None:
        raise BadBody.wrong_type(param, "a string or an array", given)
    return None


def _preamble(family: str, body: Body, nodes: Budget, *more: Any) -> bytes:
    """Return what is hashed before the text of every prompt, in a form that no text can imitate."""
    values = preamble_values(body)
    given = None if values == _NOTHING else dict(zip(PREAMBLE, values, strict=True))
    return canonical_json([family, body.model, *more, given], nodes)


def _shape(body: Body, headers: Mapping[bytes, bytes], read: Callable[[], Prompt | None]) -> RequestShape:
    """Return a body's shape. read: returns the prompt, or raises TooMuch, which leaves the prompt unknown."""
    try:
        prompt = read()
    except TooMuch:
        prompt = None
    session = _header_session(headers) or _body_session(body)
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


_PARSERS: dict[str, Callable[[bytes, Mapping[bytes, bytes], int], RequestShape]] = {
    "/v1/chat/completions": _parse_chat,
    "/v1/completions": _parse_completion,
    "/v1/embeddings": _parse_embeddings,
    "/v1/messages": _parse_messages,
    "/v1/responses": _parse_responses,
}
