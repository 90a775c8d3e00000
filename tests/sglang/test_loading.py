"""Loads that end in every way: what SGLang is told, and in whose hands the pages are afterwards."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator

from ghostcacher_connector.config import Settings
from ghostcacher_connector.core.tracing import Tracer
from ghostcacher_connector.core.types import MissReason, WorkerRecord
from ghostcacher_connector.engines.common.pull_state import Phase
from ghostcacher_connector.engines.sglang.scheduling.loading import Loader
from ghostcacher_connector.engines.sglang.scheduling.page_guard import PageGuard
from ghostcacher_connector.engines.sglang.scheduling.rank_group import RankGroup
from ghostcacher_connector.engines.sglang.scheduling.requests import Tracked
from ghostcacher_connector.metrics import Recorder, summary
from ghostcacher_connector.pull.forecast import Forecaster
from ghostcacher_connector.pull.planner import PullPlan
from ghostcacher_connector.slots import first_generations
from ghostcacher_connector.transfer.base import PullRequest, PullResult, failed_result
from ghostcacher_connector.transfer.jobs import PullSource
from ghostcacher_connector.transfer.memory import Fabric, Fault, MemoryTransport
from ghostcacher_connector.transfer.puller import Puller
from ghostcacher_connector.transfer.shares import Share
from tests.support.index_parts import rank_record
from tests.support.kv_memory import KvMemory

NAMESPACE = "n" * 32
PAGE = 4
COUNT = 3
THREADS = 2
TIMEOUT_S = 0.2
KEYS = [bytes([number]).hex() * 32 for number in range(COUNT)]


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


class Rig:
    """A peer that holds three blocks, and this engine's loader over SGLang's allocator."""

    def __init__(self, tracer: Tracer | None = None) -> None:
        fabric = Fabric()
        self.fabric, self.owner, self.memory = fabric, KvMemory(), KvMemory()
        self.peer = MemoryTransport(fabric, self.owner.memories, self.owner.table, name="peer")
        self.transport = LateTransport(fabric, self.memory.memories, self.memory.table, name="me")
        self.puller = Puller(
            [self.transport], self.memory.rank, namespace=NAMESPACE, share=Share.of(0, 1, 1), pull_threads=THREADS
        )
        self.puller.update_peers([self.record()])
        pages = self.memory.table.slot_count - 1
        self.allocator: Any = PagedTokenToKVPoolAllocator(pages * PAGE, PAGE, torch.float32, "cpu", None, False)
        generations = first_generations(pages + 1)
        self.guard = PageGuard(self.allocator, self.memory.table, generations, lambda _: None)
        self.recorder = Recorder()
        self.forecaster = Forecaster(1000.0)
        self.loader = Loader(
            self.puller,
            self.guard,
            RankGroup(None),
            Settings(pull="always", pull_timeout_s=TIMEOUT_S, pull_threads=THREADS),
            self.forecaster,
            self.recorder,
            page_tokens=PAGE,
            tracer=tracer,
        )

    def record(self) -> WorkerRecord:
        return rank_record("peer", self.peer.endpoint(rank=0), NAMESPACE)

    def request(self) -> Tracked:
        """Return a request with a plan to pull the peer's slots 5, 6 and 7."""
        slots = np.array([5, 6, 7], dtype=np.int64)
        self.owner.write(slots, np.array([1, 1, 1], dtype=np.uint64))
        source = PullSource("peer", self.owner.table.incarnation, slots, np.array([1, 1, 1], dtype=np.uint64))
        chain = [bytes.fromhex(key) for key in KEYS]
        req: Any = SimpleNamespace(rid="r")
        plan = PullPlan(0, COUNT, (source,), 0.01)
        return Tracked(req, chain, pullable=COUNT, phase=Phase.PLANNED, plan=plan)

    def load(self, tracked: Tracked | None, keys: list[str] = KEYS) -> tuple[bool, torch.Tensor]:
        """Do as SGLang does: allocate, load, and free when that says no."""
        tokens = self.allocator.alloc(len(keys) * PAGE)
        loaded = self.loader.load(tracked, keys, tokens, [])
        if not loaded:
            self.allocator.free(tokens)
        return loaded, tokens

    def count(self, name: str) -> float:
        series = self.recorder.drain().get(name, {})
        return sum(value for value in series.values() if not isinstance(value, list))


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.transport.let.set()
    rig.puller.close()


def test_load_fills_the_pages_that_sglang_gave(rig: Rig) -> None:
    """The peer's bytes are in the pages, in order, and SGLang is told so."""
    tracked = rig.request()
    loaded, tokens = rig.load(tracked)
    assert loaded
    pages = (tokens[::PAGE] // PAGE).numpy()
    assert rig.memory.holds(pages, np.array([5, 6, 7]), np.array([1, 1, 1])).all()
    assert tracked.phase is Phase.SETTLED
    assert rig.count("gc_cache_hits_total") == COUNT


@pytest.mark.parametrize("fault", [Fault.UNREACHABLE, Fault.REUSED_AFTER_READ])
def test_failed_pull_is_computed(rig: Rig, fault: Fault) -> None:
    """A dead peer, or pages reused meanwhile: SGLang is told to compute, and has all its pages back."""
    tracked = rig.request()
    rig.fabric.inject(rig.peer.agent_name, fault)
    before = rig.allocator.available_size()
    loaded, _ = rig.load(tracked)
    assert not loaded
    assert rig.allocator.available_size() == before
    assert rig.guard.kept_tokens == 0


def test_pull_that_may_still_land_keeps_its_pages(rig: Rig) -> None:
    """At the deadline SGLang is told to compute; nobody gets the pages until the READ is over, then they are free."""
    total = rig.allocator.available_size()
    tracked = rig.request()
    rig.transport.let.clear()

    loaded, tokens = rig.load(tracked)

    assert not loaded
    pages = set((tokens[::PAGE] // PAGE).tolist())
    assert rig.guard.kept_tokens == COUNT * PAGE
    rest = rig.allocator.alloc(total - COUNT * PAGE)
    assert not set((rest // PAGE).tolist()) & pages
    rig.loader.settle()
    assert rig.guard.kept_tokens == COUNT * PAGE

    rig.transport.let.set()
    wait_until(lambda: rig.loader.settle() or rig.guard.kept_tokens == 0)
    assert rig.allocator.available_size() == COUNT * PAGE
    rig.loader.begin_pass()
    again, _ = rig.load(rig.request())
    assert again


def test_late_pull_is_recorded_when_it_is_over(rig: Rig) -> None:
    """A pull that was given up tells how slow the peer is, once it has ended."""
    rig.transport.let.clear()
    rig.load(rig.request())
    assert rig.count("gc_pulls_total") == 0
    rig.transport.let.set()
    wait_until(lambda: rig.loader.settle() or rig.guard.kept_tokens == 0)
    assert rig.count("gc_pulls_total") == 1


def test_no_load_waits_while_reads_that_hang_hold_every_thread(rig: Rig) -> None:
    """Nobody would carry it out; SGLang computes at once, and pulls again when the READs are over."""
    rig.transport.let.clear()
    for _ in range(THREADS):
        rig.loader.begin_pass()
        rig.load(rig.request())
    rig.loader.begin_pass()
    began = rig.loader._waited_s
    assert not rig.load(rig.request())[0]
    assert rig.loader._waited_s - began < TIMEOUT_S / 2
    assert rig.guard.kept_tokens == THREADS * COUNT * PAGE
    rig.transport.let.set()
    wait_until(lambda: rig.loader.settle() or rig.guard.kept_tokens == 0)
    assert rig.load(rig.request())[0]


def test_quarantined_pages_are_held_and_the_threads_are_free(rig: Rig) -> None:
    """As many READs failed in part as there are threads: their pages are nobody's, and other loads are carried out."""
    over = threading.Event()
    for number in range(THREADS + 1):
        rig.transport.quarantine = over if number < THREADS else None
        rig.puller.update_peers([])
        rig.puller.update_peers([rig.record()])  # no failure is held against the peer any more
        rig.loader.begin_pass()
        assert rig.load(rig.request())[0] is (number == THREADS)
    assert rig.guard.kept_tokens == THREADS * COUNT * PAGE
    over.set()
    rig.loader.settle()
    assert rig.guard.kept_tokens == 0


def test_pages_that_are_not_pulled_are_misses_with_a_reason(rig: Rig) -> None:
    """Those that no holder has, or that SGLang made no room for; and all of a plan that is of other pages by now."""
    longer = rig.request()
    longer.pullable = COUNT + 2
    assert rig.load(longer)[0]
    other = rig.request()
    assert not rig.load(other, [bytes([9]).hex() * 32] * COUNT)[0]
    misses = summary(rig.recorder.drain())
    assert misses["gc_cache_misses_total{reason=not_indexed}"] == 2
    assert misses["gc_cache_misses_total{reason=cancelled}"] == COUNT


def test_loads_of_one_pass_share_one_patience(rig: Rig) -> None:
    """Many loads behind a peer that hangs do not add up; the next pass begins anew."""
    rig.transport.let.clear()
    rig.load(rig.request())
    rig.transport.let.set()
    wait_until(lambda: rig.loader.settle() or rig.guard.kept_tokens == 0)
    assert not rig.load(rig.request())[0]
    rig.loader.begin_pass()
    assert rig.load(rig.request())[0]


@pytest.mark.parametrize(
    "keys", [KEYS[1:], [*KEYS, "ff" * 32], ["ee" * 32], [KEYS[0], "ee" * 32, KEYS[2]], [KEYS[0], KEYS[1], "ee" * 32]]
)
def test_pages_that_were_not_planned_are_computed(rig: Rig, keys: list[str]) -> None:
    """The local cache changed between lookup and load, or another request has the same id: nothing is pulled."""
    loaded, _ = rig.load(rig.request(), keys)
    assert not loaded


def test_unknown_request_is_computed(rig: Rig) -> None:
    """A request that nobody told us of is not pulled for."""
    loaded, _ = rig.load(None)
    assert not loaded


def wait_until(condition: Callable[[], Any]) -> None:
    done = threading.Event()
    for _ in range(500):
        if condition():
            return
        done.wait(0.01)
    raise AssertionError("not within 5 s")
