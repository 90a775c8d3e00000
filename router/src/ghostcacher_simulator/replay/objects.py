"""The object tier of a simulated fleet: blocks that outlive every worker, and what one worker writes there.

As with real workers: what the host tier takes in is written soon after, one block after the other, and dropped where
the store is slower than what is offered; a block is written once in the fleet; what was used longest ago goes first.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence

from ghostcacher_connector.core.types import BlockHash
from ghostcacher_simulator.machines.workers import ObjectTier


class Objects:
    """The store. dropped: blocks that were offered and not written, since the store was too slow."""

    def __init__(self, spec: ObjectTier, block_bytes: int) -> None:
        self.spec, self.block_bytes = spec, block_bytes
        self.dropped = 0
        self._blocks: OrderedDict[BlockHash, None] = OrderedDict()

    def __repr__(self) -> str:
        return f"Objects({len(self)} of {self.spec.blocks if self.spec.blocks is not None else 'any number of'} blocks)"

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, block: BlockHash) -> bool:
        return block in self._blocks

    @property
    def bytes(self) -> int:
        """Return how much is stored."""
        return len(self._blocks) * self.block_bytes

    def prefix(self, blocks: Sequence[BlockHash], start: int) -> int:
        """Return the end of the run of blocks from `start` on that are all here."""
        return next((place for place in range(start, len(blocks)) if blocks[place] not in self), len(blocks))

    def read_s(self, blocks: int) -> float:
        """Return how long reading so many blocks takes."""
        return self.spec.fixed_s + blocks * self.block_bytes / self.spec.bytes_per_s

    def use(self, blocks: Sequence[BlockHash]) -> None:
        """Note that blocks were read."""
        for block in blocks:
            if block in self:
                self._blocks.move_to_end(block)

    def put(self, block: BlockHash) -> None:
        """Take in a block; what was used longest ago goes for it."""
        self._blocks[block] = None
        if self.spec.blocks is not None and len(self._blocks) > self.spec.blocks:
            self._blocks.popitem(last=False)

    def check_invariants(self) -> None:
        """Raise AssertionError where more is stored than fits."""
        assert self.spec.blocks is None or len(self) <= self.spec.blocks, f"{self!r}: more than fits"


class ObjectWriter:
    """What one worker writes."""

    def __init__(self, objects: Objects, is_dead: Callable[[], bool]) -> None:
        """is_dead: what has not been written when the worker dies never is."""
        self._objects, self._is_dead = objects, is_dead
        self._free_at = 0.0

    def offer(self, block: BlockHash) -> None:
        """Write a block, unless it is there or too much waits already."""
        objects, loop = self._objects, asyncio.get_running_loop()
        if block in objects:
            return
        begins_at = max(loop.time(), self._free_at)
        waiting_bytes = (begins_at - loop.time()) * objects.spec.bytes_per_s
        if waiting_bytes > objects.spec.queue_bytes:
            objects.dropped += 1
            return
        self._free_at = begins_at + objects.block_bytes / objects.spec.bytes_per_s
        loop.call_at(self._free_at, self._written, block)

    def _written(self, block: BlockHash) -> None:
        if not self._is_dead():
            self._objects.put(block)
