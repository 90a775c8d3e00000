"""Gives one form to JSON whose white space and key order no template sees.

Engines parse the API's own objects (a tool, a tool call, a content part) into records whose fields have a fixed order,
and templates print these: white space and key order are lost, and are lost here. What a client chose freely inside
(a tool's parameters, a call's arguments) stays a dictionary in the client's order, and templates print it as it
is (``tojson`` does not sort), so here it keeps its order. Where in doubt, the order is kept: if one prompt gets two
forms it is learned twice, but if two prompts get one form, what is learned of either is useless.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from xxhash import xxh3_128_digest

FREE: Final = frozenset({"parameters", "input_schema", "schema", "input", "arguments"})
"""Keys whose values are the client's own dictionaries."""

BREAKPOINT: Final = "cache_control"
"""A client's mark that says where to cache. It moves from message to message as a conversation grows, and is never part
of the prompt."""

NODES_MAX = 65_536
"""The most nodes of JSON that are walked for one body. Each takes under a microsecond while the event loop waits. This
is four for each item that a body may have."""

CACHED_BYTES_MAX = 256 << 10
"""The largest form that is remembered."""
CACHED_MAX = 64
"""The most forms that are remembered: 16 MiB with the largest. A fleet serves a few applications, each of which sends
the same tools with every request."""


class TooMuch(Exception):
    """A body has more parts than the router walks."""


class Budget:
    """How many parts of a body may still be walked."""

    __slots__ = ("_left",)

    def __init__(self, count: int) -> None:
        self._left = count

    def __repr__(self) -> str:
        return f"Budget({self._left})"

    def take(self, count: int) -> None:
        """Spend `count`, before these parts are walked. Raises TooMuch when fewer are left."""
        self._left -= count
        if self._left < 0:
            raise TooMuch


def canonical_json(value: Any, nodes: Budget) -> bytes:
    """Return compact UTF-8 of decoded JSON, with the API's keys sorted, without breakpoints. Raises TooMuch."""
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
    """Remembers the canonical form of raw JSON: decoding 40 KB of tools takes longer than all the rest."""

    def __init__(self) -> None:
        self._forms: dict[bytes, bytes] = {}

    def __repr__(self) -> str:
        return f"CanonicalCache(forms={len(self._forms)})"

    def form(self, raw: bytes, seed: int) -> bytes:
        """Return the canonical form of one JSON value. Raises TooMuch.

        seed: keeps clients from guessing which values collide. Nodes are counted for this value alone: whether a body
        is understood must not depend on what is remembered.
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
