"""Reads how a request itself names the sections that its messages belong to.

A client names them in the header ``x-gc-sections`` or in the body as ``metadata.gc_sections``. Both are one text, since
OpenAI's metadata holds nothing else: ``doc=1,2 session=3``. The sections are sys, doc, session and user; the numbers
are places in ``messages`` (in ``input``, for the Responses API), from 0. ``x-gc-blocks`` and ``metadata.gc_blocks`` are
accepted as older names of the same. Where several are given, one counts and the others are not read: a header goes
before the body, and then the new name before the old one.

Naming sections changes where they end, and the prefix key. It never changes the order of the text, which is the
template's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ghostcacher_connector.core.types import SectionType
from ghostcacher_router.prompt.bodies import BadBody

HEADERS = (b"x-gc-sections", b"x-gc-blocks")
FIELDS = ("gc_sections", "gc_blocks")
"""Of the header and of the field in the metadata: the name, then its older alias."""

NAMES = {"sys": SectionType.SYS, "doc": SectionType.DOC, "session": SectionType.SESSION, "user": SectionType.USER}

NAMES_BYTES_MAX = 4096
_ITEM = re.compile(r"(sys|doc|session|user)=([0-9]{1,7}(?:,[0-9]{1,7})*)", re.ASCII)


def named_section_types(headers: Mapping[bytes, bytes], metadata: Any, count: int) -> dict[int, SectionType]:
    """Return the sections that a request names for some of its `count` messages, by place. Raises BadBody."""
    for header in HEADERS:
        if (value := headers.get(header)) is not None:
            return _parse(value.decode("latin-1"), header.decode(), count)
    if type(metadata) is not dict:
        return {}
    for field in FIELDS:
        if (named := metadata.get(field)) is not None:
            if type(named) is not str:
                raise BadBody.wrong_type(f"metadata.{field}", "a string such as 'doc=1,2'", named)
            return _parse(named, f"metadata.{field}", count)
    return {}


def _parse(text: str, param: str, count: int) -> dict[int, SectionType]:
    if len(text) > NAMES_BYTES_MAX:
        raise BadBody(f"Invalid '{param}': expected at most {NAMES_BYTES_MAX} bytes, got {len(text)}.", param)
    sections = {}
    for item in text.split():
        match = _ITEM.fullmatch(item)
        if match is None:
            raise BadBody(f"Invalid '{param}': expected items such as 'doc=1,2', got {item[:64]!r}.", param)
        for number in match[2].split(","):
            if int(number) >= count:
                raise BadBody(f"Invalid '{param}': expected places below {count}, got {number}.", param)
            sections[int(number)] = NAMES[match[1]]
    return sections
