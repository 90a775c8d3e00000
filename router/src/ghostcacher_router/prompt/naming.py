"""How a request names the types of its messages itself.

In the header ``x-gc-blocks``, or in the body as ``metadata.gc_blocks``, in one notation, a text since OpenAI's metadata
holds nothing else: ``doc=1,2 session=3``. Types are sys, doc, session and user; numbers are places in ``messages`` (in
``input``, for the Responses API), from 0. The header wins. Types are labels: they change where typed blocks end and
the prefix key, never the order of the text, which is the template's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ghostcacher_router.prompt.bodies import BadBody
from ghostcacher_router.types import BlockKind

HEADER = b"x-gc-blocks"
FIELD = "metadata.gc_blocks"
NAMES = {"sys": BlockKind.SYS, "doc": BlockKind.DOC, "session": BlockKind.SESSION, "user": BlockKind.USER}

NAMES_BYTES_MAX = 4096
_ITEM = re.compile(r"(sys|doc|session|user)=([0-9]{1,7}(?:,[0-9]{1,7})*)", re.ASCII)


def named_kinds(headers: Mapping[bytes, bytes], metadata: Any, count: int) -> dict[int, BlockKind]:
    """Return the types that a request gives to some of its `count` messages, by place. Raises BadBody."""
    header = headers.get(HEADER)
    if header is not None:
        return _parse(header.decode("latin-1"), HEADER.decode(), count)
    named = metadata.get("gc_blocks") if type(metadata) is dict else None
    if named is None:
        return {}
    if type(named) is not str:
        raise BadBody.wrong_type(FIELD, "a string such as 'doc=1,2'", named)
    return _parse(named, FIELD, count)


def _parse(text: str, param: str, count: int) -> dict[int, BlockKind]:
    if len(text) > NAMES_BYTES_MAX:
        raise BadBody(f"Invalid '{param}': expected at most {NAMES_BYTES_MAX} bytes, got {len(text)}.", param)
    kinds = {}
    for item in text.split():
        match = _ITEM.fullmatch(item)
        if match is None:
            raise BadBody(f"Invalid '{param}': expected items such as 'doc=1,2', got {item[:64]!r}.", param)
        for number in match[2].split(","):
            if int(number) >= count:
                raise BadBody(f"Invalid '{param}': expected places below {count}, got {number}.", param)
            kinds[int(number)] = NAMES[match[1]]
    return kinds
