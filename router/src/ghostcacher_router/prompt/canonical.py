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

from ghostcacher_router.prompt.bodies import DEPTH_MAX, TooDeep
from ghostcacher_router.prompt.decoding import decode_value

FREE: Final = frozenset({"parameters", "input_schema", "schema", "input", "arguments"})
"""Keys whose values are the client's own dictionaries."""

BREAKPOINT: Final = "cache_control"
"""A client's mark that says where to cache. It moves from message to message as a conversation grows, and is never part
of the prompt."""

NODES_MAX = 65_536
"""The most nodes of JSON that are walked for one body. Each takes under a microsecond while the event loop waits. This
is four for each item that a body may have."""

INNER_DEPTH = 4
"""Levels that lie around a value that is given a form: the body, its messages, one of them, and its content."""

CACHED_BYTES_MAX = 256 << 10
"""The largest form that is remembered."""
CACHED_MAX = 64
"""The most forms that are remembered: 16 MiB with the largest. A fleet serves a few applications, each of which sends
the same tools with every request."""

_NESTS = frozenset({dict, list})


class TooMuch(Exception):
    """A body has more parts than the router walks."""


class Budget:
    """How many parts of a body may still be walked: `left`."""

    __slots__ = ("left",)

    def __init__(self, count: int) -> None:
        self.left = count

    def __repr__(self) -> str:
        return f"Budget({self.left})"

    def take(self, count: int) -> None:
        """Spend `count`, before these parts are walked. Raises TooMuch when fewer are left."""
        self.left -= count
        if self.left < 0:
            raise TooMuch


def canonical_json(value: Any, nodes: Budget) -> bytes:
    """Return compact UTF-8 of decoded JSON, with the API's keys sorted, without breakpoints.

    Raises TooMuch, and TooDeep.
    """
    return msgspec.json.encode(_arranged(value, nodes, INNER_DEPTH))


def check_nesting(value: Any, depth: int, nodes: Budget) -> None:
    """Raise TooDeep where decoded JSON that stands `depth` levels deep makes its body too deep. Raises TooMuch."""
    if type(value) not in (dict, list):
        return
    if depth >= DEPTH_MAX:
        raise TooDeep
    inside = value.values() if type(value) is dict else value
    # Token ids are many, and looked through fast.
    if not _NESTS.isdisjoint(map(type, inside)):
        nodes.take(len(inside))
        for inner in inside:
            check_nesting(inner, depth + 1, nodes)


def _arranged(value: Any, nodes: Budget, depth: int) -> Any:
    if type(value) not in (dict, list):
        return value
    if depth >= DEPTH_MAX:
        raise TooDeep
    depth += 1
    nodes.take(len(value))
    if type(value) is list:
        return [_arranged(item, nodes, depth) for item in value]
    return {k: _field(k, v, nodes, depth) for k, v in sorted(value.items()) if k != BREAKPOINT}


def _field(key: str, value: Any, nodes: Budget, depth: int) -> Any:
    if key not in FREE:
        return _arranged(value, nodes, depth)
    check_nesting(value, depth, nodes)
    return value


class CanonicalCache:
    """Remembers the canonical form of raw JSON: decoding 40 KB of tools takes longer than all the rest."""

    def __init__(self) -> None:
        self._forms: dict[bytes, bytes] = {}

    def __repr__(self) -> str:
        return f"CanonicalCache(forms={len(self._forms)})"

    def form(self, raw: bytes, seed: int, nodes_max: int = NODES_MAX) -> bytes:
        """Return the canonical form of one JSON value. Raises TooMuch, and BadBody.

        seed: keeps clients from guessing which values collide. nodes_max: of this value alone, whatever else its body
        has: whether a body is understood must not depend on what is remembered.
        """
        key = xxh3_128_digest(raw, seed)
        form = self._forms.get(key)
        if form is None:
            form = canonical_json(decode_value(raw), Budget(nodes_max))
            if len(form) <= CACHED_BYTES_MAX:
                if len(self._forms) >= CACHED_MAX:
                    del self._forms[next(iter(self._forms))]
                self._forms[key] = form
        return form
