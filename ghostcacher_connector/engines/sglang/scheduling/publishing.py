"""Publishes pages once they are computed on every rank, and never before.

Life of an offer: SGLang inserts computed tokens into its tree, locks the new node and offers its pages (`offer`); the
forward pass that computes them may still run on a GPU, so events say when it is over; once it is on every rank
(SGLang takes the least count of all ranks) the pages are published (`publish_oldest`) and the node is unlocked.

Why an offered page is always one that a pass fills: SGLang enters tokens into its tree after it has launched the pass
that computes them, a chunk when the next one is prepared, a request that ends when its result is processed, by which
time the pass of its last token is launched, too (support.py refuses the one setting with which it is not). A request
that is retracted, or aborted in the midst of its chunks, enters nothing. So what a request is given from the tree was
launched before its own first pass, on the same stream, and what it computes stands on that. What was pulled enters the
tree when its seal was right on every rank, behind a prefix that is in the tree (loading.py), and nobody sees it before.

Driven by the scheduler's thread alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ghostcacher_connector.core.index.base import BlockSink
from ghostcacher_connector.core.retention.base import BlockTraits
from ghostcacher_connector.core.types import BlockHash, SectionType
from ghostcacher_connector.engines.sglang.scheduling.page_guard import PageGuard
from ghostcacher_connector.slots import Slots
from ghostcacher_connector.tiers.candidates import Candidate
from ghostcacher_connector.tiers.host_tier import HostTier

NO_PAGES: Slots = np.empty(0, dtype=np.int64)


class Offer(NamedTuple):
    """Pages of one tree node, offered to be published."""

    hashes: list[BlockHash]
    """Chain hash of each page, n of them."""
    root: BlockHash
    """Hash of the first page of the chain."""
    pages: Slots
    """Numbers of the pages, shape (n,)."""
    events: Sequence[Any]
    """Over when the pages are computed."""


class PageBook:
    """Which blocks this engine offers to the fleet, by hash and by page."""

    def __init__(self, withdraw: Callable[[int], None] | None) -> None:
        """withdraw: takes a page out of the index; None on ranks that do not speak for the worker."""
        self._withdraw = withdraw
        self._by_page: dict[int, BlockHash] = {}
        self._by_hash: dict[BlockHash, int] = {}

    def __len__(self) -> int:
        return len(self._by_page)

    def holds(self, block: BlockHash) -> bool:
        return block in self._by_hash

    def enter(self, block: BlockHash, page: int) -> None:
        self._by_page[page] = block
        self._by_hash[block] = page

    def drop(self, page: int) -> None:
        """A published page was released."""
        block = self._by_page.pop(page, None)
        if block is not None and self._by_hash.get(block) == page:
            del self._by_hash[block]
        if self._withdraw is not None:
            self._withdraw(page)


class PagePublisher:
    """Takes offers from SGLang, in order."""

    def __init__(
        self,
        guard: PageGuard,
        book: PageBook,
        sink: BlockSink | None,
        page_tokens: int,
        on_published: Callable[[BlockHash], None],
        tier: HostTier | None = None,
    ) -> None:
        """sink: the index; None on ranks that do not speak for the worker. on_published: called with each block.

        tier: told of each page that is published, if there is one.
        """
        self._guard = guard
        self._book = book
        self._sink = sink
        self._page_tokens = page_tokens
        self._on_published = on_published
        self._tier = tier
        self._offers: deque[Offer] = deque()

    def offer(self, keys: Sequence[str], root: BlockHash, token_indexes: torch.Tensor, events: Sequence[Any]) -> None:
        """Take the pages of a tree node. keys: one hash a page, in hex. token_indexes: of all their tokens."""
        pages = (token_indexes[:: self._page_tokens].cpu() // self._page_tokens).numpy().astype(np.int64, copy=False)
        assert len(pages) == len(keys), f"{len(keys)} keys for {len(pages)} pages"
        self._offers.append(Offer([bytes.fromhex(key) for key in keys], root, pages, events))

    def offer_nothing(self) -> None:
        """Take the place of an offer that cannot be taken."""
        self._offers.append(Offer([], b"", NO_PAGES, ()))

    def computed_count(self) -> int:
        """Return how many of the oldest offers are computed on this rank."""
        count = 0
        for offer in self._offers:
            if not all(event.query() for event in offer.events):
                break
            count += 1
        return count

    def publish_oldest(self) -> None:
        """Publish the oldest offer, which every rank has computed; its node is still locked."""
        offer = self._offers.popleft()
        generations = self._guard.publish(offer.pages)
        parent: BlockHash | None = None
        for block, page, generation in zip(offer.hashes, offer.pages.tolist(), generations.tolist(), strict=True):
            self._book.enter(block, page)
            if self._tier is not None:
                # SGLang says neither what a node is part of, nor how deep it lies: see docs/operating/host-tier.md.
                traits = BlockTraits(SectionType.DOC, 0, self._page_tokens, self._tier.block_bytes)
                self._tier.engine_holds(page, Candidate(block, offer.root, parent, traits), generation)
            parent = block
            if self._sink is not None:
                self._sink.publish(page, block, offer.root, generation)
            self._on_published(block)

    def void(self) -> None:
        """Never publish what is offered now. SGLang counts offers: each keeps its place."""
        self._offers = deque(offer._replace(hashes=[], pages=NO_PAGES) for offer in self._offers)

    def forget(self) -> None:
        """Drop what was offered and not published: the tree is being reset."""
        self._offers.clear()
