"""A load: requests whose prompts share what their segments say, and the time at which each one comes.

A prompt consists of segments of as many tokens as a KV block has. Equal prompts begin with segments of equal names, so
two prompts share the blocks of their common segments, both as text (for routers) and as chain hashes (for engines).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from ghostcacher_connector.core.types import BlockHash, SectionType
from ghostcacher_simulator.engine import TokenizedPrompt
from ghostcacher_simulator.text import TOKEN_BYTES, text_of

BLOCK_TOKENS = 512
"""Tokens of a segment, and of a KV block, where nothing else is said: what a hash of Mooncake's traces stands for."""
SEGMENTS_CACHED = 4_096


class Request(NamedTuple):
    """One request of a load."""

    request_id: str
    """Unique in its load."""
    arrival_s: float
    """When it comes, from the arrival of the first one."""
    segments: tuple[str, ...]
    """Names of the segments of its text, in order; the last one may be cut."""
    prompt: TokenizedPrompt
    """The same as an engine's scheduler sees it."""
    block_tokens: int = BLOCK_TOKENS
    """Tokens of a segment."""
    section_ends: tuple[tuple[SectionType, int], ...] = ()
    """The type of each section of its prompt and the token at which it ends, in order; empty: it is all one section."""
    session: str | None = None
    """The conversation that it belongs to; None: to none."""
    tenant: str | None = None
    """Who asks; None: nobody tells."""
    priority: int = 0
    """Lower goes first, where routers look at it."""
    deadline_s: float | None = None
    """How long it may wait before a worker has it, in s, where routers look at it; None: as long as others."""

    def text(self) -> bytes:
        """Return the text of its prompt."""
        pieces = (_segment(name, self.block_tokens) for name in self.segments)
        return b"".join(pieces)[: self.prompt.tokens * TOKEN_BYTES]

    def text_sections(self) -> list[tuple[SectionType, int]]:
        """Return the type of each section of its text and the byte at which it ends, in order; at least one."""
        ends = [(kind, end * TOKEN_BYTES) for kind, end in self.section_ends]
        return ends or [(SectionType.USER, self.prompt.tokens * TOKEN_BYTES)]


class Load(NamedTuple):
    """What comes to a fleet."""

    name: str
    """What it is, for people."""
    requests: Sequence[Request]
    """In the order in which they come; at least one."""
    block_tokens: int
    """Tokens of a segment of any of them."""

    @property
    def duration_s(self) -> float:
        """Return the time from the first arrival to the last one."""
        return self.requests[-1].arrival_s

    @property
    def prompt_tokens(self) -> int:
        """Return the tokens of all prompts."""
        return sum(request.prompt.tokens for request in self.requests)


class Row(NamedTuple):
    """What a trace or a generator says of one request."""

    at_s: float
    """When it came, by any clock, in s."""
    tokens: int
    """Of its prompt, from 1."""
    answer_tokens: int
    """Of its answer; fewer than 1 count as 1."""
    segments: Sequence[object] | None
    """Names of its segments, at least as many as its tokens need; None where nothing is said of the text."""
    section_ends: tuple[tuple[SectionType, int], ...] = ()
    """As in `Request`."""
    session: str | None = None
    """As in `Request`."""


def make_requests(
    rows: Iterable[Row], *, block_tokens: int = BLOCK_TOKENS, speed: float = 1.0, tokens_max: int | None = None
) -> list[Request]:
    """Return the requests that rows describe, in order of their arrival.

    block_tokens: of a segment. speed: how many times faster they come than the rows say. tokens_max: longer prompts
    are cut to so many tokens; None cuts none. Raises ValueError for a row whose segments are too few.
    """
    known: dict[tuple[BlockHash, str], BlockHash] = {}
    ordered = sorted(enumerate(rows), key=lambda each: each[1].at_s)
    first_s = ordered[0][1].at_s if ordered else 0.0
    requests: list[Request] = []
    for number, row in ordered:
        tokens = row.tokens if tokens_max is None else min(row.tokens, tokens_max)
        pieces = -(-tokens // block_tokens)
        ids = row.segments if row.segments is not None else [f"request {number}/{place}" for place in range(pieces)]
        if not 0 < pieces <= len(ids):
            raise ValueError(f"request {number} has {row.tokens} tokens in {len(ids)} segments of {block_tokens}")
        segments = tuple(map(str, ids[:pieces]))
        prompt = TokenizedPrompt(_chain(known, segments[: tokens // block_tokens]), tokens, max(1, row.answer_tokens))
        ends = tuple((kind, min(end, tokens)) for kind, end in row.section_ends)
        arrival_s = (row.at_s - first_s) / speed
        requests.append(Request(f"q{number}", arrival_s, segments, prompt, block_tokens, ends, row.session))
    return requests


def _chain(known: dict[tuple[BlockHash, str], BlockHash], segments: Sequence[str]) -> tuple[BlockHash, ...]:
    """Return the chain hashes of whole segments. known: those of earlier prompts, so that equal ones are one object."""
    parent, blocks = b"", []
    for segment in segments:
        found = known.get((parent, segment))
        if found is None:
            found = hashlib.blake2b(parent + segment.encode(), digest_size=32).digest()
            known[parent, segment] = found
        parent = found
        blocks.append(found)
    return tuple(blocks)


@lru_cache(maxsize=SEGMENTS_CACHED)
def _segment(name: str, tokens: int) -> bytes:
    return text_of(name, tokens)
