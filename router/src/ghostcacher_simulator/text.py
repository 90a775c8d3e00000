"""Text as simulated engines see it: four bytes are a token, a block's chain hash is a digest of all text up to it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

from ghostcacher_connector.core.coordination.base import PromptChain
from ghostcacher_connector.core.types import BlockHash

TOKEN_BYTES = 4
BLOCK_TOKENS = 16
BLOCK_BYTES = BLOCK_TOKENS * TOKEN_BYTES
SAMPLED_BLOCKS = 8
"""Routers are told one chain hash for so many blocks, as a connector does for blocks of 16 tokens."""

HASHED_TEXTS_MAX = 4_096


@lru_cache(maxsize=HASHED_TEXTS_MAX)
def block_hashes(text: bytes) -> tuple[BlockHash, ...]:
    """Return the chain hashes of a text's whole blocks, in order. Equal prefixes have equal hashes."""
    running, hashes = hashlib.blake2b(digest_size=32), []
    for end in range(BLOCK_BYTES, len(text) + 1, BLOCK_BYTES):
        running.update(text[end - BLOCK_BYTES : end])
        hashes.append(running.digest())
    return tuple(hashes)


def text_of(name: str, tokens: int) -> bytes:
    """Return a text of so many tokens. Texts of different names share no block."""
    unit = hashlib.sha256(name.encode()).hexdigest().encode()
    size = tokens * TOKEN_BYTES
    return (unit * (size // len(unit) + 1))[:size]


def sampled_chain(
    request_id: str, tokens: int, hashes: Sequence[BlockHash], block_tokens: int = BLOCK_TOKENS
) -> PromptChain:
    """Return what routers are told of a prompt: its length, and a hash for about every 128 tokens of it.

    With blocks of 16 tokens that is one in `SAMPLED_BLOCKS`. A prompt of fewer blocks is told by its last one.
    """
    step = max(1, SAMPLED_BLOCKS * BLOCK_TOKENS // block_tokens)
    counts = tuple(range(step, len(hashes) + 1, step)) or (len(hashes),) * bool(hashes)
    return PromptChain(request_id, tokens, counts, tuple(hashes[count - 1] for count in counts))
