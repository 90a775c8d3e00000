"""Loads that end in every way: who waits for them, and in whose hands the pages are afterwards."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from ghostcacher_connector.engines.common.pull_state import Phase
from ghostcacher_connector.metrics import summary
from ghostcacher_connector.transfer.memory import Fault
from tests.sglang.loading_rig import (
    COUNT,
    GENERATIONS,
    KEYS,
    PAGE,
    SLOTS,
    THREADS,
    Rig,
    let_go,
    rigged,
    wait_until,
)


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    with rigged(monkeypatch) as made:
        yield made


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
    rig.hang(rig.request())
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
    rig.hang(rig.request())
    rig.now += 2.0
    rig.loader.settle()
    assert rig.count("gc_pulls_total") == 0
    rig.transport.let.set()
    let_go(rig)
    assert rig.count("gc_pulls_total") == 1


def test_no_request_waits_while_reads_that_hang_hold_every_thread(rig: Rig) -> None:
    """Nobody would carry its pull out; it is computed at once, and others pull again when the READs are over."""
    for _ in range(THREADS):
        rig.hang(rig.request())
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
