"""What the ledger of a tier asks of whoever decides what stays there."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple, Protocol

from ghostcacher_connector.core.types import BlockHash, SectionType


class BlockTraits(NamedTuple):
    section: SectionType
    depth: int
    tokens: int
    size_bytes: int
    tenant: bytes | None = None
    retain_s: float = 0.0


class Evicted(NamedTuple):
    key: BlockHash


class Insertion(NamedTuple):
    evicted: tuple[Evicted, ...]
    admitted: bool


class Retention(Protocol):
    def insert(self, key: BlockHash, parent: BlockHash | None, traits: BlockTraits) -> Insertion: ...
    def touch(self, key: BlockHash, *, retain_s: float = 0.0) -> bool: ...
    def pin(self, key: BlockHash) -> None: ...
    def unpin(self, key: BlockHash) -> None: ...
    def remove(self, key: BlockHash) -> bool: ...


class LruRetention:
    """The least recently used goes first."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._order: OrderedDict[BlockHash, int] = OrderedDict()

    def insert(self, key: BlockHash, parent: BlockHash | None, traits: BlockTraits) -> Insertion:  # noqa: ARG002
        evicted: tuple[Evicted, ...] = ()
        if len(self._order) >= self._capacity:
            victim = next((name for name, pins in self._order.items() if not pins), None)
            if victim is None:
                return Insertion((), admitted=False)
            del self._order[victim]
            evicted = (Evicted(victim),)
        self._order[key] = 0
        return Insertion(evicted, admitted=True)

    def touch(self, key: BlockHash, *, retain_s: float = 0.0) -> bool:  # noqa: ARG002
        if key in self._order:
            self._order.move_to_end(key)
        return key in self._order

    def pin(self, key: BlockHash) -> None:
        self._order[key] += 1

    def unpin(self, key: BlockHash) -> None:
        if self._order.get(key):
            self._order[key] -= 1

    def remove(self, key: BlockHash) -> bool:
        return self._order.pop(key, None) is not None
