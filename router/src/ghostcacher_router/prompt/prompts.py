"""Makes the prompt of a decoded body, with one function for each form in which APIs take it.

Requests to different kinds of API never share a boundary, and neither do those that name different models: one name in
an engine's list is its base model, another is a LoRA adapter, whose KV blocks have other hashes. (The same text under
two names of one model is therefore learned twice.) API and model stand in the preamble, with what else changes an
engine's first block.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgspec
from msgspec import Raw

from ghostcacher_connector.core.types import SectionType
from ghostcacher_router.prompt.assembly import HEAD, Assembly, Reading, section_types_of
from ghostcacher_router.prompt.bodies import (
    ABSENT,
    PREAMBLE,
    BadBody,
    Body,
    ChatBody,
    ResponsesBody,
    preamble_values,
)
from ghostcacher_router.prompt.boundaries import PromptText
from ghostcacher_router.prompt.canonical import Budget, CanonicalCache, canonical_json, check_nesting
from ghostcacher_router.prompt.named_sections import named_section_types
from ghostcacher_router.prompt.retention import retain_s_in

MODEL_CHARS_MAX = 256
"""Of a model whose plain preamble is remembered."""
PREAMBLES_MAX = 256
"""Of which so many are: a fleet serves a few models."""
PLAIN_NODES = 4
"""Of the preamble of a body of which nothing but its model changes the first block."""
_NOTHING = (None,) * len(PREAMBLE)
_tools = CanonicalCache()
_MESSAGE_ITEM = frozenset({"role", "content", "type", "id", "status"})
"""The fields of a message among the items of a response that no template prints. A server adds the last three to what a
client sent as role and content alone."""


def responses_prompt(responses: ResponsesBody, headers: Mapping[bytes, bytes], reading: Reading) -> PromptText:
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


def role_of(message: Any) -> str | None:
    """Return whose turn a message is; None where it does not say so."""
    role = message.get("role") if type(message) is dict else None
    return role if type(role) is str else None


def _item_role(item: Any) -> str | None:
    """Return whose turn an item is. An item without a role is the model's, unless it is the output of a tool."""
    if type(item) is not dict or "role" in item:
        return role_of(item)
    return "tool" if str(item.get("type")).endswith("_output") else "assistant"


def chat_prompt(family: str, chat: ChatBody, headers: Mapping[bytes, bytes], reading: Reading) -> PromptText:
    messages = chat.messages
    if messages is None:
        raise BadBody("Missing required parameter: 'messages'.", "messages")
    assembly = Assembly(reading, chat.model)
    assembly.items.take(len(messages))
    roles = [role_of(message) for message in messages]
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
    return assembly.prompt(chat_preamble(family, chat, assembly.nodes))


def chat_preamble(family: str, chat: ChatBody, nodes: Budget) -> bytes:
    """Return the preamble of a chat's prompt: see `PromptText`."""
    return _preamble(family, chat, nodes, _without_tools(chat.tool_choice, chat.tools))


def is_plain(chat: ChatBody) -> bool:
    """Say whether nothing but the model of a chat changes its first block: its preamble is made of that alone."""
    return preamble_values(chat) == _NOTHING and _without_tools(chat.tool_choice, chat.tools) is None


def _add_tools(assembly: Assembly, param: str, raw: Raw, reading: Reading) -> None:
    if raw is ABSENT:
        return
    given = bytes(raw)
    form = _tools.form(given, reading.seed, reading.nodes_max)
    if not form.startswith((b"[", b"null")):
        raise BadBody.wrong_type(param, "an array", msgspec.json.decode(form))
    if form not in (b"[]", b"null"):
        assembly.tools(form, retain_s_in(given))


def _without_tools(tool_choice: Any, tools: Raw) -> str | None:
    """Return "none" if tools are given and none is to be used: some servers then leave them out of the prompt."""
    return "none" if tool_choice == "none" and tools is not ABSENT else None


def plain_prompt(
    family: str, body: Body, given: Any, param: str, reading: Reading, more: Any = None
) -> PromptText | None:
    """Return a prompt that is text or token ids; the first of several; None when it is missing or empty."""
    if type(given) is list and given and type(given[0]) in (str, list):
        check_nesting(given[1:], 1, Budget(reading.nodes_max))
        given, param = given[0], f"{param}[0]"
    if type(given) is str:
        assembly = Assembly(reading, body.model)
        if given:
            assembly.text(SectionType.USER, given)
        return assembly.prompt(_preamble(family, body, assembly.nodes, "text", more))
    if family == "embeddings" and type(given) is list and given and type(given[0]) is dict:
        # Text and media for multimodal embeddings, each a prompt of its own that nothing shares.
        check_nesting([given, more, *preamble_values(body)], 0, Budget(reading.nodes_max))
        return None
    if type(given) is list:
        try:
            ids = _token_ids(given)
        except (TypeError, OverflowError) as exc:
            raise BadBody(f"Invalid '{param}': expected a string or token ids.", param) from exc
        preamble = _preamble(family, body, Budget(reading.nodes_max), "ids", more)
        return PromptText(ids, (), [(SectionType.USER, len(ids))], preamble, tokens=len(given))
    if given is not None:
        raise BadBody.wrong_type(param, "a string or an array", given)
    check_nesting([more, *preamble_values(body)], 0, Budget(reading.nodes_max))
    return None


def _token_ids(given: list[Any]) -> bytes:
    """Return token ids as bytes; engines take 2.0 for 2. Raises TypeError, OverflowError."""
    try:
        return array("I", given).tobytes()
    except TypeError:
        whole = [int(each) if type(each) is float and each.is_integer() else each for each in given]
        return array("I", whole).tobytes()


def _preamble(family: str, body: Body, nodes: Budget, *more: Any) -> bytes:
    """Return what is hashed before the text of every prompt, in a form that no text can imitate."""
    values = preamble_values(body)
    if values != _NOTHING:
        given = dict(zip(PREAMBLE, values, strict=True))
        return canonical_json([family, body.model, *more, given], nodes)
    if more != (None,) or len(body.model or "") > MODEL_CHARS_MAX:
        return canonical_json([family, body.model, *more, None], nodes)
    nodes.take(PLAIN_NODES)
    return _plain_preamble(family, body.model)


@lru_cache(PREAMBLES_MAX)
def _plain_preamble(family: str, model: str | None) -> bytes:
    """Return the preamble of a body of which nothing but its model changes the first block."""
    return canonical_json([family, model, None, None], Budget(PLAIN_NODES))
