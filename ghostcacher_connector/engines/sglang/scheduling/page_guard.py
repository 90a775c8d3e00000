"""Keeps the generations of pages: *bump happens-before overwrite*. Holds back pages that a READ may still write to.

Why no page is ever overwritten under a generation that somebody may hold:
1. The bytes of a page are written by a forward pass of a request that was given the page, by a pull into pages that
   were given for it, or as padding, to page 0, which is never published. Giving is `alloc`, `alloc_extend` and
   `alloc_decode` of the allocator, and there is no other way: support.py refuses all that has one (speculative decoding
   moves pages, other allocators have other lists).
2. These take from the allocator's free lists, and from nowhere else. Pages enter the lists in two places only:
   `PagedTokenToKVPoolAllocator._release_page_ids` (`TokenToKVPoolAllocator.free` outside of a free group for pages of
   one token), where every `free`, `free_segment`, `free_page_ids`, free group, eviction, retraction, abort and
   duplicate insert ends, and `clear` (a flush, a weight update, a resize). Both are replaced here, on the instance.
3. The replacements bump the generation of every published page among those released before the allocator sees one
   of them. A page that is published lies in the radix tree, locked (publishing.py), so it is not in a free list.
4. All of this is on the scheduler's thread: between the bump and any later write to the page lies at least one `alloc`.
On a GPU a forward pass that was launched before a page was released may still write to it: such a page is the last,
unfilled one of a request, and those are never published. A pull waits for that pass before it writes (loading.py).

Owner of a page: SGLang, except while it is *held*: a pull reads into it, or was given up and its READ may land later.
SGLang frees such a page at once; it gets no further than here until the pull is over: then it is free (`let_go`), or is
what SGLang would have computed (`hand_over`). Every rank holds the same pages (rank_group.py).

Driven by the scheduler's thread alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ghostcacher_connector.slots import Generations, Slots, SlotTable


class PageGuard:
    """Generations of one rank's pages. Page p of the pool is slot p of the table."""

    def __init__(
        self, allocator: Any, table: SlotTable, generations: Generations, on_withdraw: Callable[[int], None]
    ) -> None:
        """Take over the allocator's ways into its free lists.

        allocator: SGLang's PagedTokenToKVPoolAllocator or TokenToKVPoolAllocator, no other (support.py).
        table: generations as peers read them.
        generations: those to begin with, shape (pages,), the same on all ranks.
        on_withdraw: called with each published page that is released.
        """
        self._allocator = allocator
        self._table = table
        self._generations = generations.copy()
        self._on_withdraw = on_withdraw
        self._published = np.zeros(len(generations), dtype=np.bool_)
        self._held = np.zeros(len(generations), dtype=np.bool_)
        self._kept = np.zeros(len(generations), dtype=np.bool_)
        table.bump(np.arange(len(generations), dtype=np.int64), self._generations)
        self._clear_pool = allocator.clear
        allocator.clear = self._clear
        if allocator.page_size == 1:
            self._put_back = allocator.free
            allocator.free = self._free_tokens
        else:
            self._put_back = allocator._release_page_ids
            allocator._release_page_ids = self._release_pages

    def __repr__(self) -> str:
        return f"PageGuard(published={int(self._published.sum())}, held={int(self._held.sum())})"

    @property
    def kept_tokens(self) -> int:
        """Tokens of pages that SGLang has freed and that are not in its free lists."""
        return int(self._kept.sum()) * int(self._allocator.page_size)

    def publish(self, pages: Slots) -> Generations:
        """Watch pages that lie in the tree from now on; return the generations to publish them with."""
        self._published[pages] = True
        found: Generations = self._generations[pages]
        return found

    def withdraw_all(self) -> None:
        """Bump every published page, though nothing is about to be written there: none is offered any more."""
        self._bump(np.flatnonzero(self._published))

    def hold(self, pages: Slots) -> None:
        """Keep these pages from SGLang's free lists, whoever frees them, until `let_go` or `hand_over`."""
        self._held[pages] = True

    def let_go(self, pages: Slots) -> None:
        """Hold these pages no longer, and give back what was kept of them: nothing can be written there any more."""
        kept = self.hand_over(pages)
        if len(kept):
            self._put_back(torch.from_numpy(kept).to(self._allocator.device))

    def hand_over(self, pages: Slots) -> Slots:
        """Hold these pages no longer; return those that were kept: in use from now on, as if just allocated."""
        kept: Slots = pages[self._kept[pages]]
        self._held[pages] = False
        self._kept[pages] = False
        return kept

    def _release_pages(self, *page_ids: torch.Tensor) -> None:
        """Stands for `PagedTokenToKVPoolAllocator._release_page_ids`."""
        for ids in page_ids:
            free = self._released(ids)
            if free.numel():
                self._put_back(free)

    def _free_tokens(self, free_index: torch.Tensor) -> None:
        """Stands for `TokenToKVPoolAllocator.free`: with pages of one token, token indexes are page numbers."""
        if self._allocator.free_group is not None:
            self._put_back(free_index)  # comes again when the group ends
        elif free_index.numel():
            self._put_back(self._released(free_index))

    def _released(self, page_ids: torch.Tensor) -> torch.Tensor:
        """Bump what was published; return the pages that nothing holds."""
        pages: Slots = page_ids.cpu().numpy().astype(np.int64, copy=False)
        self._bump(pages[self._published[pages]])
        held = self._held[pages]
        if not held.any():
            return page_ids
        self._kept[pages[held]] = True
        return page_ids[torch.from_numpy(~held).to(page_ids.device)]

    def _clear(self) -> None:
        """Stands for `clear`, which puts every page into the free list."""
        self._bump(np.flatnonzero(self._published))
        self._clear_pool()
        if self._held.any():
            free = self._allocator.free_pages.cpu().numpy()
            self._kept |= self._held
            self._allocator.free_pages = torch.from_numpy(free[~self._held[free]]).to(self._allocator.device)

    def _bump(self, pages: Slots) -> None:
        if len(pages) == 0:
            return
        self._generations[pages] += np.uint64(1)
        self._table.bump(pages, self._generations[pages])
        self._published[pages] = False
        for page in pages.tolist():
            self._on_withdraw(page)
