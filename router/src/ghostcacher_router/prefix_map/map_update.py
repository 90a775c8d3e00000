"""One prompt, what is known of its boundaries, and the chain that an engine made of it -> what there is to learn.

Nothing says where a boundary lies in tokens. It is estimated by its share of the prompt's bytes, and rounded down to a
block count that the engine reported, whose hash is then claimed for the boundary: "every prompt with this text has this
hash after so many blocks". A claim that reaches beyond the shared text is found out by the next prompt that has the
text and another end, since its chain has another hash there. So, along a prompt, from its beginning:

- nothing known: claim the estimate, if it reaches deeper than the boundary before; a shallower one says nothing new.
- known, and the chain has the same hash: two prompts agree. It stays, however far the new estimate reaches.
- known, and the chain cannot tell (it lacks this count): take the nearest count below, so that the next prompt can.
- known, and the chain has another hash: the claim overshot. Take the middle between what the boundary before has and
  the claim, or the new estimate if it is less. Repeated, this ends at the truth, from either side, in a few prompts.
- a boundary never has less than one before it that two prompts agree on, since it contains its text; and a new claim is
  never deeper than what is known of a boundary behind it.

Where claims fail and not one holds, it may not be the estimates that were wrong: the same text now has other blocks (a
template was changed, or prints today's date). All are then claimed anew, but for the first, which is treated as if it
had overshot: if it was that after all, this ends, and if not, one boundary's text is no loss.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

from ghostcacher_connector.core.coordination.base import PromptChain
from ghostcacher_router.types import Prompt

TAIL_BYTES = 1024
"""A shorter end of a prompt whose rest is well known is not worth telling every router: most ends are a question that
nobody asks again. In a chat that goes on, the boundaries behind it are learned with the next turn."""

COUNT_BYTES = 4
"""A claim is kept packed: the block count, then the hash."""


class Claim(NamedTuple):
    """How many blocks a boundary's text has, and the chain hash there.

    blocks: 0 when prompts with this text were seen to share less than the first count that engines report.
    """

    blocks: int
    block_hash: bytes

    def pack(self) -> bytes:
        return self.blocks.to_bytes(COUNT_BYTES, "little") + self.block_hash


def unpack(value: bytes) -> Claim:
    return Claim(int.from_bytes(value[:COUNT_BYTES], "little"), value[COUNT_BYTES:])


NOTHING = Claim(0, b"\x00")


class Chain:
    """An engine's chain, by block count."""

    def __init__(self, chain: PromptChain) -> None:
        self._counts = chain.block_counts
        self._hashes = chain.hashes
        self._by_count = dict(zip(chain.block_counts, chain.hashes, strict=True))
        self.deepest = chain.block_counts[-1]

    def at_most(self, count: int) -> Claim:
        """Return the deepest reported block among the first `count`."""
        index = bisect_right(self._counts, count) - 1
        return NOTHING if index < 0 else Claim(self._counts[index], self._hashes[index])

    def agrees(self, claim: Claim) -> bool:
        return self._by_count.get(claim.blocks) == claim.block_hash

    def differs(self, claim: Claim) -> bool:
        return self._by_count.get(claim.blocks, claim.block_hash) != claim.block_hash

    def agreeing(self, values: Sequence[bytes | None]) -> tuple[int, Claim]:
        """Return how many of the first values agree and ascend, and the last of these.

        Of a hot prompt these are nearly all: so this is quick, and all that is done for them.
        """
        hash_at, last = self._by_count.get, NOTHING.blocks
        for index, value in enumerate(values):
            blocks = int.from_bytes(value[:COUNT_BYTES], "little") if value else 0
            if not value or blocks < last or hash_at(blocks) != value[COUNT_BYTES:]:
                return index, self.at_most(last)
            last = blocks
        return len(values), self.at_most(last)


def learn(prompt: Prompt, values: Sequence[bytes | None], told: PromptChain) -> dict[int, Claim]:
    """Return what is new or changed, by index of the boundary, in order.

    values: the packed claim that is known of each boundary of the prompt. told: not empty.
    """
    chain = Chain(told)
    start, agreed = chain.agreeing(values)
    unknown = not any(islice(values, start, None))
    if start and unknown and prompt.size - prompt.ends[start - 1] < TAIL_BYTES:
        return {}
    known = [None if value is None else unpack(value) for value in islice(values, start, None)]
    trusted = known if start else _trusted(known, chain)
    lessons: dict[int, Claim] = {}
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
            lessons[index] = new
        if new is claim:
            floor = new
        before = new
    return {start + index: claim for index, claim in _ascending(lessons, trusted, chain).items()}


def _revised(claim: Claim, chain: Chain, estimate: int, before: Claim) -> Claim:
    if chain.agrees(claim):
        return claim
    if not chain.differs(claim):
        return chain.at_most(min(claim.blocks, estimate))
    return chain.at_most(min((before.blocks + claim.blocks) // 2, claim.blocks - 1, estimate))


def _trusted(known: Sequence[Claim | None], chain: Chain) -> Sequence[Claim | None]:
    """Return what is to be gone by: all that is known, unless the same text now has other blocks."""
    claims = [(index, claim) for index, claim in enumerate(known) if claim is not None and claim.blocks]
    if not any(chain.differs(claim) for _, claim in claims) or any(chain.agrees(claim) for _, claim in claims):
        return known
    first, claim = claims[0]
    return [*known[:first], claim, *[None] * (len(known) - first - 1)]


def _ascending(lessons: dict[int, Claim], trusted: Sequence[Claim | None], chain: Chain) -> dict[int, Claim]:
    """Lower what is claimed deeper than what is known, or was found now, of a boundary behind it."""
    cap = chain.deepest
    for index in range(len(trusted) - 1, -1, -1):
        claim = lessons.get(index, trusted[index])
        if claim is None:
            continue
        if index in lessons and claim.blocks > cap:
            lessons[index] = claim = chain.at_most(cap)
        cap = min(cap, claim.blocks)
    return lessons
