"""The KV pool of a simulated engine: a fixed number of slots, a prefix cache over them, LRU eviction."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from ghostcacher_connector.core.types import BlockHash


class HeldBlock(NamedTuple):
    """A block in a slot. generation: how often the slot was reused, from 1."""

    block: BlockHash
    slot: int
    generation: int


class KvPool:
    """Blocks in slots. Those of running requests are referenced; the others are cached, oldest use first.

    A block is *reserved* when a request gets a slot for it, and *filled* when its KV is there: only then a prefix match
    finds it.
    """

    def __init__(self, slot_count: int) -> None:
        """slot_count: blocks that fit. Raises ValueError for none."""
        if slot_count < 1:
            raise ValueError(f"slot_count: expected 1 or more, got {slot_count}")
        self.slot_count = slot_count
        self._next_slot = 0
        self._dropped: list[int] = []
        self._generations: Counter[int] = Counter()
        self._blocks: OrderedDict[BlockHash, HeldBlock] = OrderedDict()
        self._filled: set[BlockHash] = set()
        self._references: Counter[BlockHash] = Counter()
        self._contents: dict[int, BlockHash] = {}

    def __repr__(self) -> str:
        return f"KvPool({len(self._blocks)} of {self.slot_count} slots, {len(self._references)} referenced)"

    def __len__(self) -> int:
        return len(self._blocks)

    @property
    def referenced(self) -> int:
        """Return how many blocks running requests need."""
        return len(self._references)

    def match(self, blocks: Sequence[BlockHash]) -> int:
        """Return how many of the leading blocks are filled."""
        for number, block in enumerate(blocks):
            if block not in self._filled:
                return number
        return len(blocks)

    def __contains__(self, block: BlockHash) -> bool:
        return block in self._filled

    def fits(self, blocks: Sequence[BlockHash]) -> bool:
        """Say whether all of the blocks can be held at once, now."""
        new = sum(block not in self._references for block in set(blocks))
        return new <= self.slot_count - len(self._references)

    def reserve(self, blocks: Sequence[BlockHash]) -> list[HeldBlock]:
        """Reference the blocks, giving slots to those that have none; return what was evicted for them.

        The blocks must fit. `release` is to be called once with the same blocks.
        """
        assert self.fits(blocks), f"{self!r} was asked for {len(blocks)} blocks that do not fit"
        for block in blocks:
            self._references[block] += 1
        evicted: list[HeldBlock] = []
        for block in blocks:
            if block in self._blocks:
                self._blocks.move_to_end(block)
                continue
            slot = self._take_slot(evicted)
            self._generations[slot] += 1
            self._blocks[block] = HeldBlock(block, slot, self._generations[slot])
        return evicted

    def fill(self, blocks: Sequence[BlockHash]) -> list[HeldBlock]:
        """Say that the KV of reserved blocks is there; return where each is."""
        self._filled.update(blocks)
        held = [self._blocks[block] for block in blocks]
        self._contents.update((each.slot, each.block) for each in held)
        return held

    def holds(self, held: HeldBlock) -> bool:
        """Say whether a block is still where it was, filled."""
        return held.block in self._filled and self._blocks[held.block] == held

    def generation(self, slot: int) -> int:
        """Return how often a slot was reused: what a reader compares with what it has looked up."""
        return self._generations[slot]

    def content(self, slot: int) -> BlockHash | None:
        """Return the block whose KV lies in a slot, wanted or not; None before the first one."""
        return self._contents.get(slot)

    def check_invariants(self) -> None:
        """Raise AssertionError where blocks and slots do not fit together."""
        assert len(self._blocks) + len(self._dropped) == self._next_slot <= self.slot_count, f"{self!r}: slots are lost"
        assert self._references.keys() <= self._blocks.keys(), f"{self!r}: a referenced block has no slot"
        for block in self._filled:
            held = self._blocks[block]
            at = (self._contents.get(held.slot), self._generations[held.slot])
            assert at == (block, held.generation), f"{self!r}: slot {held.slot} holds another block than it should"

    def release(self, blocks: Sequence[BlockHash]) -> None:
        """Give up the references of one `reserve`. Filled blocks stay cached, the end of a prompt first to go."""
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block]:
                continue
            del self._references[block]
            if block in self._filled:
                self._blocks.move_to_end(block)
            else:
                self._drop(block)

    def clear(self) -> list[HeldBlock]:
        """Evict all that no request references; return it."""
        evicted = [held for block, held in self._blocks.items() if block not in self._references]
        for held in evicted:
            self._drop(held.block)
        return evicted

    def _take_slot(self, evicted: list[HeldBlock]) -> int:
        if self._dropped:
            return self._dropped.pop()
        if self._next_slot < self.slot_count:
            self._next_slot += 1
            return self._next_slot - 1
        oldest = next(block for block in self._blocks if block not in self._references)
        evicted.append(self._blocks[oldest])
        self._drop(oldest)
        return self._dropped.pop()

    def _drop(self, block: BlockHash) -> None:
        self._dropped.append(self._blocks.pop(block).slot)
        self._filled.discard(block)
