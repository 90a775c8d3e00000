"""Pages that SGLang will evict are copied to host slots before, over its own allocator, with real memory and copier."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator

from ghostcacher_connector.core.retention.base import BlockTraits
from ghostcacher_connector.core.retention.retention_settings import RetentionSettings
from ghostcacher_connector.core.types import BlockHash, SectionType
from ghostcacher_connector.engines.sglang.scheduling.copying import PageCopying
from ghostcacher_connector.engines.sglang.scheduling.page_guard import PageGuard
from ghostcacher_connector.engines.sglang.scheduling.publishing import PageBook, PagePublisher
from ghostcacher_connector.metrics import Recorder
from ghostcacher_connector.slots import first_generations
from ghostcacher_connector.tiers.host_tier import HostTier
from ghostcacher_connector.transfer.copier import Copier
from tests.support.index_parts import wait_until
from tests.support.kv_memory import KvMemory

PAGE = 4
PAGES = 16
WAIT_S = 60.0


class Sink:
    """What the index is told."""

    def __init__(self) -> None:
        self.slots: dict[int, BlockHash] = {}

    def publish(self, slot: int, block: BlockHash, _root: BlockHash, _generation: int) -> None:
        self.slots[slot] = block

    def withdraw(self, slot: int) -> None:
        self.slots.pop(slot, None)

    def withdraw_from(self, first_slot: int) -> None:
        for slot in [slot for slot in self.slots if slot >= first_slot]:
            del self.slots[slot]


class Rig:
    """A rank with a host tier, whose pages are published as SGLang offers them."""

    def __init__(self, *, host_slots: int = 32, threshold: float = 0.5) -> None:
        self.memory = KvMemory(PAGES, host_slots=host_slots)
        engine, host = self.memory.memories
        self.copier = Copier((engine, host), self.memory.table)
        self.allocator: Any = PagedTokenToKVPoolAllocator((PAGES - 1) * PAGE, PAGE, torch.float32, "cpu", None, False)
        self.sink = Sink()
        tier = HostTier(
            self.sink,
            Recorder(),
            worker="own",
            first_slot=PAGES,
            slot_count=host_slots,
            ranks=1,
            block_bytes=engine.bytes_per_slot,
            retention=RetentionSettings(),
        )
        self.copying = PageCopying(
            tier, self.copier, self.memory.table, self.allocator, page_count=PAGES, threshold=threshold
        )
        book = PageBook(self._withdraw)
        self.guard = PageGuard(self.allocator, self.memory.table, first_generations(PAGES), book.drop)
        self.publisher = PagePublisher(self.guard, book, self.sink, PAGE, lambda _: None, tier)

    def compute(self, *names: int) -> torch.Tensor:
        """Fill and publish a page for each name."""
        tokens = self.allocator.alloc(len(names) * PAGE)
        assert tokens is not None
        pages = (tokens[::PAGE] // PAGE).numpy().astype(np.int64)
        self.memory.overwrite(pages, np.array(names, dtype=np.uint64))
        keys = [block(name).hex() for name in names]
        self.publisher.offer(keys, block(names[0]), tokens, [])
        self.publisher.publish_oldest()
        return torch.as_tensor(tokens)

    def settle(self) -> None:
        """Take passes until every copy is reported."""

        def settled() -> bool:
            self.copying.begin_pass(sharing=True)
            return not self.copying.tier.busy

        wait_until(settled, WAIT_S)

    def in_host(self) -> set[BlockHash]:
        return {found for slot, found in self.sink.slots.items() if slot >= PAGES}

    def _withdraw(self, page: int) -> None:
        self.copying.tier.engine_gives(page)
        self.sink.withdraw(page)


def block(name: int) -> BlockHash:
    return name.to_bytes(32, "big")


def test_pages_are_copied_once_few_are_free() -> None:
    """The ones that were used least lately; what is copied holds what the page held."""
    rig = Rig()
    rig.compute(1, 2, 3)
    rig.settle()
    assert rig.in_host() == set()
    rig.compute(4, 5, 6, 7, 8, 9)
    traits = BlockTraits(SectionType.DOC, 0, PAGE, rig.copying.tier.block_bytes)
    rig.copying.tier.touch([block(1)], [traits])
    rig.settle()
    assert rig.in_host() == {block(2), block(3)}
    slots = {found: slot for slot, found in rig.sink.slots.items() if slot >= PAGES}
    pages = {found: slot for slot, found in rig.sink.slots.items() if slot < PAGES}
    for name in (2, 3):
        host, page = (np.array([places[block(name)]]) for places in (slots, pages))
        assert rig.memory.holds(host, page, np.array([name], dtype=np.uint64)).all()


def test_evicted_page_is_still_offered_from_its_host_slot() -> None:
    """After SGLang has given the page away."""
    rig = Rig(threshold=0.0)
    tokens = rig.compute(1, 2)
    rig.settle()
    rig.allocator.free(tokens)
    assert rig.in_host() == {block(1), block(2)} == set(rig.sink.slots.values())
    assert len(rig.copying.tier.ledger.prefix([block(1), block(2)], 0)) == 2


def test_page_that_is_released_while_it_is_copied_is_not_held() -> None:
    """Its generation has changed when the copy is done."""
    rig = Rig(threshold=0.0)
    tokens = rig.compute(1)
    poll, rig.copier.poll = rig.copier.poll, list  # type: ignore[assignment, method-assign]
    run = rig.copier._rows.run

    def released_meanwhile(*places: Any) -> None:
        rig.allocator.free(tokens)
        run(*places)

    rig.copier._rows.run = released_meanwhile  # type: ignore[method-assign]
    rig.copying.begin_pass(sharing=True)
    wait_until(lambda: rig.copier.queue_length == 0, WAIT_S)
    rig.copier.poll = poll  # type: ignore[method-assign]
    rig.settle()
    assert rig.sink.slots == {}
    rig.copying.tier.ledger.check_invariants()


def test_flush_empties_the_tier() -> None:
    """And the host slots have other generations, so that peers refuse what they have looked up."""
    rig = Rig(threshold=0.0)
    rig.compute(1, 2)
    rig.settle()
    before = rig.copying.tier.ledger.prefix([block(1), block(2)], 0)
    rig.allocator.clear()
    rig.copying.clear()
    assert rig.sink.slots == {}
    for location in before:
        assert rig.memory.table.generation(location.slot) == location.generation + 1
    rig.settle()
    assert rig.in_host() == set()


def test_nothing_is_copied_while_nothing_is_shared() -> None:
    """What is in the tree may be of other weights."""
    rig = Rig(threshold=0.0)
    rig.compute(1, 2)
    rig.copying.begin_pass(sharing=False)
    assert not rig.copying.tier.busy
