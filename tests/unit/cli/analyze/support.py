"""Traces made of what each request has in common with others, without a file."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from hypothesis import strategies as st

from ghostcacher_cli.analyze.formats import HASHES
from ghostcacher_cli.analyze.traces import Trace
from ghostcacher_connector.core.types import SectionType

# Few different items, so that most requests share something.
prompts = st.lists(st.lists(st.integers(0, 2), max_size=6), max_size=14)


def trace_of(requests: Sequence[Sequence[int]], tokens: int = 10) -> Trace:
    """Return a trace in which two requests share the blocks of their common prefix; one request a second."""
    numbers: dict[tuple[int, ...], int] = {}
    blocks, starts, first_seen = array("I"), array("Q", [0]), array("I")
    for place, request in enumerate(requests):
        for length in range(1, len(request) + 1):
            prefix = tuple(request[:length])
            if prefix not in numbers:
                first_seen.append(place)
            blocks.append(numbers.setdefault(prefix, len(numbers)))
        starts.append(len(blocks))
    return Trace(
        HASHES,
        tokens,
        blocks,
        starts,
        array("Q", [tokens * len(request) for request in requests]),
        array("d", range(len(requests))),
        True,
        array("Q", range(len(requests))),
        array("I", [tokens + len(prefix) for prefix in numbers]),
        array("I", [len(prefix) - 1 for prefix in numbers]),
        first_seen,
        array("B", [SectionType.SESSION] * len(numbers)),
    )


def longest(trace: Trace) -> int:
    """Return the blocks of the longest prompt."""
    return max((len(trace.blocks_of(request)) for request in range(trace.requests)), default=0)
