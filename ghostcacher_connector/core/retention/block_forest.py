"""Which block of a tier follows which: parents, children, and children that came before their parents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, KeysView

from ghostcacher_connector.core.retention.base import BlockKey, TierBlock


class BlockForest:
    """The blocks of one tier by key, each tied to the block before it as far as both are here.

    A tie needs a parent that is exactly one block less deep, so that wrong keys make no circle. Where an engine does
    not say how deep a block lies, all are of depth 0, and its chain hashes make none.
    """

    def __init__(self) -> None:
        self._blocks: dict[BlockKey, TierBlock] = {}
        self._orphans: dict[BlockKey, set[TierBlock]] = {}
        """Parent's key -> the blocks that name it, while it is not here."""

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, key: BlockKey) -> bool:
        return key in self._blocks

    def __iter__(self) -> Iterator[TierBlock]:
        return iter(self._blocks.values())

    def keys(self) -> KeysView[BlockKey]:
        return self._blocks.keys()

    def get(self, key: BlockKey) -> TierBlock | None:
        return self._blocks.get(key)

    def add(self, block: TierBlock) -> None:
        """Tie a block to its parent and to the children that wait for it."""
        assert block.key not in self._blocks
        self._blocks[block.key] = block
        if block.parent_key is not None:
            parent = self._blocks.get(block.parent_key)
            if parent is None:
                self._orphans.setdefault(block.parent_key, set()).add(block)
            elif _fit(parent, block):
                block.parent = parent
                parent.children.add(block)
        for child in self._orphans.pop(block.key, ()):
            if _fit(block, child):
                child.parent = block
                block.children.add(child)

    def remove(self, block: TierBlock) -> None:
        """Untie a block. Its children stay, and are tied again when it comes back."""
        del self._blocks[block.key]
        if block.parent is not None:
            block.parent.children.discard(block)
        elif block.parent_key is not None:
            self._forget_orphan(block.parent_key, block)
        for child in block.children:
            child.parent = None
            self._orphans.setdefault(block.key, set()).add(child)
        block.children = set()

    def untie_all(self) -> None:
        """Untie all blocks from each other, so that they are freed one by one; the forest is not to be used any more.

        Parents and children keep each other: without this Python's collector would have to find all of them at once.
        """
        self._orphans.clear()
        while self._blocks:
            _, block = self._blocks.popitem()
            block.parent, block.children = None, set()

    def _forget_orphan(self, parent_key: BlockKey, block: TierBlock) -> None:
        waiting = self._orphans.get(parent_key)
        if waiting is not None:
            waiting.discard(block)
            if not waiting:
                del self._orphans[parent_key]

    def check_invariants(self) -> None:
        for key, block in self._blocks.items():
            assert block.key == key
            assert (block.parent is None) or (
                self._blocks.get(block.parent.key) is block.parent and block in block.parent.children
            )
            assert all(self._blocks.get(child.key) is child and child.parent is block for child in block.children)
        for parent_key, waiting in self._orphans.items():
            assert waiting
            assert parent_key not in self._blocks
            assert all(self._blocks.get(block.key) is block and block.parent is None for block in waiting)


def descend(top: TierBlock) -> Iterable[TierBlock]:
    """Return a block and all that follow it, parents before children."""
    found = {top: None}
    order = [top]
    for block in order:
        for child in block.children:
            if child not in found:
                found[child] = None
                order.append(child)
    return order


def _fit(parent: TierBlock, child: TierBlock) -> bool:
    return child.depth == parent.depth + 1 or child.depth == parent.depth == 0
