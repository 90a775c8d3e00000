"""Reads for how long a client wants a part of its prompt to be kept: Anthropic's ``cache_control``.

    {"type": "ephemeral", "ttl": "1h"}    keep everything up to the part that carries it for an hour; "5m", and no ttl,
                                          mean five minutes

It becomes a hint to the worker (core/sections.py). What an engine makes of the field itself, and whether it refuses one
that is malformed, is the engine's own matter.
"""

from __future__ import annotations

import re
from typing import Any, Final

from ghostcacher_router.prompt.canonical import BREAKPOINT

TTL_S: Final = {"5m": 300, "1h": 3600}
_MARK = re.compile(rb'(?<!\\)"%b"\s*:\s*\{([^{}]*)\}' % BREAKPOINT.encode())
_TTL = re.compile(rb'"ttl"\s*:\s*"([^"\\]*)"')


def retain_s_of(mark: Any) -> int:
    """Return the seconds for which a value of ``cache_control`` asks; 0 for one that asks for nothing known."""
    if type(mark) is not dict or mark.get("type") != "ephemeral":
        return 0
    ttl = mark.get("ttl", "5m")
    return TTL_S.get(ttl, 0) if type(ttl) is str else 0


def retain_s_in(raw: bytes) -> int:
    """Return the longest time for which a mark in raw JSON of tools asks, in seconds; 0 without one.

    Tools are not decoded where their form is known. What is found in them is looked for in their bytes.
    """
    longest = 0
    for mark in _MARK.findall(raw) if BREAKPOINT.encode() in raw else ():
        found = _TTL.search(mark)
        ttl = "5m" if found is None else found[1].decode("latin-1")
        longest = max(longest, TTL_S.get(ttl, 0) if b'"ephemeral"' in mark else 0)
    return longest
