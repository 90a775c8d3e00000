"""Puts Bedrock's ``cachePoint`` where the sections of a prompt end, into bodies of its Converse API.

    TOOLS     behind the last of `toolConfig.tools` (Claude alone)
    SYS       behind the last block of `system`
    DOC       behind the last document of the first message that has any
    SESSION   behind the last message of the user before the model's last one

At most four, those of the client included, which stay as they are. Models that do not know cache points refuse a
request with one, so only those that are known to have a cache get any. Whatever is not understood stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from ghostcacher_connector.core.types import SectionType
from ghostcacher_router.providers.bodies.breakpoints import BYTES_PER_TOKEN, MARKS_MAX, WANTED, tokens_min_of
from ghostcacher_router.providers.bodies.json_places import Insertion, JsonPlaces, Place, inserted

POINT: Final = b',{"cachePoint":{"type":"default"}}'
NOVA_TOKENS_MIN: Final = 1024
_POINTS = re.compile(rb'(?<!\\)"cachePoint"\s*:')
_CLAUDE = re.compile(r"anthropic\.claude-(?:3-7-sonnet|3-5-haiku|[a-z]+-[4-9])")
_NOVA = re.compile(r"amazon\.nova-(?:micro|lite|pro|premier)-")

Ends = dict[SectionType, tuple[int, int]]
"""For each section: behind which byte its end is, and the bytes of the prompt up to it."""


def with_cache_points(body: bytes, model: str) -> bytes:
    """Return the body of a request to Converse with cache points. body: valid JSON in UTF-8. Raises Unclear."""
    claude = _CLAUDE.search(model) is not None
    text = JsonPlaces(body)
    if not (claude or _NOVA.search(model)) or not text.is_object(text.top):
        return body
    ends = _ends(text, text.fields(text.top))
    if not claude:
        ends.pop(SectionType.TOOLS, None)
    bytes_min = BYTES_PER_TOKEN * (tokens_min_of(model) if claude else NOVA_TOKENS_MIN)
    free = max(0, MARKS_MAX - len(_POINTS.findall(body)))
    chosen = [ends[section][0] for section in WANTED if section in ends and ends[section][1] >= bytes_min][:free]
    return inserted(body, [Insertion(at, POINT) for at in dict.fromkeys(chosen)])


def _ends(text: JsonPlaces, fields: Mapping[bytes, Place]) -> Ends:
    ends: Ends = {}
    before = 0

    def add(section: SectionType, items: Sequence[Place], whole: Place) -> None:
        if items and all(map(text.is_object, items)) and not _is_point(text, items[-1]):
            ends[section] = (items[-1].end, before + items[-1].end - whole.start)

    config = fields.get(b"toolConfig")
    if config is not None and text.is_object(config) and (tools := text.fields(config).get(b"tools")) is not None:
        add(SectionType.TOOLS, _items(text, tools), tools)
        before += tools.end - tools.start
    if (system := fields.get(b"system")) is not None:
        add(SectionType.SYS, _items(text, system), system)
        before += system.end - system.start
    if (messages := fields.get(b"messages")) is not None:
        items = _items(text, messages)
        add(SectionType.SESSION, _history_end(text, items), messages)
        add(SectionType.DOC, _documents(text, items), messages)
    return ends


def _items(text: JsonPlaces, place: Place) -> list[Place]:
    return text.items(place) if text.is_array(place) else []


def _history_end(text: JsonPlaces, messages: Sequence[Place]) -> list[Place]:
    """Return the content of the last message of the user before the model's last one."""
    answered = False
    for message in reversed(messages[:-1]):
        fields = text.fields(message) if text.is_object(message) else {}
        role = text.bytes_of(fields[b"role"]) if b"role" in fields else b""
        if answered and role == b'"user"' and b"content" in fields:
            return _items(text, fields[b"content"])
        answered = answered or role == b'"assistant"'
    return []


def _documents(text: JsonPlaces, messages: Sequence[Place]) -> list[Place]:
    """Return the content of the first message with documents, up to its last one."""
    # Most bodies have none, and need not be walked for them.
    for message in messages if b'"document"' in text.text else ():
        content = text.fields(message).get(b"content") if text.is_object(message) else None
        blocks = [] if content is None else _items(text, content)
        for number in range(len(blocks), 0, -1):
            block = blocks[number - 1]
            if text.is_object(block) and b"document" in text.fields(block):
                followed = number < len(blocks) and _is_point(text, blocks[number])
                return [] if followed else blocks[:number]
    return []


def _is_point(text: JsonPlaces, block: Place) -> bool:
    return text.is_object(block) and b"cachePoint" in text.fields(block)
