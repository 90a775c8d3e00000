"""An engine in miniature: prompts of segments whose text and tokens have nothing to do with each other."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from itertools import accumulate
from typing import NamedTuple

from ghostcacher_connector.core.coordination.base import PromptChain
from ghostcacher_connector.core.types import SectionType
from ghostcacher_router.prompt.boundaries import hash_prompt
from ghostcacher_router.types import Prompt

BLOCK_TOKENS = 16
EVERY_BLOCKS = 8
"""One hash in 128 tokens is reported, as by the connector."""


class Segment(NamedTuple):
    """A part of a prompt: how many bytes of text, and what a template and tokenizer make of them."""

    name: int
    size: int
    tokens: int

    def text(self) -> bytes:
        pattern = sha256(repr(self).encode()).digest()
        return (pattern * (self.size // len(pattern) + 1))[: self.size]


def make_prompt(segments: Sequence[Segment]) -> Prompt:
    """Return the prompt with a boundary at the end of each segment."""
    ends = list(accumulate(segment.size for segment in segments))
    text = b"".join(segment.text() for segment in segments)
    prompt = hash_prompt(text, ends, [(SectionType.USER, end) for end in ends], preamble=b"", seed=7)
    assert prompt is not None
    return prompt


def make_chain(segments: Sequence[Segment], *, before: int = 0, date: int = 0) -> PromptChain:
    """Return what an engine reports. before: tokens that its template puts first; date: something that these say."""
    tokens = [f"template {date}"] * before + [f"{tuple(one)} {n}" for one in segments for n in range(one.tokens)]
    last = len(tokens) // BLOCK_TOKENS
    counts = sorted({*range(EVERY_BLOCKS, last + 1, EVERY_BLOCKS), last} - {0})
    state, hashes = sha256(), []
    for start, end in zip([0, *counts], counts, strict=False):
        state.update("\n".join((*tokens[start * BLOCK_TOKENS : end * BLOCK_TOKENS], "")).encode())
        hashes.append(state.digest())
    return PromptChain("r", len(tokens), tuple(counts), tuple(hashes))
