"""One form for JSON, where templates see neither its white space nor the order of its keys.

Engines parse the API's own objects (a tool, a tool call, a content part) into records whose fields have a fixed order,
and templates print these: white space and key order are lost, and are lost here. What a client chose freely inside
(a tool's parameters, a call's arguments) stays a dictionary in the client's order, and templates print it as it
is (``tojson`` does not sort), so here it keeps its order. Where in doubt, order is kept: two names for one prompt
cost learning it twice, but one name for two prompts makes what is learned of either useless.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from xxhash import xxh3_128_digest

FREE: Final = frozenset({"parameters", "input_schema", "schema", "input", "arguments"})
"""Keys whose values are the client's own dictionaries."""

BREAKPOINT: Final = "cache_control"
"""Says where to cache, and moves from message to message as a conversation grows: never part of the prompt."""

NODES_MAX = 65_536
"""Of one body, as canonical JSON is made: each takes under a microsecond, and the event loop waits. Four for each item
that a body may have."""

CACHED_BYTES_MAX = 256 << 10
CACHED_MAX = 64
"""At most 16 MiB. A fleet serves a few applications, each of which sends the same tools with every request."""


class TooMuch(Exception):
    """A body has more parts than are looked at one by one."""


class Budget:
    """How many parts of a body may still be looked at."""

    __slots__ = ("_left",)

    def __init__(self, count: int) -> None:
        self._left = count

    def __repr__(self) -> str:
        return f"Budget({self._left})"

    def take(self, count: int) -> None:
        """Spend `count`; called before these parts are looked at. Raises TooMuch when fewer are left."""
        self._left -= count
        if self._left < 0:
            raise TooMuch


def canonical_json(value: Any, nodes: Budget) -> bytes:
    """Return decoded JSON in one form: compact, UTF-8, the API's keys sorted, without breakpoints. Raises TooMuch."""
    return msgspec.json.encode(_arranged(value, nodes))


def _arranged(value: Any, nodes: Budget) -> Any:
    if type(value) is dict:
        nodes.take(len(value))
        return {k: v if k in FREE else _arranged(v, nodes) for k, v in sorted(value.items()) if k != BREAKPOINT}
    if type(value) is list:
        nodes.take(len(value))
        return [_arranged(item, nodes) for item in value]
    return value


class CanonicalCache:
    """Remembers the canonical form of raw JSON by its bytes: decoding 40 KB of tools takes longer than all the rest."""

    def __init__(self) -> None:
        self._forms: dict[bytes, bytes] = {}

    def __repr__(self) -> str:
        return f"CanonicalCache(forms={len(self._forms)})"

    def form(self, raw: bytes, seed: int) -> bytes:
        """Return the canonical form of one JSON value. seed: keeps others from guessing what collides. Raises TooMuch.

        Nodes are counted for this value alone: whether it is understood must not depend on what is remembered.
        """
        key = xxh3_128_digest(raw, seed)
        form = self._forms.get(key)
        if form is None:
            form = canonical_json(msgspec.json.decode(raw), Budget(NODES_MAX))
            if len(form) <= CACHED_BYTES_MAX:
                if len(self._forms) >= CACHED_MAX:
                    del self._forms[next(iter(self._forms))]
                self._forms[key] = form
        return form
