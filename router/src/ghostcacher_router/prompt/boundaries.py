"""Where a prompt's boundaries lie, and their digests.

A boundary at position p is named by the running XXH3-128 of all bytes before p, under the fleet's seed; what comes
after p has no part in it. So that two prompts share every boundary of the text that they share, whether p is one must
not depend on what comes after it either:

- every KiB of the whole prompt, counted from its first byte, is one, whatever typed blocks lie over it: a turn that
  moves from USER to SESSION as the conversation grows keeps its boundaries;
- the end of a part (a message, say) is one when no boundary of these two kinds is within 128 bytes before it, which
  bounds the number of boundaries of a thousand tiny messages; the first part's end always is;
- ends of typed blocks always are, and change nothing in these rules. What comes after may decide whether such an end
  is there (a prompt's own end, an explicit breakpoint), so it is the one kind that another prompt may lack.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from hashlib import sha256

from xxhash import xxh3_128

from ghostcacher_router.types import BlockKind, Prompt

GRID_BYTES = 1024

PART_BYTES_MIN = 128
"""About 32 tokens, less than the connector's reports can tell apart."""

SEPARATOR = b"\x00"


def hash_prompt(
    text: bytes,
    part_ends: Sequence[int],
    block_ends: Sequence[tuple[BlockKind, int]],
    *,
    preamble: bytes,
    seed: int,
    tokens: int | None = None,
) -> Prompt | None:
    """Return the prompt, hashed at its boundaries; None when it is empty.

    part_ends, block_ends: positions in `text`, ascending, in ``(0, len(text)]``; the last block ends with the text.
    preamble: what changes the engine's blocks from the first one on without being part of the text; hashed before it,
    counted nowhere. seed: taken modulo 2**64. tokens: of the prompt, if they are known.
    """
    if not text:
        return None
    ends = list(range(GRID_BYTES, len(text) + 1, GRID_BYTES))
    ends += _part_boundaries(part_ends)
    ends += [end for _, end in block_ends]
    ends.sort()
    ends = list(dict.fromkeys(ends))
    digests = _digests(text, ends, xxh3_128(preamble, seed))
    marks = [(kind, bisect_left(ends, end)) for kind, end in block_ends]
    return Prompt(ends, digests, marks, _prefix_key(digests, marks), tokens)


def _part_boundaries(part_ends: Sequence[int]) -> list[int]:
    if not part_ends:
        return []
    last = part_ends[0]
    accepted = [last]
    for end in part_ends:
        if end - last >= PART_BYTES_MIN and end % GRID_BYTES >= PART_BYTES_MIN:
            accepted.append(end)
            last = end
    return accepted


def _digests(text: bytes, ends: Sequence[int], state: xxh3_128) -> list[bytes]:
    view, start = memoryview(text), 0
    update, digest = state.update, state.digest
    digests = []
    for end in ends:
        update(view[start:end])
        digests.append(digest())
        start = end
    return digests


def _prefix_key(digests: Sequence[bytes], marks: Sequence[tuple[BlockKind, int]]) -> bytes:
    """Return SHA256(H_sys || sep || H_tools || sep || H_doc), from the blocks before any other kind.

    H of a kind: the digest at the end of its last block, empty without one. Without any of the three: of the first
    boundary alone, which lies at the first KiB or the end of the first part, and stays as the prompt grows.
    """
    front = [b"", b"", b""]
    for kind, index in marks:
        if kind > BlockKind.DOC:
            break
        front[kind] = digests[index]
    if not any(front):
        return sha256(digests[0]).digest()
    tools, system, documents = front
    return sha256(SEPARATOR.join((system, tools, documents))).digest()
