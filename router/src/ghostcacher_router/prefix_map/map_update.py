"""Works out what one prompt, and the chain that an engine made of it, change in the prefix map.

Nothing says where a boundary lies in tokens. Its place is estimated by its share of the prompt's bytes, and rounded
down to a block count that the engine reported. The hash there is then claimed for the boundary: "every prompt with this
text has this hash after so many blocks". A claim that reaches beyond the shared text is found out by the next prompt
that has the text and another end, since the chain of that prompt has another hash there. So, along a prompt, from its
beginning:

- When nothing is known of a boundary, the estimate is claimed, if it reaches deeper than the boundary before; a
  shallower one would say nothing new.
- When the chain has the hash that is known, two prompts agree. The claim stays, however far the new estimate reaches.
- When the chain cannot tell, because it lacks the claimed count, the nearest count below is claimed, so that the next
  prompt can tell.
- When the chain has another hash, the claim was too deep. The new claim is the middle between what the boundary before
  has and the old claim, or the new estimate if that is less. Repeated, this ends at the truth, from either side, in a
  few prompts.
- A boundary never has less than one before it that two prompts agree on, since it contains the text of that one. A new
  claim is never deeper than what is known of a boundary after it.

Where some claims fail and not one holds, the estimates need not have been wrong: the same text may have other blocks
now, because a template was changed, or prints today's date. All are then claimed anew except for the first, which is
treated as too deep: if it was that after all, this puts it right, and if not, the text of one boundary is no loss.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

from ghostcacher_connector.core.coordination.base import PromptChain
from ghostcacher_router.types import Prompt

TAIL_BYTES = 1024
"""When the rest of a prompt is well known, a shorter end is not worth an update of every router's map: most ends are a
question that nobody asks again. In a chat that goes on, its boundaries are learned with the next turn."""

COUNT_BYTES = 4
"""The size of the block count in a packed claim; the hash follows it."""

_new = tuple.__new__
"""A NamedTuple's own constructor, in half the time: a long prompt has hundreds of claims."""


class Claim(NamedTuple):
    """How many blocks the text before a boundary fills, and the chain hash there."""

    blocks: int
    """0 when prompts with this text were seen to share less than the first count that engines report."""
    block_hash: bytes
    """The chain hash of the last of these blocks."""

    def pack(self) -> bytes:
        """Return it as the map keeps it."""
        return self.blocks.to_bytes(COUNT_BYTES, "little") + self.block_hash


def unpack(value: bytes) -> Claim:
    """Return a claim that was packed."""
    return _new(Claim, (int.from_bytes(value[:COUNT_BYTES], "little"), value[COUNT_BYTES:]))


NO_BLOCKS = Claim(0, b"\x00")
"""The claim of a boundary whose text is known to fill no reported block."""


class _Chain:
    """A chain that an engine reported, by block count."""

    def __init__(self, chain: PromptChain) -> None:
        self._counts = chain.block_counts
        self._hashes = chain.hashes
        self._by_count = dict(zip(chain.block_counts, chain.hashes, strict=True))
        self.deepest = chain.block_counts[-1]

    def at_most(self, count: int) -> Claim:
        """Return the deepest reported block among the first `count`."""
        index = bisect_right(self._counts, count) - 1
        return NO_BLOCKS if index < 0 else _new(Claim, (self._counts[index], self._hashes[index]))

    def agrees(self, claim: Claim) -> bool:
        """Say whether the chain has the claimed hash at the claimed count."""
        return self._by_count.get(claim.blocks) == claim.block_hash

    def differs(self, claim: Claim) -> bool:
        """Say whether the chain has another hash at the claimed count. One that lacks the count does not."""
        return self._by_count.get(claim.blocks, claim.block_hash) != claim.block_hash

    def agreeing(self, values: Sequence[bytes | None]) -> tuple[int, Claim]:
        """Return how many of the packed claims, from the first on, agree and ascend, and the last of these.

        For a hot prompt these are nearly all, so this is fast, and all that is done for them.
        """
        hash_at, last = self._by_count.get, NO_BLOCKS.blocks
        for index, value in enumerate(values):
            blocks = int.from_bytes(value[:COUNT_BYTES], "little") if value else 0
            if not value or blocks < last or hash_at(blocks) != value[COUNT_BYTES:]:
                return index, self.at_most(last)
            last = blocks
        return len(values), self.at_most(last)


def changed_claims(prompt: Prompt, values: Sequence[bytes | None], reported: PromptChain) -> dict[int, Claim]:
    """Return the claims that are new or changed, by index of the boundary, in order.

    values: the packed claim that is known of each boundary of the prompt. reported: the engine's chain, not empty.
    """
    chain = _Chain(reported)
    start, agreed = chain.agreeing(values)
    unknown = not any(islice(values, start, None))
    if start and unknown and prompt.size - prompt.ends[start - 1] < TAIL_BYTES:
        return {}
    known = [None if value is None else unpack(value) for value in islice(values, start, None)]
    trusted = known if start else _trusted(known, chain)
    changes: dict[int, Claim] = {}
    floor = before = agreed
    for index, (end, claim) in enumerate(zip(islice(prompt.ends, start, None), trusted, strict=True)):
        estimate = chain.deepest * end // prompt.size
        new = chain.at_most(estimate) if claim is None else _revised(claim, chain, estimate, before)
        if claim is None and new.blocks <= before.blocks:
            if known[index] is None:
                continue
            new = before
        if new.blocks < floor.blocks:
            new = floor
        if new != known[index]:
            changes[index] = new
        if new is claim:
            floor = new
        before = new
    return {start + index: claim for index, claim in _ascending(changes, trusted, chain).items()}


def _revised(claim: Claim, chain: _Chain, estimate: int, before: Claim) -> Claim:
    if chain.agrees(claim):
        return claim
    if not chain.differs(claim):
        return chain.at_most(min(claim.blocks, estimate))
    return chain.at_most(min((before.blocks + claim.blocks) // 2, claim.blocks - 1, estimate))


def _trusted(known: Sequence[Claim | None], chain: _Chain) -> Sequence[Claim | None]:
    """Return the claims to start from: all that are known, unless the same text has other blocks now."""
    claims = [(index, claim) for index, claim in enumerate(known) if claim is not None and claim.blocks]
    if not any(chain.differs(claim) for _, claim in claims) or any(chain.agrees(claim) for _, claim in claims):
        return known
    first, claim = claims[0]
    return [*known[:first], claim, *[None] * (len(known) - first - 1)]


def _ascending(changes: dict[int, Claim], trusted: Sequence[Claim | None], chain: _Chain) -> dict[int, Claim]:
    """Lower changed claims that are deeper than what is known, or was found now, of a boundary after them."""
    cap = chain.deepest
    for index in range(len(trusted) - 1, -1, -1):
        claim = changes.get(index, trusted[index])
        if claim is None:
            continue
        if index in changes and claim.blocks > cap:
            changes[index] = claim = chain.at_most(cap)
        cap = min(cap, claim.blocks)
    return changes
