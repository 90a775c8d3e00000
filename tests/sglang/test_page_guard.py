"""Bump happens-before overwrite on SGLang's own allocators, whatever they are asked to do and in whatever order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator
from sglang.srt.mem_cache.allocator.token import TokenToKVPoolAllocator

from ghostcacher_connector.engines.sglang.scheduling.page_guard import PageGuard
from ghostcacher_connector.slots import SlotTable, first_generations

PAGES = 24


def make_allocator(page_tokens: int, *, need_sort: bool = False) -> Any:
    """Return SGLang's allocator of a pool of PAGES pages, without a pool: it never looks at one."""
    if page_tokens == 1:
        return TokenToKVPoolAllocator(PAGES, torch.float32, "cpu", None, need_sort)
    return PagedTokenToKVPoolAllocator(PAGES * page_tokens, page_tokens, torch.float32, "cpu", None, need_sort)


class Guarded:
    """An allocator with its guard, and what the index would be told."""

    def __init__(self, page_tokens: int, *, need_sort: bool = False) -> None:
        self.page = page_tokens
        self.allocator = make_allocator(page_tokens, need_sort=need_sort)
        self.table = SlotTable(PAGES + 1)
        self.withdrawn: list[int] = []
        self.guard = PageGuard(self.allocator, self.table, first_generations(PAGES + 1), self.withdrawn.append)

    def take(self, pages: int) -> torch.Tensor:
        taken = self.allocator.alloc(pages * self.page)
        assert taken is not None
        return taken

    def pages_of(self, tokens: torch.Tensor) -> np.ndarray[Any, Any]:
        return np.unique(tokens.numpy() // self.page)


@pytest.fixture(params=[1, 4], ids=["page-1", "page-4"])
def guarded(request: pytest.FixtureRequest) -> Guarded:
    return Guarded(request.param)


def test_released_page_has_another_generation(guarded: Guarded) -> None:
    """A published page that is freed is bumped and withdrawn; one that was never published is neither."""
    published, other = guarded.take(3), guarded.take(2)
    pages = guarded.pages_of(published)
    before = guarded.guard.publish(pages)
    guarded.allocator.free(torch.cat((published, other)))
    assert sorted(guarded.withdrawn) == sorted(pages.tolist())
    assert [guarded.table.generation(int(page)) for page in pages] == [int(g) + 1 for g in before]


def test_group_of_frees_is_bumped_when_it_ends(guarded: Guarded) -> None:
    """Inside a free group nothing is in the free lists, and nothing needs a bump; at its end both happen."""
    published = guarded.take(3)
    guarded.guard.publish(guarded.pages_of(published))
    guarded.allocator.free_group_begin()
    guarded.allocator.free_segment(published, start_pos=0)
    assert guarded.withdrawn == []
    guarded.allocator.free_group_end()
    assert len(guarded.withdrawn) == len(guarded.pages_of(published))


def test_clear_bumps_all_that_is_published(guarded: Guarded) -> None:
    """A flush puts every page back at once: every published one is bumped before."""
    published = guarded.take(5)
    before = guarded.guard.publish(guarded.pages_of(published))
    guarded.allocator.clear()
    now = [guarded.table.generation(int(page)) for page in guarded.pages_of(published)]
    assert now == [int(g) + 1 for g in before]
    assert guarded.allocator.available_size() == PAGES * guarded.page


@pytest.mark.parametrize("flush", [False, True])
def test_held_pages_come_back_when_they_are_let_go(guarded: Guarded, flush: bool) -> None:
    """A held page that SGLang frees is in nobody's hands, also through a flush, until its READ is over."""
    taken = guarded.take(4)
    pages = guarded.pages_of(taken)
    guarded.guard.hold(pages)
    guarded.allocator.free(taken)
    if flush:
        guarded.allocator.clear()
    assert guarded.guard.kept_tokens == 4 * guarded.page
    rest = guarded.take(PAGES - 4)
    assert not set(guarded.pages_of(rest)) & set(pages)
    assert guarded.allocator.alloc(guarded.page) is None

    guarded.guard.let_go(pages)

    assert guarded.guard.kept_tokens == 0
    assert set(guarded.pages_of(guarded.take(4))) == set(pages)


class AllocatorMachine(RuleBasedStateMachine):
    """Requests that take, publish and give back pages in every way; a model of what each page may hold."""

    page_tokens = 4
    need_sort = False

    def __init__(self) -> None:
        super().__init__()
        self.guarded = Guarded(self.page_tokens, need_sort=self.need_sort)
        self.owned: list[torch.Tensor] = []
        self.entries: dict[int, int] = {}
        self.in_group: list[torch.Tensor] = []
        self.grouping = False
        self.holds: list[np.ndarray[Any, Any]] = []

    @rule(pages=st.integers(1, 6))
    def take(self, pages: int) -> None:
        taken = self.guarded.allocator.alloc(pages * self.page_tokens)
        if taken is None:
            return
        for page in self.guarded.pages_of(taken).tolist():
            held = any(page in pages for pages in self.holds)
            assert not held, "a page was given out into which a READ may still write"
            stale = self.entries.pop(page, None)
            assert stale is None or self.guarded.table.generation(page) != stale, f"page {page} is reused unseen"
        self.owned.append(taken)

    @precondition(lambda self: self.owned)
    @rule(number=st.integers(0, 99))
    def publish(self, number: int) -> None:
        pages = self.guarded.pages_of(self.owned[number % len(self.owned)])
        generations = self.guarded.guard.publish(pages)
        self.entries.update(zip(pages.tolist(), map(int, generations), strict=True))

    @precondition(lambda self: self.owned)
    @rule(number=st.integers(0, 99), how=st.sampled_from(["free", "segment", "segments", "part"]))
    def give_back(self, number: int, how: str) -> None:
        tokens = self.owned.pop(number % len(self.owned))
        allocator = self.guarded.allocator
        if how == "free":
            allocator.free(tokens)
        elif how == "segment":
            allocator.free_segment(tokens, start_pos=0)
        elif how == "segments":
            allocator.free_segments([(tokens, 0)])
        else:
            half = len(tokens) // self.page_tokens // 2 * self.page_tokens
            allocator.free(tokens[:half])
            if half < len(tokens):
                self.owned.append(tokens[half:])

    @precondition(lambda self: not self.grouping)
    @rule()
    def begin_group(self) -> None:
        self.guarded.allocator.free_group_begin()
        self.grouping = True

    @precondition(lambda self: self.grouping)
    @rule()
    def end_group(self) -> None:
        self.guarded.allocator.free_group_end()
        self.grouping = False

    @precondition(lambda self: self.owned)
    @rule(number=st.integers(0, 99))
    def hold(self, number: int) -> None:
        tokens = self.owned.pop(number % len(self.owned))
        pages = self.guarded.pages_of(tokens)
        self.guarded.guard.hold(pages)
        self.holds.append(pages)
        self.guarded.allocator.free(tokens)

    @precondition(lambda self: self.holds and not self.grouping)
    @rule(number=st.integers(0, 99))
    def let_go(self, number: int) -> None:
        self.guarded.guard.let_go(self.holds.pop(number % len(self.holds)))

    @precondition(lambda self: self.holds and not self.grouping)
    @rule(number=st.integers(0, 99))
    def hand_over(self, number: int) -> None:
        pages = self.holds.pop(number % len(self.holds))
        assert self.guarded.guard.hand_over(pages).tolist() == pages.tolist()
        tokens = pages[:, None] * self.page_tokens + np.arange(self.page_tokens)
        self.owned.append(torch.from_numpy(tokens.reshape(-1)))

    @precondition(lambda self: not self.grouping)
    @rule()
    def flush(self) -> None:
        self.guarded.allocator.clear()
        self.owned.clear()

    @invariant()
    def no_page_is_lost(self) -> None:
        if self.grouping:
            return
        owned = sum(len(tokens) for tokens in self.owned)
        free = self.guarded.allocator.available_size()
        assert owned + free + self.guarded.guard.kept_tokens == PAGES * self.page_tokens


class TokenMachine(AllocatorMachine):
    page_tokens = 1


class SortedMachine(AllocatorMachine):
    need_sort = True


TestPages = AllocatorMachine.TestCase
TestTokens = TokenMachine.TestCase
TestSorted = SortedMachine.TestCase
for case in (TestPages, TestTokens, TestSorted):
    case.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
