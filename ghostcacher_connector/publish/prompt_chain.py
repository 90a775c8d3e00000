"""What is published of a prompt for routers: some of its chain hashes. Knows no engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ghostcacher_connector.core.coordination.base import BOUNDARIES_MAX, PromptChain
from ghostcacher_connector.core.types import BlockHash

SAMPLE_TOKENS = 128
"""One hash per this many tokens: some 512 bytes of text, half of what lies between two boundaries of a router."""


class PromptSink(Protocol):
    """Takes what is to be published of prompts, without ever blocking (reporter.py)."""

    listening: bool
    """Whether a router wants it."""

    def chain(self, chain: PromptChain) -> None: ...

    def computed(self, request: str) -> None: ...


def sampled_counts(full_blocks: int, block_tokens: int) -> tuple[int, ...]:
    """Return the numbers of blocks after which a prompt's chain is sampled: evenly, the first and the last included."""
    if full_blocks == 0:
        return ()
    stride = max(1, SAMPLE_TOKENS // block_tokens, -(-full_blocks // (BOUNDARIES_MAX - 2)))
    return tuple(sorted({1, *range(stride, full_blocks, stride), full_blocks}))


def prompt_chain(name: str, tokens: int, hashes: Sequence[BlockHash], block_tokens: int) -> PromptChain | None:
    """Return what to publish of a prompt; None for one that fills no block.

    name: the router's id of the request.
    hashes: the chain hash after each full block of the prompt, in order.
    """
    counts = sampled_counts(len(hashes), block_tokens)
    return PromptChain(name, tokens, counts, tuple(hashes[count - 1] for count in counts)) if counts else None
