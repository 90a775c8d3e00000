"""Puts Anthropic's ``cache_control`` where the sections of a prompt end, so that the provider's cache finds them again.

    TOOLS     the last tool
    SYS       the last block of `system`
    DOC       the last message that the client names so, or the last document of the first message that has any
    SESSION   the last message before the user's turn

What a provider's cache keeps is the prompt up to a mark, in the order of tools, system, messages. At most four marks
are allowed, those of the client included, which stay as they are; one for a longer time must not follow one for a
shorter time. A mark on a prompt that is too short does nothing, so none is set there. Nothing but marks is added: what
is a bare string becomes a block with that text. Whatever is not understood stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.types import SectionType
from ghostcacher_router.providers.bodies.json_places import Insertion, JsonPlaces, Place, inserted

MARKS_MAX: Final = 4
MARK: Final = b"cache_control"
_PARTS: Final = (b"tools", b"system", b"messages")
"""The fields that make up the prompt, in its order."""
BYTES_PER_TOKEN: Final = 3
"""Rather too few: a mark too many does nothing, and one that is missing costs a prompt."""

TOKENS_MIN: Final[tuple[tuple[str, int], ...]] = (
    ("haiku-4-5", 4096),
    ("opus-4-5", 4096),
    ("opus-4-6", 4096),
    ("opus-4-7", 2048),
    ("3-haiku", 2048),
    ("3-5-haiku", 2048),
    ("sonnet-5-5", 512),
    ("haiku-5", 512),
    ("opus-5", 512),
    ("fable-5", 512),
    ("mythos", 512),
)
"""The shortest prompt that is cached, in tokens, by a part of the model's name; the first that fits (November 2026)."""
TOKENS_MIN_ELSE: Final = 1024

TTLS: Final = ("5m", "1h")
DEFAULT_TTL: Final[Mapping[SectionType, str]] = {
    SectionType.TOOLS: "1h",
    SectionType.SYS: "1h",
    SectionType.DOC: "5m",
    SectionType.SESSION: "5m",
}

_NAMES: Final = {section.name.lower(): section for section in DEFAULT_TTL}

WANTED: Final = (SectionType.SYS, SectionType.SESSION, SectionType.DOC, SectionType.TOOLS)
"""Who gets a mark first, where there are too few: the mark of SYS covers the tools before it, too."""
_MARKS = re.compile(rb'(?<!\\)"%b"\s*:\s*\{([^{}]*)\}' % MARK)
_HOUR = re.compile(rb'"ttl"\s*:\s*"1h"')
_BLOCKS = frozenset({b'"text"', b'"image"', b'"document"', b'"search_result"', b'"tool_use"', b'"tool_result"'})
"""Types of blocks that may carry a mark."""
_DOCUMENTS = frozenset({b'"document"', b'"search_result"'})
_EMPTY_TEXT = re.compile(rb'"(?:\s|\\[nrt])*"')


class _End(NamedTuple):
    """The end of a section, where a mark may be put."""

    section: SectionType
    place: Place
    """Of the object that gets it, or of a bare string."""
    order: tuple[int, int]
    """Its place in the prompt: tools, system, messages; then its byte."""
    prefix_bytes: int
    """Of the prompt up to it."""


class _Given(NamedTuple):
    """A mark of the client."""

    order: tuple[int, int]
    hour: bool


def with_breakpoints(
    body: bytes, model: str, documents: Sequence[int], ttl: Mapping[SectionType, str] = DEFAULT_TTL
) -> bytes:
    """Return the body of a request to /v1/messages with marks at the ends of its sections.

    body: valid JSON in UTF-8. documents: the messages that hold documents, by index, as the client names them. ttl: for
    how long what a mark covers is to be kept, by section. Raises Unclear.
    """
    text = JsonPlaces(body)
    if not text.is_object(text.top):
        return body
    fields = text.fields(text.top)
    parts = [place for name in _PARTS if (place := fields.get(name)) is not None]
    given = [_Given(_order(parts, mark.start()), _HOUR.search(mark[1]) is not None) for mark in _MARKS.finditer(body)]
    ends = _ends(text, fields, parts, documents)
    tokens_min = tokens_min_of(model)
    worth = {end.section: end for end in ends if end.prefix_bytes >= tokens_min * BYTES_PER_TOKEN}
    chosen = [worth[section] for section in WANTED if section in worth][: max(0, MARKS_MAX - len(given))]
    return inserted(body, _insertions(text, sorted(chosen, key=lambda end: end.order), given, ttl))


def parse_ttl(texts: Sequence[str], setting: str) -> dict[SectionType, str]:
    """Return the time of every section, of which the texts (``doc=1h``) change some. Raises ConfigError."""
    found = dict(DEFAULT_TTL)
    for text in texts:
        name, _, ttl = text.partition("=")
        if name not in _NAMES or ttl not in TTLS:
            names, ttls = ", ".join(_NAMES), " or ".join(TTLS)
            raise ConfigError(f"{setting}: expected section=time with one of {names} and {ttls}, got {text[:100]!r}")
        found[_NAMES[name]] = ttl
    return found


def tokens_min_of(model: str) -> int:
    """Return the tokens that a prompt needs for a model's cache to keep it."""
    return next((count for part, count in TOKENS_MIN if part in model), TOKENS_MIN_ELSE)


def _order(parts: Sequence[Place], at: int) -> tuple[int, int]:
    """Return where a byte of the body stands in the prompt; what stands in no part of it comes last."""
    return next((number for number, part in enumerate(parts) if part.start <= at < part.end), len(parts)), at


def _ends(
    text: JsonPlaces, fields: Mapping[bytes, Place], parts: Sequence[Place], documents: Sequence[int]
) -> list[_End]:
    """Return the ends of sections that can carry a mark, each section once."""
    found: list[_End] = []

    def add(section: SectionType, place: Place | None) -> None:
        if place is not None and all(place != end.place for end in found):
            order = _order(parts, place.start)
            before = sum(part.end - part.start for part in parts[: order[0]])
            found.append(_End(section, place, order, before + place.end - parts[order[0]].start))

    if (tools := fields.get(b"tools")) is not None and text.is_array(tools):
        add(SectionType.TOOLS, _last_tool(text, tools))
    if (system := fields.get(b"system")) is not None:
        add(SectionType.SYS, _last_block(text, system))
    if (messages := fields.get(b"messages")) is not None and text.is_array(messages):
        items = text.items(messages)
        add(SectionType.SESSION, _session_end(text, items))
        add(SectionType.DOC, _documents_end(text, items, documents))
    return found


def _last_tool(text: JsonPlaces, tools: Place) -> Place | None:
    """Return the last tool of the client's own that is part of the prompt from its beginning."""
    for tool in reversed(text.items(tools)):
        fields = text.fields(tool) if text.is_object(tool) else {}
        if b"input_schema" in fields and b"defer_loading" not in fields:
            return None if MARK in fields else tool
    return None


def _last_block(text: JsonPlaces, content: Place, types: frozenset[bytes] = _BLOCKS) -> Place | None:
    """Return the last block of a content that may carry a mark; None where it has one already, or there is none."""
    if text.is_string(content):
        return content if b'"text"' in types and not _EMPTY_TEXT.fullmatch(text.bytes_of(content)) else None
    for block in reversed(text.items(content) if text.is_array(content) else []):
        fields = text.fields(block) if text.is_object(block) else {}
        kind = text.bytes_of(fields[b"type"]) if b"type" in fields else b""
        said = text.bytes_of(fields[b"text"]) if b"text" in fields else b""
        if kind in types and not (kind == b'"text"' and _EMPTY_TEXT.fullmatch(said)):
            return None if MARK in fields else block
    return None


def _session_end(text: JsonPlaces, messages: Sequence[Place]) -> Place | None:
    """Return the last block of the last message before the user's turn, which follows what the model said last.

    A message of the model at the very end is a beginning that the model is to continue, and part of that turn.
    """
    for message in reversed(messages[:-1]):
        fields = text.fields(message) if text.is_object(message) else {}
        if b"role" not in fields or b"content" not in fields:
            return None
        if text.bytes_of(fields[b"role"]) == b'"assistant"':
            return _last_block(text, fields[b"content"])
    return None


def _documents_end(text: JsonPlaces, messages: Sequence[Place], documents: Sequence[int]) -> Place | None:
    if named := [index for index in documents if index < len(messages)]:
        content = _content(text, messages[max(named)])
        return None if content is None else _last_block(text, content)
    # Most bodies have none, and need not be walked for them.
    for message in messages if any(kind in text.text for kind in _DOCUMENTS) else ():
        content = _content(text, message)
        found = None if content is None else _last_block(text, content, _DOCUMENTS)
        if found is not None:
            return found
    return None


def _content(text: JsonPlaces, message: Place) -> Place | None:
    return text.fields(message).get(b"content") if text.is_object(message) else None


def _insertions(
    text: JsonPlaces, ends: Sequence[_End], given: Sequence[_Given], ttl: Mapping[SectionType, str]
) -> list[Insertion]:
    """Return the marks. ends: in the order of the prompt."""
    insertions: list[Insertion] = []
    short = False
    for end in ends:
        must = any(mark.hour and mark.order > end.order for mark in given)
        short = short or any(not mark.hour and mark.order < end.order for mark in given)
        short = not must and (short or ttl[end.section] != "1h")
        more = b"" if short else b',"ttl":"1h"'
        mark = b',"%b":{"type":"ephemeral"%b}' % (MARK, more)
        if text.is_string(end.place):
            insertions.append(Insertion(end.place.start, b'[{"type":"text","text":'))
            insertions.append(Insertion(end.place.end, mark + b"}]"))
        else:
            insertions.append(Insertion(end.place.end - 1, mark))
    return insertions
