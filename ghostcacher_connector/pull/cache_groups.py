"""What a hit needs where an engine divides its layers into KV cache groups. docs/DESIGN.md says why it is sound.

Layers of one group share a block table; all groups take their blocks from one pool. The *first* group has full
attention, and the names of its blocks are the engine's chain hashes. A block of another group is named by chain hash
and group, so that all that holds for a block (one slot, one generation, one entry in the index) holds for it, too.

A request that goes on after block ``end`` reads every block before it in a group with full attention, and in a group
with a sliding window the last `CacheGroup.window_blocks` of them alone.
"""

from __future__ import annotations

from typing import NamedTuple

from ghostcacher_connector.core.types import BlockHash

GROUPS_MAX = 256
"""A group's number is one byte of a name."""


class CacheGroup(NamedTuple):
    """A KV cache group beside the first one."""

    number: int
    """Its place in the engine's list of groups."""
    window_blocks: int | None
    """How many of the blocks before a boundary the next token reads, at most; None: all."""

    def span(self, first_block: int, end_block: int) -> range:
        """Return which of the blocks ``[first_block, end_block)`` a request needs that goes on after `end_block`."""
        reach = end_block if self.window_blocks is None else self.window_blocks
        return range(max(first_block, end_block - reach), end_block)


class CacheGroups(NamedTuple):
    """The KV cache groups of one engine."""

    first: int = 0
    """The number of a group with full attention, whose blocks are looked for first."""
    others: tuple[CacheGroup, ...] = ()
    """The other groups, in order of their numbers; none where all layers are of one kind."""

    @property
    def numbers(self) -> list[int]:
        """The numbers of all groups, the first one's first."""
        return [self.first, *(group.number for group in self.others)]

    def key_of(self, block: BlockHash, number: int) -> BlockHash:
        """Return the name of the block with this chain hash in the group of a number."""
        return block if number == self.first else group_key(block, number)

    def needed(self, end_block: int) -> list[tuple[int, int]]:
        """Return what a hit of blocks ``[0, end_block)`` needs in the other groups: (block, group's number) each."""
        return [(index, group.number) for group in self.others for index in group.span(0, end_block)]


ONE_GROUP = CacheGroups()
"""All layers have full attention."""


def group_key(block: BlockHash, number: int) -> BlockHash:
    """Return the name of a block in a group other than the first.

    Its length is odd, and no engine's hash has an odd number of bytes: so `block_of` tells names and hashes apart.
    """
    assert len(block) % 2 == 0, f"chain hash: expected an even number of bytes, found {len(block)}"
    return block + number.to_bytes(1, "big")


def block_of(key: BlockHash) -> BlockHash:
    """Return the chain hash of the block that has this name in one of the groups."""
    return key[:-1] if len(key) % 2 else key
