"""Which prefixes requests share: the runs of the tree of all prompts that save most, as the branches that they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ghostcacher_cli.analyze.traces import Trace
from ghostcacher_connector.core.prefix_tree import PrefixTree


class SharedPrefix(NamedTuple):
    """A run of blocks that several requests have in common, behind a prefix that they share as well."""

    first_block: int
    """The number of its first block."""
    start_tokens: int
    """Tokens that stand before it."""
    tokens: int
    """Its own tokens."""
    requests: int
    """How many requests have it."""
    level: int
    """How many of the other prefixes that are listed lie before it."""

    @property
    def saves_tokens(self) -> int:
        """Return the tokens that need not be computed when each but the first of the requests finds it in a cache."""
        return self.tokens * (self.requests - 1)


def shared_prefixes(trace: Trace, most: int) -> Sequence[SharedPrefix]:
    """Return those that save most, at most so many, in the order of the tree: each before what goes on from it."""
    tree = PrefixTree(tuple(trace.blocks_of(request)) for request in range(trace.requests))
    tokens_of, block_tokens = trace.tokens_of, trace.block_tokens
    found: list[tuple[SharedPrefix, tuple[int, ...]]] = []
    path: list[tuple[int, int]] = []  # the end of each run that leads here, and its place among what was found
    for run in tree.runs():
        while path and path[-1][0] > run.start:
            path.pop()
        path.append((run.end, len(found)))
        if run.through > 1:
            tokens = sum(tokens_of[block] for block in run.items)
            above = tuple(place for _, place in path[:-1])
            found.append((SharedPrefix(run.items[0], run.start * block_tokens, tokens, run.through, 0), above))
    best = sorted(range(len(found)), key=lambda place: (-found[place][0].saves_tokens, place))[:most]
    listed = set(best)
    return [
        prefix._replace(level=len(listed.intersection(above)))
        for place, (prefix, above) in enumerate(found)
        if place in listed
    ]
