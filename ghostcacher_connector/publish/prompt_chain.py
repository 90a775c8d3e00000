"""What routers are told of prompts: after how many blocks a chain is sampled, and to whom it goes. Knows no engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ghostcacher_connector.core.coordination.base import BOUNDARIES_MAX, PromptChain
from ghostcacher_connector.core.types import BlockHash

SAMPLE_TOKENS = 128
"""One hash for so many tokens: some 512 bytes of text, half of what lies between two boundaries of a router."""


class PromptSink(Protocol):
    """Takes reports, without ever blocking (reporter.py). listening: whether anybody wants them."""

    listening: bool

    def chain(self, chain: PromptChain) -> None: ...

    def computed(self, request: str) -> None: ...


def sampled_counts(full_blocks: int, block_tokens: int) -> tuple[int, ...]:
    """Return after how many blocks a prompt's chain is sampled: evenly, and always the first and the last full one."""
    if full_blocks == 0:
        return ()
    stride = max(1, SAMPLE_TOKENS // block_tokens, -(-full_blocks // (BOUNDARIES_MAX - 2)))
    return tuple(sorted({1, *range(stride, full_blocks, stride), full_blocks}))


def prompt_chain(name: str, tokens: int, hashes: Sequence[BlockHash], block_tokens: int) -> PromptChain | None:
    """Return what to report of a prompt; None for one that fills no block.

    name: the router's id of the request. hashes: of the prompt's full blocks, in order.
    """
    counts = sampled_counts(len(hashes), block_tokens)
    return PromptChain(name, tokens, counts, tuple(hashes[count - 1] for count in counts)) if counts else None
