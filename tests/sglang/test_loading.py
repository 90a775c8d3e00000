"""Loads that end in every way: who waits for them, and in whose hands the pages are afterwards.

The tree, the way to a load and back, and the allocator are SGLang's own.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator
from sglang.srt.mem_cache.base_prefix_cache import EvictParams, InsertParams, MatchPrefixParams
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.mem_cache.unified_cache.unified_cache_linker import (
    ExternalCacheHitMarker,
    UnifiedCacheLinker,
    UnifiedCacheLinkerWrapper,
)
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache
from sglang.srt.mem_cache.utils import get_storage_hash_str

from ghostcacher_connector.config import Settings
from ghostcacher_connector.core.tracing import Tracer
from ghostcacher_connector.core.types import MissReason, WorkerRecord
from ghostcacher_connector.engines.common.pull_state import Phase
from ghostcacher_connector.engines.sglang import hooks
from ghostcacher_connector.engines.sglang.scheduling.load_records import LoadRecords
from ghostcacher_connector.engines.sglang.scheduling.loading import Loader
from ghostcacher_connector.engines.sglang.scheduling.page_guard import PageGuard
from ghostcacher_connector.engines.sglang.scheduling.rank_group import RankGroup
from ghostcacher_connector.engines.sglang.scheduling.requests import Tracked
from ghostcacher_connector.engines.sglang.scheduling.tree_entry import enter_pages
from ghostcacher_connector.metrics import Recorder, summary
from ghostcacher_connector.pull.forecast import Forecaster
from ghostcacher_connector.pull.planner import PullPlan
from ghostcacher_connector.slots import first_generations
from ghostcacher_connector.transfer.base import PullRequest, PullResult, failed_result
from ghostcacher_connector.transfer.jobs import PullSource
from ghostcacher_connector.transfer.memory import Fabric, Fault, MemoryTransport
from ghostcacher_connector.transfer.puller import Puller
from tests.support.index_parts import rank_record
from tests.support.kv_memory import KvMemory

NAMESPACE = "n" * 32
PAGE = 4
COUNT = 3
THREADS = 2
SLOTS = np.array([5, 6, 7], dtype=np.int64)
GENERATIONS = np.array([1, 1, 1], dtype=np.uint64)
PROMPT = array("q", range(COUNT * PAGE + 1))
KEYS = get_storage_hash_str(RadixKey(PROMPT)[: COUNT * PAGE], None, page_size=PAGE)


class LateTransport(MemoryTransport):
    """READs land only when they are let, however long the deadline has passed: a stopped owner behind RDMA."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.let = threading.Event()
        self.let.set()
        self.quarantine: threading.Event | None = None

    def pull(self, request: PullRequest) -> PullResult:
        if self.quarantine is not None:
            count = len(request.local_slots)
            failed = failed_result(count, self.name, MissReason.TRANSFER_FAILED, "a rail failed")
            return failed._replace(over=self.quarantine)
        self.let.wait(30.0)
        return super().pull(request._replace(deadline=float("inf")))


class RigLinker(UnifiedCacheLinker):
    """What SGLang's tree calls: as GhostCacherLinker, with loads of a rig alone."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.pools = {}

    def load(self, rid: str, transfers: list[Any]) -> bool:
        self.rig.loader.begin(
            self.rig.tracked.get(rid), transfers[0].keys, transfers[0].device_indices, self.rig.events
        )
        return False

    def waits(self, rid: str) -> bool:
        return self.rig.loader.waits(rid)

    def lookup(self, *_: Any) -> list[int]:
        return []

    def offload(self, *_: Any, **__: Any) -> bool:
        return False

    def start_layer_wise_loading(self) -> int:
        return -1

    def finish_layer_wise_loading(self, *_: Any) -> bool:
        return True

    def cancel_queued_load(self, *_: Any) -> bool:
        return False

    def num_completed_offloads(self) -> int:
        return 0

    def pop_completed_offload(self) -> bool:
        return True

    def reset(self) -> None:
        self.rig.loader.void()

    def close(self) -> None:
        pass


class Rig:
    """A peer that holds three blocks, and this engine's loader beneath SGLang's tree.

    now: what its clock says. events: what has to be over before a pull may write.
    """

    def __init__(self, tracer: Tracer | None = None) -> None:
        fabric = Fabric()
        self.now, self.events = 0.0, list[Any]()

        def clock() -> float:
            self.now += 1e-6
            return self.now

        self.tracked: dict[str, Tracked] = {}
        self.fabric, self.owner, self.memory = fabric, KvMemory(), KvMemory()
        self.peer = MemoryTransport(fabric, self.owner.memories, self.owner.table, name="peer")
        self.transport = LateTransport(fabric, self.memory.memories, self.memory.table, name="me")
        self.puller = Puller(
            [self.transport],
            self.memory.rank,
            namespace=NAMESPACE,
            rank=0,
            pull_threads=THREADS,
            clock=clock,
        )
        self.puller.update_peers([self.record()])
        self.pages = self.memory.table.slot_count - 1
        self.allocator: Any = PagedTokenToKVPoolAllocator(self.pages * PAGE, PAGE, torch.float32, "cpu", None, False)
        self.guard = PageGuard(self.allocator, self.memory.table, first_generations(self.pages + 1), lambda _: None)
        self.tree = UnifiedRadixCache(
            CacheInitParams(
                disable=False,
                req_to_token_pool=ReqToTokenPool(8, 256, "cpu", False),
                token_to_kv_pool_allocator=self.allocator,
                page_size=PAGE,
                tree_components=(ComponentType.FULL,),
            )
        )
        self.linker = RigLinker(self)
        self.tree.init_cache_linker(self.linker)
        self.recorder = Recorder()
        self.forecaster = Forecaster(1000.0)
        ranks = RankGroup(None)
        self.loader = Loader(
            self.puller,
            self.guard,
            ranks,
            Settings(pull="always", pull_timeout_s=1.0, pull_threads=THREADS),
            self.forecaster,
            records=LoadRecords(ranks, self.forecaster, self.recorder, page_tokens=PAGE, tracer=tracer),
            enter=lambda *args: enter_pages(self.tree, *args),
            page_tokens=PAGE,
            pages_max=self.pages // 2,
            clock=clock,
        )

    def record(self) -> WorkerRecord:
        return rank_record("peer", self.peer.endpoint(rank=0), NAMESPACE)

    def request(self, rid: str = "r", first: int = 0, prompt: array[int] = PROMPT) -> Tracked:
        """Return a request with a plan to pull the peer's slots 5, 6 and 7, or those of them from the first on."""
        self.owner.write(SLOTS, GENERATIONS)
        source = PullSource("peer", self.owner.table.incarnation, SLOTS[first:], GENERATIONS[first:])
        names = get_storage_hash_str(RadixKey(prompt)[: COUNT * PAGE], None, page_size=PAGE)
        req: Any = SimpleNamespace(
            rid=rid, origin_input_ids=prompt, extra_key=None, cache_salt=None, last_node=self.tree.root_node_handle()
        )
        plan = PullPlan(first, COUNT - first, (source,), 0.01)
        chain = [bytes.fromhex(name) for name in names]
        return Tracked(req, chain, pullable=COUNT, phase=Phase.PLANNED, plan=plan)

    def begin(self, tracked: Tracked, keys: list[str] = KEYS, first: int = 0) -> bool:
        """Do as SGLang does when it admits a request with a hit; return whether the request waits."""
        rid = tracked.request_id
        self.tracked[rid] = tracked
        self.tree.linker.hit_markers[rid] = ExternalCacheHitMarker(list(keys), first * PAGE)
        loaded = hooks.load_begun(UnifiedCacheLinkerWrapper.load_back, self.tree.linker, tracked.req)
        assert loaded == (None if self.loader.waits(rid) else (0, tracked.req.last_node))
        return self.loader.waits(rid)

    def load(self, tracked: Tracked, keys: list[str] = KEYS) -> int:
        """Load until it is over; return how many tokens of the request's prompt the tree has then."""
        if self.begin(tracked, keys):
            self.over(tracked)
        return self.local(tracked.req.origin_input_ids)

    def over(self, tracked: Tracked) -> None:
        wait_until(lambda: self.loader.settle() or not self.loader.waits(tracked.request_id))

    def local(self, prompt: array[int] = PROMPT) -> int:
        found = self.tree.match_prefix(MatchPrefixParams(key=RadixKey(prompt)))
        return int(found.device_prefix_len)

    def pages_of(self, prompt: array[int] = PROMPT) -> np.ndarray[Any, Any]:
        """Return the pages that the tree has of a prompt."""
        found = self.tree.match_prefix(MatchPrefixParams(key=RadixKey(prompt)))
        return np.asarray(self.tree.path_device_indices(found.last_device_node)[::PAGE] // PAGE)

    def compute(self, count: int, prompt: array[int] = PROMPT) -> torch.Tensor:
        """Enter the first pages of a prompt into the tree as SGLang does; return their places."""
        tokens = self.allocator.alloc(count * PAGE)
        self.tree.insert(InsertParams(key=RadixKey(prompt)[: count * PAGE], value=tokens))
        return tokens

    def count(self, name: str) -> float:
        series = self.recorder.drain().get(name, {})
        return sum(value for value in series.values() if not isinstance(value, list))

    def check(self) -> None:
        """Every page is free, in the tree, or kept."""
        accounted = self.allocator.available_size() + self.tree.evictable_size() + self.guard.kept_tokens
        assert accounted == self.pages * PAGE


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    rig = Rig()
    monkeypatch.setattr(hooks, "_linker", rig.linker)
    yield rig
    rig.transport.let.set()
    rig.check()
    rig.puller.close()


def test_pages_of_a_peer_are_in_sglangs_tree_when_the_request_no_longer_waits(rig: Rig) -> None:
    """The peer's bytes, in order, where SGLang looks for the prefix of the request."""
    tracked = rig.request()
    assert rig.load(tracked) == COUNT * PAGE
    assert rig.memory.holds(rig.pages_of(), SLOTS, GENERATIONS).all()
    assert tracked.phase is Phase.SETTLED
    assert rig.count("gc_cache_hits_total") == COUNT
    assert rig.guard.kept_tokens == 0


def test_nothing_is_in_the_tree_before_its_pull_is_over(rig: Rig) -> None:
    """The pages are nobody's meanwhile: not SGLang's to give, and found by no other request."""
    rig.transport.let.clear()
    tracked = rig.request()
    assert rig.begin(tracked)
    rig.loader.settle()
    assert rig.loader.waits("r")
    assert (rig.local(), rig.guard.kept_tokens) == (0, COUNT * PAGE)
    rest = rig.allocator.alloc((rig.pages - COUNT) * PAGE)
    assert rig.allocator.alloc(PAGE) is None
    rig.allocator.free(rest)
    rig.transport.let.set()
    rig.over(tracked)
    assert rig.local() == COUNT * PAGE


@pytest.mark.parametrize("fault", [Fault.UNREACHABLE, Fault.REUSED_AFTER_READ])
def test_failed_pull_is_computed(rig: Rig, fault: Fault) -> None:
    """A dead peer, or pages reused meanwhile: nothing is in the tree, and SGLang has all its pages back."""
    rig.fabric.inject(rig.peer.agent_name, fault)
    before = rig.allocator.available_size()
    assert rig.load(rig.request()) == 0
    assert rig.allocator.available_size() == before
    assert rig.guard.kept_tokens == 0


def test_good_head_of_a_pull_is_used(rig: Rig) -> None:
    """The last page was reused by its owner: the two before it are right, and stay."""
    tracked = rig.request()
    rig.owner.write(SLOTS[2:], GENERATIONS[2:] + np.uint64(1))
    assert rig.load(tracked) == 2 * PAGE
    assert rig.memory.holds(rig.pages_of(), SLOTS[:2], GENERATIONS[:2]).all()
    assert rig.count("gc_cache_hits_total") == 2


def test_pull_that_may_still_land_keeps_its_pages(rig: Rig) -> None:
    """At the deadline the request waits no longer; nobody gets the pages until the READ is over, then they are free."""
    tracked = rig.request()
    rig.transport.let.clear()
    rig.begin(tracked)
    rig.now += 2.0
    rig.loader.settle()
    assert not rig.loader.waits("r")
    assert (rig.local(), rig.guard.kept_tokens) == (0, COUNT * PAGE)
    rig.loader.settle()
    assert rig.guard.kept_tokens == COUNT * PAGE
    rig.transport.let.set()
    let_go(rig)
    assert rig.local() == 0
    assert rig.load(rig.request()) == COUNT * PAGE


def test_late_pull_is_recorded_when_it_is_over(rig: Rig) -> None:
    """A pull that was given up tells how slow the peer is, once it has ended."""
    rig.transport.let.clear()
    rig.begin(rig.request())
    rig.now += 2.0
    rig.loader.settle()
    assert rig.count("gc_pulls_total") == 0
    rig.transport.let.set()
    let_go(rig)
    assert rig.count("gc_pulls_total") == 1


def test_no_request_waits_while_reads_that_hang_hold_every_thread(rig: Rig) -> None:
    """Nobody would carry its pull out; it is computed at once, and others pull again when the READs are over."""
    rig.transport.let.clear()
    for _ in range(THREADS):
        rig.begin(rig.request())
        wait_until(lambda: not rig.puller._queue)
        rig.now += 2.0
        rig.loader.settle()
    assert not rig.begin(rig.request())
    assert rig.guard.kept_tokens == THREADS * COUNT * PAGE
    rig.transport.let.set()
    let_go(rig)
    assert rig.load(rig.request()) == COUNT * PAGE


def test_quarantined_pages_are_held_and_the_threads_are_free(rig: Rig) -> None:
    """As many READs failed in part as there are threads: their pages are nobody's, and other loads are carried out."""
    over = threading.Event()
    for number in range(THREADS + 1):
        rig.transport.quarantine = over if number < THREADS else None
        rig.puller.update_peers([])
        rig.puller.update_peers([rig.record()])  # no failure is held against the peer any more
        tracked = rig.request()
        rig.begin(tracked)
        if number < THREADS:
            wait_until(lambda expected=number + 1: rig.puller.quarantined_count == expected)
            rig.now += 2.0
        rig.over(tracked)
    assert rig.local() == COUNT * PAGE
    assert rig.guard.kept_tokens == THREADS * COUNT * PAGE
    over.set()
    rig.loader.settle()
    assert rig.guard.kept_tokens == 0


def test_pages_that_are_not_pulled_are_misses_with_a_reason(rig: Rig) -> None:
    """Those that no holder has, or that SGLang made no room for; and all of a plan that is of other pages by now."""
    other = rig.request()
    assert not rig.begin(other, [bytes([9]).hex() * 32] * COUNT)
    longer = rig.request()
    longer.pullable = COUNT + 2
    assert rig.load(longer) == COUNT * PAGE
    misses = summary(rig.recorder.drain())
    assert misses["gc_cache_misses_total{reason=not_indexed}"] == 2
    assert misses["gc_cache_misses_total{reason=cancelled}"] == COUNT


@pytest.mark.parametrize(
    "keys", [KEYS[1:], [*KEYS, "ff" * 32], ["ee" * 32], [KEYS[0], "ee" * 32, KEYS[2]], [KEYS[0], KEYS[1], "ee" * 32]]
)
def test_pages_that_were_not_planned_are_computed(rig: Rig, keys: list[str]) -> None:
    """The local cache changed between lookup and load, or another request has the same id: nothing is pulled."""
    assert not rig.begin(rig.request(), keys)


def test_unknown_request_is_computed(rig: Rig) -> None:
    """A request that nobody told us of is not pulled for."""
    tokens = rig.allocator.alloc(COUNT * PAGE)
    rig.loader.begin(None, KEYS, tokens, [])
    rig.allocator.free(tokens)
    assert rig.guard.kept_tokens == 0


# -- several requests ------------------------------------------------------------------------------------------------


def test_request_for_pages_that_are_on_their_way_waits_for_them(rig: Rig) -> None:
    """One pull for both; its own pages SGLang has back at once."""
    rig.transport.let.clear()
    first, second = rig.request("a"), rig.request("b")
    assert rig.begin(first)
    assert rig.begin(second)
    assert rig.guard.kept_tokens == COUNT * PAGE
    rig.transport.let.set()
    rig.over(first)
    assert not rig.loader.waits("b")
    assert rig.count("gc_pulls_total") == 1


def test_request_follows_others_once(rig: Rig) -> None:
    """The load that it waited for has failed; another one for its pages has begun: it is computed."""
    rig.transport.let.clear()
    follower = rig.request("b")
    for rid, waits in (("a", True), ("c", False)):
        rig.begin(rig.request(rid))
        assert rig.begin(follower) is waits
        rig.now += 2.0
        rig.loader.settle()
        assert not rig.loader.waits("b")


def test_loads_together_hold_a_part_of_the_pool(rig: Rig) -> None:
    """What has no room beside those that run waits for the oldest of them."""
    rig.loader._pages_max = COUNT
    rig.transport.let.clear()
    other = array("q", range(100, 100 + len(PROMPT)))
    keys = get_storage_hash_str(RadixKey(other)[: COUNT * PAGE], None, page_size=PAGE)
    first, second = rig.request("a"), rig.request("b", prompt=other)
    assert rig.begin(first)
    assert rig.begin(second, keys)
    assert rig.guard.kept_tokens == COUNT * PAGE
    rig.transport.let.set()
    rig.over(first)
    assert rig.load(second, keys) == COUNT * PAGE


def test_pages_of_reads_that_hang_count_with_those_of_loads(rig: Rig) -> None:
    """With none that could be waited for, a request is computed."""
    rig.loader._pages_max = COUNT
    rig.transport.let.clear()
    rig.begin(rig.request())
    rig.now += 2.0
    rig.loader.settle()
    assert not rig.begin(rig.request("b"))
    assert rig.guard.kept_tokens == COUNT * PAGE


def test_pull_begins_when_nothing_else_may_write_to_its_pages(rig: Rig) -> None:
    """A pass that was launched before SGLang gave the pages is still running on the GPU."""
    running = SimpleNamespace(done=False)
    rig.events = [SimpleNamespace(query=lambda: running.done)]
    tracked = rig.request()
    rig.begin(tracked)
    rig.loader.settle()
    assert not rig.loader._submitted
    assert rig.loader.waits("r")
    running.done = True
    rig.over(tracked)
    assert rig.local() == COUNT * PAGE


def test_pages_behind_a_prefix_of_this_engine_stand_behind_it(rig: Rig) -> None:
    """Its own page stays where it is; the peer's two are behind it."""
    own = rig.compute(1)
    tracked = rig.request(first=1)
    assert rig.begin(tracked, KEYS[1:], first=1)
    rig.over(tracked)
    pages = rig.pages_of()
    assert pages[0] == own[0] // PAGE
    assert rig.memory.holds(pages[1:], SLOTS[1:], GENERATIONS[1:]).all()


def test_prefix_that_was_evicted_meanwhile_leaves_nothing_to_stand_on(rig: Rig) -> None:
    """The peer's pages are free again, and the request is computed."""
    rig.compute(1)
    tracked = rig.request(first=1)
    rig.begin(tracked, KEYS[1:], first=1)
    rig.tree.evict(EvictParams(num_tokens=PAGE))
    rig.over(tracked)
    assert rig.local() == 0
    assert rig.allocator.available_size() == rig.pages * PAGE
    assert rig.count("gc_cache_hits_total") == 0


def test_pages_that_were_computed_meanwhile_stay_and_the_peers_are_free(rig: Rig) -> None:
    """Requests may stand on them already."""
    rig.transport.let.clear()
    tracked = rig.request()
    rig.begin(tracked)
    own = rig.compute(2)
    rig.transport.let.set()
    rig.over(tracked)
    assert rig.pages_of()[:2].tolist() == (own[::PAGE] // PAGE).tolist()
    assert rig.local() == COUNT * PAGE
    assert rig.allocator.available_size() == (rig.pages - COUNT) * PAGE


# -- what comes between ----------------------------------------------------------------------------------------------


def test_pull_of_a_request_that_has_ended_is_used_for_nothing(rig: Rig) -> None:
    """A client that went away: its pages are free once the READ is over, and who waited for them goes on."""
    rig.transport.let.clear()
    rig.begin(rig.request("a"))
    rig.begin(rig.request("b"))
    rig.loader.forget("a")
    assert not rig.loader.waits("a")
    assert not rig.loader.waits("b")
    rig.transport.let.set()
    let_go(rig)
    assert rig.local() == 0


def test_request_that_ends_while_it_waits_for_anothers_load_ends_alone(rig: Rig) -> None:
    rig.transport.let.clear()
    first = rig.request("a")
    rig.begin(first)
    rig.begin(rig.request("b"))
    rig.loader.forget("b")
    assert rig.loader.waits("a")
    rig.transport.let.set()
    rig.over(first)
    assert rig.local() == COUNT * PAGE


def test_flush_leaves_nothing_of_a_pull_in_the_new_tree(rig: Rig) -> None:
    """SGLang puts every page into its free list; those of the READ are not among them until it is over."""
    rig.transport.let.clear()
    rig.begin(rig.request())
    rig.tree.reset()
    rig.allocator.clear()
    assert not rig.loader.waits("r")
    assert rig.allocator.available_size() == (rig.pages - COUNT) * PAGE
    rig.transport.let.set()
    let_go(rig)
    assert rig.local() == 0
    assert rig.allocator.available_size() == rig.pages * PAGE


def test_sglang_that_runs_out_of_memory_has_the_pages_of_pulls_first(rig: Rig) -> None:
    """Whether they have landed or not: in the tree they would be locked until they are published."""
    rig.begin(rig.request())
    rig.loader.drain()
    assert not rig.loader.waits("r")
    assert rig.allocator.available_size() == rig.pages * PAGE


def test_draining_ends_at_the_deadline_of_a_pull_that_hangs(rig: Rig) -> None:
    rig.transport.let.clear()
    rig.begin(rig.request())
    rig.loader._clock = ticking(rig)
    rig.loader.drain()
    assert not rig.loader.waits("r")
    assert rig.guard.kept_tokens == COUNT * PAGE


# -- several ranks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("others", "local"), [(2, 2 * PAGE), (0, 0)])
def test_ranks_use_what_all_of_them_have(rig: Rig, others: int, local: int) -> None:
    """This rank has all three pages; another one has fewer."""
    tracked = rig.request()
    rig.begin(tracked)
    ranks: Any = SimpleNamespace(rank=0, least_of=lambda values: [min(value, others) for value in values])
    rig.loader._ranks = ranks
    rig.over(tracked)
    assert rig.local() == local
    assert rig.allocator.available_size() == rig.pages * PAGE - local


def test_request_waits_until_every_rank_has_its_share(rig: Rig) -> None:
    """And where another rank's READ hangs, this one holds its pages for as long."""
    tracked = rig.request()
    rig.begin(tracked)
    wait_until(lambda: bool(rig.puller._finished))
    agreed = [-2]
    ranks: Any = SimpleNamespace(rank=0, least_of=lambda _: list(agreed))
    rig.loader._ranks = ranks
    rig.loader.settle()
    assert rig.loader.waits("r")
    agreed[:] = [-1]
    rig.loader.settle()
    assert not rig.loader.waits("r")
    agreed[:] = [0]
    rig.loader.settle()
    assert (rig.local(), rig.guard.kept_tokens) == (0, COUNT * PAGE)
    agreed[:] = [1]
    rig.loader.settle()
    assert rig.guard.kept_tokens == 0


def test_load_begins_on_all_ranks_or_on_none(rig: Rig) -> None:
    """Another rank has no plan for these pages."""
    ranks: Any = SimpleNamespace(rank=0, least=lambda _: 0)
    rig.loader._ranks = ranks
    tracked = rig.request()
    assert not rig.begin(tracked)
    assert tracked.phase is Phase.SETTLED


def let_go(rig: Rig) -> None:
    wait_until(lambda: rig.loader.settle() or rig.guard.kept_tokens == 0)


def ticking(rig: Rig) -> Callable[[], float]:
    def clock() -> float:
        rig.now += 0.1
        return rig.now

    return clock


def wait_until(condition: Callable[[], Any]) -> None:
    done = threading.Event()
    for _ in range(3000):
        if condition():
            return
        done.wait(0.01)
    raise AssertionError("not within 30 s")
