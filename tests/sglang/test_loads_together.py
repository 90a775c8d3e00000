"""Loads of several requests and ranks, and what SGLang does while they run."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.mem_cache.base_prefix_cache import EvictParams
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.utils import get_storage_hash_str

from ghostcacher_connector.engines.common.pull_state import Phase
from tests.sglang.loading_rig import (
    COUNT,
    GENERATIONS,
    KEYS,
    PAGE,
    PROMPT,
    SLOTS,
    Rig,
    let_go,
    rigged,
    ticking,
    wait_until,
)


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    with rigged(monkeypatch) as made:
        yield made


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
    rig.hang(rig.request())
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
    rig.hang(rig.request())
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
    rig.hang(rig.request())
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
