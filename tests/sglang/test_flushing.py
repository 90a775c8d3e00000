"""Orders to flush on one rank's scheduler, over SGLang's own page allocator, with real memory, copier and desk."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator

from ghostcacher_connector.config import Settings
from ghostcacher_connector.core.coordination.flushes import ORDER_BYTES, FlushOrder, FlushReport, TierDropped
from ghostcacher_connector.core.coordination.memory import MemoryCoordinationStore
from ghostcacher_connector.core.index.memory import MemoryIndex
from ghostcacher_connector.core.types import BlockHash, Tier
from ghostcacher_connector.engines.common.pull_state import Phase
from ghostcacher_connector.engines.sglang.scheduling.flushing import BUSY, NOT_TAKEN
from ghostcacher_connector.engines.sglang.scheduling.rank_group import RankGroup
from ghostcacher_connector.engines.sglang.scheduling.scheduler import ConnectorScheduler
from ghostcacher_connector.metrics import Recorder
from ghostcacher_connector.publish.flush_desk import FlushDesk
from ghostcacher_connector.pull.forecast import Forecaster
from ghostcacher_connector.pull.lookups import LookupService
from ghostcacher_connector.slots import first_generations
from ghostcacher_connector.transfer.copier import Copier
from tests.sglang.test_sections import request
from tests.support.index_parts import wait_until
from tests.support.kv_memory import KvMemory

PAGES, PAGE, HOST_SLOTS = 16, 4, 32
WAIT_S = 60.0
BATCH: Any = SimpleNamespace(extend_num_tokens=0, forward_mode=SimpleNamespace(is_extend=lambda: True), reqs=[])


class Sink:
    """What the index is told."""

    def __init__(self) -> None:
        self.slots: dict[int, BlockHash] = {}

    def publish(self, slot: int, block: BlockHash, _root: BlockHash, _generation: int) -> None:
        self.slots[slot] = block

    def withdraw(self, slot: int) -> None:
        self.slots.pop(slot, None)

    def withdraw_from(self, first_slot: int) -> None:
        self.slots = {slot: block for slot, block in self.slots.items() if slot < first_slot}


class Rig:
    """The one rank of a worker, and what stands for SGLang's scheduler.

    busy: whether it has requests. refuses: whether it leaves its tree as it is when it is to be emptied. flushes: how
    often it has emptied it.
    """

    def __init__(self) -> None:
        self.memory = KvMemory(PAGES, host_slots=HOST_SLOTS)
        self.allocator: Any = PagedTokenToKVPoolAllocator((PAGES - 1) * PAGE, PAGE, torch.float32, "cpu", None, False)
        self.store, self.sink = MemoryCoordinationStore(), Sink()
        self.busy = self.refuses = False
        self.flushes = 0
        self.desk = FlushDesk(self.store, "w")
        self.lookups = LookupService(MemoryIndex(), list)
        self.page_bytes = self.memory.rank.bytes_per_slot
        reporter = SimpleNamespace(
            load_wanted=False, listening=False, submit_load=lambda _: None, chain=lambda *_: None
        )
        engine: Any = SimpleNamespace(
            fleet=SimpleNamespace(publisher=self.sink, reporter=reporter, flushes=self.desk),
            takes_flushes=True,
            leave=lambda: None,
            worker="w",
            table=self.memory.table,
            generations=first_generations(PAGES),
            page_tokens=PAGE,
            page_bytes=self.page_bytes,
            page_count=PAGES,
            lookups=self.lookups,
            forecaster=Forecaster(1000.0),
            recorder=Recorder(),
            request_recorder=Recorder(),
            ranks=RankGroup(None),
            runtime=SimpleNamespace(puller=None, copier=Copier(self.memory.memories, self.memory.table)),
        )
        self.scheduling = ConnectorScheduler(engine, self.allocator, Settings(hbm_swap_threshold=0.0))
        self.scheduling.take_flushes()
        wait_until(lambda: self.desk._cursor is not None, WAIT_S)

    # What of SGLang's scheduler is called.

    def is_fully_idle(self) -> bool:
        return not self.busy

    def flush_cache(self) -> bool:
        if self.refuses:
            return False
        self.flushes += 1
        self.scheduling.reset()
        self.allocator.clear()
        return True

    # What tests do.

    def compute(self, *names: int) -> bool:
        """Fill and publish pages; return whether they were taken."""
        taken = self.offer(*names)
        self.passes()
        return taken

    def offer(self, *names: int) -> bool:
        """Fill pages; return whether they were taken, to be published with the next pass."""
        self.scheduling.batch_begins(BATCH)
        tokens = self.allocator.alloc(len(names) * PAGE)
        self.memory.overwrite((tokens[::PAGE] // PAGE).numpy().astype(np.int64), np.array(names, dtype=np.uint64))
        return self.scheduling.offer([bytes([name]).hex() * 32 for name in names], None, tokens, [])

    def passes(self) -> None:
        for _ in range(self.scheduling.begin_pass()):
            assert self.scheduling.publish_oldest()

    def in_host(self) -> int:
        return sum(slot >= PAGES for slot in self.sink.slots)

    def order(self, *scopes: str) -> FlushOrder:
        """Give orders, and wait until the desk has them; return the last one."""
        for number, scope in enumerate(scopes, 1):
            order = FlushOrder(bytes([number]) * ORDER_BYTES, scope, (), b"", "router")
            self.store.append_flush(order)
        wait_until(lambda: len(self.desk._orders) == len(scopes), WAIT_S)
        return order

    def idle(self) -> None:
        self.scheduling.idle(self)  # type: ignore[arg-type]

    def answer(self, order: FlushOrder) -> FlushReport | None:
        return self.store.flush_reports(order.order, ["w"])[0]


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.desk.stop(5)
    made.lookups.stop()


def copied(rig: Rig, count: int) -> None:
    def done() -> bool:
        rig.passes()
        return rig.in_host() == count

    wait_until(done, WAIT_S)


def test_idle_engine_empties_its_tree_and_its_host_tier_and_says_how_much(rig: Rig) -> None:
    """On SGLang's own thread, by SGLang's own call; nobody stands in for it."""
    assert rig.compute(1, 2, 3)
    copied(rig, 3)
    assert rig.allocator.available_size() == (PAGES - 4) * PAGE
    order = rig.order("all")
    rig.idle()
    done = FlushReport((TierDropped(Tier.DEVICE, 3, 3 * rig.page_bytes), TierDropped(Tier.HOST, 3, 3 * rig.page_bytes)))
    wait_until(lambda: rig.answer(order) == done, WAIT_S)
    assert rig.sink.slots == {}
    assert rig.allocator.available_size() == (PAGES - 1) * PAGE
    assert rig.compute(4)
    assert len(rig.sink.slots) == 1


def test_busy_engine_shares_nothing_until_it_has_emptied_its_tree(rig: Rig) -> None:
    """Peers read nothing from that moment on; the answer says what is left, and comes once more."""
    assert rig.compute(1, 2)
    copied(rig, 2)
    before = {slot: rig.memory.table.generation(slot) for slot in rig.sink.slots}
    rig.busy = True
    order = rig.order("all")
    rig.passes()
    assert rig.sink.slots == {}
    assert all(rig.memory.table.generation(slot) > generation for slot, generation in before.items())
    wait_until(lambda: rig.answer(order) is not None, WAIT_S)
    report = rig.answer(order)
    assert report is not None
    assert report.dropped[0] == TierDropped(Tier.DEVICE, 0, 0, complete=False, error=BUSY)
    assert report.dropped[1].blocks == 2
    assert not rig.compute(3)
    rig.idle()
    assert rig.flushes == 0
    assert rig.answer(order) == report
    rig.busy = False
    rig.idle()
    wait_until(lambda: rig.answer(order) != report, WAIT_S)
    assert (rig.answer(order) or report).dropped[0] == TierDropped(Tier.DEVICE, 3, 3 * rig.page_bytes)
    assert rig.compute(4)


def test_pages_on_their_way_to_the_index_when_the_order_comes_never_get_there(rig: Rig) -> None:
    """They were computed before it. SGLang counts offers: it is to be told of this one all the same."""
    assert rig.offer(1, 2)
    rig.busy = True
    rig.order("all")
    assert rig.scheduling.begin_pass() == 1
    assert rig.scheduling.publish_oldest()
    assert rig.sink.slots == {}


def test_requests_that_wait_when_the_order_comes_pull_nothing_any_more(rig: Rig) -> None:
    """Also once the tree was emptied: what they have looked up was there before the order."""
    rig.scheduling.queued(rig, request("r"))  # type: ignore[arg-type]
    tracked = rig.scheduling._tracked["r"]
    assert tracked.phase is Phase.ASKED
    rig.order("all")
    rig.idle()
    assert rig.flushes == 1
    assert tracked.phase is Phase.SETTLED
    assert rig.scheduling.match("r", [block.hex() for block in tracked.chain]) == 0
    assert "not asked for" in rig.lookups.poll("r").detail  # type: ignore[union-attr]


def test_idle_engine_that_is_ordered_nothing_keeps_its_tree(rig: Rig) -> None:
    """Nor does it empty its tree again after an order."""
    assert rig.compute(1)
    rig.idle()
    assert rig.flushes == 0
    rig.order("all")
    for _ in range(3):
        rig.idle()
    assert rig.flushes == 1


def test_sglangs_own_flush_empties_the_host_tier_and_forgets_pages_on_their_way(rig: Rig) -> None:
    """Whoever asks for it, without any order: what was offered is in no tree any more."""
    assert rig.compute(1, 2)
    copied(rig, 2)
    assert rig.offer(3)
    rig.flush_cache()
    assert rig.sink.slots == {}
    rig.passes()
    assert rig.sink.slots == {}


def test_tree_that_sglang_does_not_empty_is_emptied_later(rig: Rig) -> None:
    """Nothing is shared until then, and the answer says that something is left."""
    assert rig.compute(1)
    rig.refuses = True
    order = rig.order("all")
    rig.idle()
    wait_until(lambda: rig.answer(order) is not None, WAIT_S)
    assert not rig.compute(2)
    report = rig.answer(order)
    assert report is not None
    assert not report.dropped[0].complete
    rig.refuses = False
    rig.idle()
    wait_until(lambda: rig.answer(order) != report, WAIT_S)
    assert (rig.answer(order) or report).dropped[0].complete
    assert rig.compute(3)


@pytest.mark.parametrize("ordered", ["before", "after"])
def test_engine_that_has_left_the_fleet_is_not_emptied(rig: Rig, ordered: str) -> None:
    """It shares nothing any more, and takes no orders; its own requests go on with what it has."""
    assert rig.compute(1)
    rig.busy = True
    if ordered == "before":
        rig.order("all")
        rig.passes()
    rig.scheduling.leave("of some reason")
    if ordered == "after":
        rig.order("all")
        rig.passes()
        assert rig.desk._orders
    rig.busy = False
    rig.idle()
    assert rig.flushes == 0


def test_orders_that_wait_for_one_another_are_answered_each_and_pages_counted_once(rig: Rig) -> None:
    assert rig.compute(1, 2)
    last = rig.order("all", "all")
    rig.idle()
    assert rig.flushes == 1
    reports: list[FlushReport] = []

    def answered() -> bool:
        found = [rig.store.flush_reports(bytes([number]) * ORDER_BYTES, ["w"])[0] for number in (1, 2)]
        reports[:] = [report for report in found if report is not None and report.dropped[0].complete]
        return len(reports) == len(found)

    wait_until(answered, WAIT_S)
    assert [report.dropped[0].blocks for report in reports] == [2, 0]
    assert rig.answer(last) == reports[1]


@pytest.mark.parametrize("scope", ["prefix", "doc", "session", "tools"])
def test_other_scopes_drop_nothing_and_say_so(rig: Rig, scope: str) -> None:
    assert rig.compute(1, 2)
    order = rig.order(scope)
    rig.idle()
    wait_until(lambda: rig.answer(order) is not None, WAIT_S)
    assert rig.answer(order) == FlushReport((TierDropped(Tier.DEVICE, 0, 0, error=NOT_TAKEN),))
    assert len(rig.sink.slots) >= 2


def test_desk_never_stands_in_for_an_engine_that_does_not_come_by(rig: Rig) -> None:
    """SGLang's tree is its scheduler's alone: an engine that is paused answers late, or not at all."""
    rig.order("all")
    rig.desk._used_at = float("-inf")
    rig.desk.step()
    assert rig.desk._orders
