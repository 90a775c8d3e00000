"""A rank's loads over SGLang's own tree, allocator, and way to a load and back, and a peer to pull from."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator
from sglang.srt.mem_cache.base_prefix_cache import InsertParams, MatchPrefixParams
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
from ghostcacher_connector.metrics import Recorder
from ghostcacher_connector.pull.forecast import Forecaster
from ghostcacher_connector.pull.planner import PullPlan
from ghostcacher_connector.slots import first_generations
from ghostcacher_connector.transfer.base import PullRequest, PullResult, failed_result
from ghostcacher_connector.transfer.jobs import PullSource
from ghostcacher_connector.transfer.memory import Fabric, MemoryTransport
from ghostcacher_connector.transfer.puller import Puller
from ghostcacher_connector.transfer.shares import Share
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
        self.let.wait(60.0)
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
            share=Share.of(0, 1, 1),
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

    def hang(self, tracked: Tracked) -> None:
        """Begin a load whose READ goes on until it is let."""
        self.transport.let.clear()
        assert self.begin(tracked)
        wait_until(lambda: not self.puller._queue)

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


@contextmanager
def rigged(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """Yield a rig whose loads SGLang's hooks know of; no page is lost at its end."""
    rig = Rig()
    monkeypatch.setattr(hooks, "_linker", rig.linker)
    yield rig
    rig.transport.let.set()
    rig.check()
    rig.puller.close()


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
